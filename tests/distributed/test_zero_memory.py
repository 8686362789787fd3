"""Predicted memory per rank under ZeRO, compared with the formulas of the paper."""

import pytest

from simcast_hpc.config import EngineConfig
from simcast_hpc.distributed.zero_memory import RankBytes, WorkingBytes, rank_bytes, working_bytes

N = 1_000_000


@pytest.mark.parametrize(
    ("precision", "stage", "weights", "gradients", "optimizer"),
    [
        ("fp32", 0, 4, 4, 8),
        ("fp32", 1, 4, 4, 12 / 8),
        ("bf16", 1, 2, 4, 12 / 8),
        ("bf16", 2, 2, 4 / 8, 12 / 8),
        ("bf16", 3, 2 / 8, 4 / 8, 12 / 8),
    ],
)
def test_each_stage_partitions_one_more_part(precision, stage, weights, gradients, optimizer):
    engine = EngineConfig(precision=precision, zero_stage=stage)
    wanted = RankBytes(weights=int(weights * N), gradients=int(gradients * N), optimizer=int(optimizer * N))
    assert rank_bytes(N, engine=engine, world_size=8) == wanted


def test_a_partition_is_rounded_up():
    shared = rank_bytes(10, engine=EngineConfig(zero_stage=3), world_size=4)
    assert shared == RankBytes(weights=6, gradients=12, optimizer=36)


@pytest.mark.parametrize(
    ("precision", "stage", "offload", "on_device", "host"),
    [
        ("fp32", 1, "optimizer", (4, 0, 0), 20 / 8),
        ("bf16", 2, "optimizer", (2, 4 / 8, 0), 18 / 8),
        ("bf16", 3, "optimizer", (2 / 8, 0, 0), 20 / 8),
        ("bf16", 3, "parameters", (0, 0, 0), 22 / 8),
    ],
)
def test_offload_moves_to_the_host(precision, stage, offload, on_device, host):
    engine = EngineConfig(precision=precision, zero_stage=stage, offload=offload)
    held = rank_bytes(N, engine=engine, world_size=8)
    assert (held.weights, held.gradients, held.optimizer) == tuple(int(per * N) for per in on_device)
    assert working_bytes(N, engine=engine, world_size=8).host == int(host * N)


def test_buffers_are_bounded():
    many = 2_000_000_000
    three = EngineConfig(zero_stage=3, zero_hpz_partition_size=4)
    working = working_bytes(many, engine=three, world_size=8)
    assert working == WorkingBytes(buckets=4 * 500_000_000, gathered=2 * 10**9, hierarchical=2 * many // 4, host=0)
    assert working_bytes(10, engine=three, world_size=8).buckets == 40, "no more than there is"
    smaller = three.model_copy(update={"deepspeed": {"zero_optimization": {"reduce_bucket_size": 1000}}})
    assert working_bytes(many, engine=smaller, world_size=8).buckets == 4000
    in_bf16 = three.model_copy(update={"gradient_reduction": "bf16"})
    assert working_bytes(10, engine=in_bf16, world_size=8).buckets == 20
    two = EngineConfig(zero_stage=2)
    assert working_bytes(10, engine=two, world_size=8).buckets == 80, "the gradients, their flat copy, and that in fp32"
    one = working_bytes(N, engine=EngineConfig(zero_stage=1), world_size=8)
    assert one == WorkingBytes(buckets=2 * N, gathered=0, hierarchical=0, host=0)
