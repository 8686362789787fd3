"""Checks of row shards on ranks: each computes the whole field too and compares its rows with it.

``python -m tests.multi_rank.row_shard_checks SIZE [MODULE NAME]`` forks SIZE ranks and runs every check on them, or the
check NAME of MODULE.
"""

import importlib
import multiprocessing
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import Tensor

from simcast_hpc.distributed.row_shards import RowShards
from tests.multi_rank.runs import free_port

_TIMEOUT = timedelta(seconds=60)


def weights_like(x: Tensor) -> Tensor:
    """Return fixed weights of a loss, different in each element."""
    return torch.linspace(-1.0, 2.0, x.numel(), dtype=x.dtype).sin().reshape(x.shape)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers, the same on each rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def equal(actual: Tensor, expected: Tensor) -> None:
    """Compare a rank's values with the reference."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, check_stride=False)


def compare(shards: RowShards, whole: Tensor, own: Callable[[Tensor], Tensor], reference: Callable, dim: int) -> None:
    """Compare values and input gradients of ``own`` on this rank's rows with ``reference`` on the whole field.

    ``reference`` returns what each rank should have, in the order of the ranks. The loss is a sum over all ranks.
    """
    local, whole = shards.take(whole, dim).clone().requires_grad_(), whole.clone().requires_grad_()
    expected, actual = reference(whole), own(local)
    equal(actual, expected[shards.rank])
    factors = [weights_like(part) * (rank + 1) for rank, part in enumerate(expected)]
    (actual * factors[shards.rank]).sum().backward()
    torch.stack([(part * factor).sum() for part, factor in zip(expected, factors, strict=True)]).sum().backward()
    assert local.grad is not None and whole.grad is not None
    equal(local.grad, shards.take(whole.grad, dim))


def check_halo(shards: RowShards) -> None:
    """Halos up to several neighbors' rows, on any axis, and memory formats."""
    size, rows = shards.size, 3
    for dim in (-2, 1, 4):
        shape = [2, 3, 2, 4, 5]
        shape[dim] = size * rows
        whole = random(*shape)
        for before, after in ((0, 0), (1, 0), (0, 2), (3, 3), (4, 7), (rows * size, 1)):

            def reference(x: Tensor, dim: int = dim, before: int = before, after: int = after) -> list[Tensor]:
                sides = [list(x.shape), list(x.shape)]
                sides[0][dim], sides[1][dim] = before, after
                padded = torch.cat([x.new_zeros(sides[0]), x, x.new_zeros(sides[1])], dim=dim)
                return [padded.narrow(dim, rank * rows, before + rows + after) for rank in range(size)]

            compare(shards, whole, lambda x, a=before, b=after, dim=dim: shards.halo(x, a, b, dim), reference, dim=dim)
    for dtype in (torch.float32, torch.bfloat16):
        x = shards.take(random(1, 2, size * 2, 4).to(dtype)).contiguous(memory_format=torch.channels_last)
        assert shards.halo(x, 1, 1).is_contiguous(memory_format=torch.channels_last)
        assert shards.halo(x, 1, 1).dtype == dtype


def check_sum_and_maximum(shards: RowShards) -> None:
    """Sums are differentiable; the maximum has no gradient; scalars too."""
    size = shards.size
    whole = random(size * 2, 3)

    def total(x: Tensor) -> list[Tensor]:
        return [torch.stack(x.chunk(size)).sum(dim=0)] * size

    compare(shards, whole, shards.sum, total, dim=0)
    compare(shards, whole, lambda x: shards.sum(x.sum()), lambda x: [x.sum()] * size, dim=0)
    largest = shards.maximum(shards.take(whole, 0).requires_grad_())
    equal(largest, torch.stack(whole.chunk(size)).amax(dim=0))
    assert not largest.requires_grad


def check_transposes(shards: RowShards) -> None:
    """Rows to columns and back, in both orders of the axes, and from a view that is not contiguous."""
    size = shards.size
    for row_dim, column_dim in ((1, 3), (3, 1), (-2, -1)):
        shape = [2, 3, 2, 3]
        shape[row_dim], shape[column_dim] = 2 * size, 3 * size
        whole = random(*shape)
        compare(
            shards, whole, lambda x, r=row_dim, c=column_dim: shards.rows_to_columns(x, r, c),
            lambda x, c=column_dim: list(x.chunk(size, dim=c)), dim=row_dim,
        )  # fmt: skip
        compare(
            shards, whole, lambda x, r=row_dim, c=column_dim: shards.columns_to_rows(x, r, c),
            lambda x, r=row_dim: list(x.chunk(size, dim=r)), dim=column_dim,
        )  # fmt: skip
        own = shards.take(whole, row_dim)
        back = shards.columns_to_rows(shards.rows_to_columns(own, row_dim, column_dim), row_dim, column_dim)
        assert torch.equal(back, own)
    try:
        shards.rows_to_columns(random(2, 2 * size + 1), 0, 1)
    except ValueError as error:
        assert str(3 * size) in str(error)
    else:
        raise AssertionError("columns that the ranks do not divide were accepted")


def check_gather(shards: RowShards) -> None:
    """Every rank has the whole field; its gradient is the sum over the ranks."""
    whole = random(3, 2 * shards.size, 2)
    compare(shards, whole, lambda x: shards.gather_rows(x, 1), lambda x: [x] * shards.size, dim=1)


CHECKS: list[Callable[[RowShards], None]] = [check_halo, check_sum_and_maximum, check_transposes, check_gather]


def _rank(rank: int, size: int, port: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=_TIMEOUT
    )
    shards = RowShards(rank, size, torch.distributed.group.WORLD)
    for check in CHECKS:
        check(shards)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main(size: int, module: str | None = None, name: str = "") -> None:
    """Run the checks, or one of another module, on ``size`` forked ranks."""
    from tests.multi_rank import sharded_network_checks

    if module is None:
        CHECKS.extend(sharded_network_checks.CHECKS)
    else:
        CHECKS[:] = [importlib.import_module(module).CHECKS[name]]
    port, fork = free_port(), multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(rank, size, port)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(_TIMEOUT.total_seconds())
    for rank in ranks:
        rank.kill()
    if failed := [number for number, rank in enumerate(ranks) if rank.exitcode]:
        raise SystemExit(f"ranks {failed} of {size} failed")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
