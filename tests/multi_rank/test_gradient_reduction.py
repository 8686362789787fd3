"""Gradients of bf16 runs are summed over ranks in fp32 under every ZeRO stage, unless `bf16` is configured."""

import json

import pytest

from tests.multi_rank.reduced_gradients import CASES
from tests.multi_rank.runs import two_ranks

pytestmark = pytest.mark.multi


def test_the_collectives_and_the_reduced_gradients_have_the_configured_precision(tmp_path):
    """The errors are those of the reduction: the exact mean is that of the same bf16 gradients."""
    two_ranks("tests.multi_rank.reduced_gradients", str(tmp_path))
    found = [json.loads(line) for line in (tmp_path / "gradients.jsonl").read_text().splitlines()]
    assert [one["engine"] for one in found] == CASES
    for one in found:
        if one["engine"]["gradient_reduction"] == "fp32":
            assert "bfloat16" not in one["dtypes"] and "float32" in one["dtypes"], one
            assert one["error"] < 1e-6, one
        else:
            assert "bfloat16" in one["dtypes"], one
            assert 1e-4 < one["error"] < 2**-7, one
