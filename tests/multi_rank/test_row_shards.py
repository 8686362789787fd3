"""Row shards: values and gradients of every exchange on ranks equal those of the whole field."""

import subprocess
import sys

import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.distributed.row_shards import RowShards
from tests.multi_rank.runs import environment


@pytest.mark.parametrize("size", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_exchanges_on_ranks_equal_the_whole_field(size: int):
    command = [sys.executable, "-m", "tests.multi_rank.row_shard_checks", str(size)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


def test_one_rank_needs_no_group_and_changes_nothing():
    shards, x = RowShards(), torch.arange(24.0).reshape(2, 3, 4).requires_grad_()
    assert shards.rows(5) == range(5)
    for same in (shards.take(x), shards.sum(x), shards.rows_to_columns(x, 1, 2), shards.gather_rows(x)):
        assert same is x
    padded = shards.halo(x, 1, 2)
    assert torch.equal(padded[:, 1:4], x) and padded.shape == (2, 6, 4)
    assert not padded[:, :1].any() and not padded[:, 4:].any()
    padded.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(("height", "multiple", "fits"), [(9, 1, 10), (12, 4, 16), (7, 8, 16), (0, 2, 4)])
def test_rows_that_do_not_divide_name_the_next_height(height: int, multiple: int, fits: int):
    with pytest.raises(ConfigError, match=rf"parallel\.spatial=2 .* {height} rows .* fits is {fits} "):
        RowShards(1, 2, object()).rows(height, multiple)


def test_rows_of_a_rank_are_consecutive():
    assert [RowShards(rank, 3, object()).rows(12, 2) for rank in range(3)] == [range(4), range(4, 8), range(8, 12)]


@pytest.mark.parametrize(("before", "after"), [(-1, 0), (0, -1)])
def test_negative_halos_are_rejected(before: int, after: int):
    with pytest.raises(ValueError, match="at least 0"):
        RowShards().halo(torch.zeros(1, 2, 2), before, after)


def test_ranks_are_checked():
    with pytest.raises(ValueError, match=r"valid are 0 \.\. 1"):
        RowShards(2, 2, object())
    with pytest.raises(ValueError, match="process group"):
        RowShards(0, 2)
