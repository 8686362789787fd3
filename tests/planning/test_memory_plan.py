"""What fits: each part by hand, the order of preference, and what is said where nothing does."""

import pytest

from simcast_hpc.config import BatchConfig, ConfigError, EngineConfig
from simcast_hpc.planning.memory_plan import (
    CONTEXT_BYTES,
    Choice,
    Facts,
    Machine,
    first_fit,
    gpus_that_fit,
    micro_batches,
    need_of,
    needs,
)
from simcast_hpc.planning.recompute import Recomputation

N, GIB = 1_000_000_000, 2**30
KEPT = Recomputation(levels=(), activations=(8 * GIB, 15 * GIB), cost=0.0)
COARSE = Recomputation(levels=(1,), activations=(3 * GIB, 6 * GIB), cost=0.1)
AGAIN = Recomputation(levels=(0, 1), activations=(GIB, 2 * GIB), cost=0.3)
FACTS = Facts(sizes=(N - 10, 10), averaged=True, beside=7, ways=(KEPT, COARSE, AGAIN))
BATCH = BatchConfig(global_size=32)


def _need(machine, *, micro=1, again=KEPT, **engine):
    return need_of(FACTS, Choice(engine=EngineConfig(**engine), again=again, micro=micro), machine)


def test_every_part_by_hand():
    eight = Machine(gpus=8, memory=80 * GIB)
    need = _need(eight, zero_stage=3, micro=3)
    own = N // 8
    assert need.parts == {
        "weights": 2 * own,
        "gradients": 4 * own,
        "optimizer": 12 * own,
        "average": 4 * (N - 10),  # the first rank's share is one whole tensor
        "beside": 7,
        "activations": 24 * GIB,  # 8, 15: never under 8 each
        "buffers": 2 * 500_000_000 + 2 * N,
        "margin": CONTEXT_BYTES + int(0.1 * (24 * GIB + 3 * N)),
    }
    assert need.total == sum(need.parts.values()) and need.bottleneck == "activations" and need.host_of_a_node == 0


def test_offload_moves_the_optimizer_to_every_host():
    machine = Machine(gpus=8, nodes=2, memory=80 * GIB)
    need = _need(machine, zero_stage=2, offload="optimizer")
    assert need.parts["optimizer"] == 0 and need.host_of_a_node == 4 * 18 * (N // 8)
    all_of_it = _need(machine, zero_stage=3, offload="parameters")
    assert all_of_it.parts["weights"] == 0 and all_of_it.host_of_a_node == 4 * 22 * (N // 8)


def test_the_second_copy_of_the_weights_stays_in_a_node():
    machine = Machine(gpus=8, nodes=2, memory=80 * GIB)
    plain = _need(machine, zero_stage=3)
    assert (
        _need(machine, zero_stage=3, zero_hpz_partition_size=4).parts["buffers"] == plain.parts["buffers"] + 2 * N // 4
    )


def test_what_talks_least_comes_first():
    ways = needs(FACTS, Machine(gpus=8, nodes=2, memory=80 * GIB), BATCH, EngineConfig())
    told = [(way.choice.engine.offload, way.choice.again.cost, way.choice.engine.zero_stage) for way in ways]
    hpz = [way.choice.engine.zero_hpz_partition_size for way in ways]
    assert told[:4] == [("none", 0.0, stage) for stage in (1, 2, 3, 3)] and hpz[:4] == [1, 1, 4, 1]
    assert told == sorted(told, key=lambda one: (("none", "optimizer", "parameters").index(one[0]), one[1]))
    assert len(told) == 3 * (4 + 4 + 2)
    assert {way.choice.engine.zero_stage for way in needs(FACTS, Machine(gpus=1, memory=1), BATCH, EngineConfig(
        precision="fp32"))} == {0, 1, 2, 3}  # fmt: skip


def test_the_largest_micro_batch_that_fits_and_divides():
    machine = Machine(gpus=4, memory=34 * GIB)
    assert micro_batches(BATCH, machine) == [1, 2, 4, 8]
    by_way = {
        (way.choice.again, way.choice.engine.zero_stage): way for way in needs(FACTS, machine, BATCH, EngineConfig())
    }
    kept, again = by_way[KEPT, 2], by_way[AGAIN, 2]
    assert kept.total <= machine.memory < _need(machine, zero_stage=2, micro=kept.choice.micro * 2).total
    assert again.choice.micro == 8


def test_the_first_that_fits_is_taken_and_a_hair_less_memory_takes_the_next():
    whole = Machine(gpus=4, memory=1000 * GIB)
    least = _need(whole, zero_stage=1).total
    for memory, stage in ((least, 1), (least - 1, 2)):
        machine = Machine(gpus=4, memory=memory)
        best = first_fit(needs(FACTS, machine, BATCH, EngineConfig()), machine)
        assert best is not None and (best.choice.engine.zero_stage, best.choice.again) == (stage, KEPT)
        assert best.total <= memory


def test_a_budget_takes_the_cheapest_way_under_it():
    """ZeRO's stage is given by the weights; what is left for activations decides which levels are computed again."""
    for budget, way in ((8, KEPT), (7, COARSE), (3, COARSE), (2, AGAIN)):
        memory = (
            _need(Machine(gpus=4, memory=1), zero_stage=3, again=way).total + (budget - way.activations[0] // GIB) * GIB
        )
        machine = Machine(gpus=4, memory=memory)
        best = first_fit(needs(FACTS, machine, BATCH, EngineConfig()), machine)
        assert best is not None and best.choice.again is way and best.total <= memory


def test_nothing_fits_and_more_gpus_may_do():
    tight = Machine(gpus=1, memory=8 * GIB)
    averaged_less = Facts(sizes=(N // 64,) * 64, averaged=True, beside=0, ways=FACTS.ways)
    assert first_fit(needs(averaged_less, tight, BATCH, EngineConfig()), tight) is None
    more = gpus_that_fit(averaged_less, tight, BATCH, EngineConfig())
    assert more is not None and 32 % more == 0
    enough = Machine(gpus=more, nodes=more, memory=tight.memory)
    assert first_fit(needs(averaged_less, enough, BATCH, EngineConfig()), enough)
    large = Recomputation(levels=(), activations=(100 * GIB, 200 * GIB), cost=0.0)
    never = Facts(sizes=(N,), averaged=False, beside=0, ways=(large,))
    assert gpus_that_fit(never, tight, BATCH, EngineConfig()) is None


def test_gpus_that_cannot_share_the_batch_are_rejected():
    with pytest.raises(
        ConfigError, match=r"batch\.global_size=32 does not fall evenly on --gpus 12; it does on 1, 2, 4, 8"
    ):
        micro_batches(BATCH, Machine(gpus=12, memory=GIB))
    with pytest.raises(ConfigError, match=r"global_size=32 does not fall evenly on --gpus 64"):
        micro_batches(BATCH, Machine(gpus=64, memory=GIB))
    with pytest.raises(ConfigError, match="--gpus 8 do not fall evenly on --nodes 3"):
        Machine(gpus=8, nodes=3, memory=GIB)
