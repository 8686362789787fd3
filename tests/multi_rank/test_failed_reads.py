"""A checkpoint that one rank cannot read is an error on every rank, under every ZeRO stage."""

import json

import pytest

from tests.multi_rank.failed_reads import CASES
from tests.multi_rank.runs import two_ranks

pytestmark = pytest.mark.multi


def test_an_error_of_one_rank_is_raised_on_both(tmp_path):
    two_ranks("tests.multi_rank.failed_reads", str(tmp_path))
    for rank in (0, 1):
        messages = json.loads((tmp_path / f"messages-{rank}.json").read_text(encoding="utf-8"))
        assert "rank-00001.safetensors is missing or damaged" in messages["damaged"]
        for (options, failing), found in zip(CASES, messages["restore"], strict=True):
            assert len(found) == 2, (options, found)
            assert all("cannot be read" in message for message in found), (options, found)
            assert all(message.startswith(f"rank {failing}: ") for message in found), found
