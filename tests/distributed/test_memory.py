"""ZeRO's account of a rank's memory, held against the sums of its paper."""

import pytest

from simcast_hpc.config import EngineConfig
from simcast_hpc.distributed.memory import RankBytes, rank_bytes

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
def test_each_stage_shares_out_one_thing_more(precision, stage, weights, gradients, optimizer):
    engine = EngineConfig(precision=precision, zero_stage=stage)
    wanted = RankBytes(weights=int(weights * N), gradients=int(gradients * N), optimizer=int(optimizer * N))
    assert rank_bytes(N, engine=engine, world_size=8) == wanted


def test_a_share_is_rounded_up():
    shared = rank_bytes(10, engine=EngineConfig(zero_stage=3), world_size=4)
    assert shared == RankBytes(weights=6, gradients=12, optimizer=36)
