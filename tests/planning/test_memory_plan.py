"""Memory plan: each part by hand, the order of preference, and the errors if nothing fits."""

import pytest

from simcast_hpc.config import BatchConfig, ConfigError, EngineConfig
from simcast_hpc.planning.memory_plan import (
    CONTEXT_BYTES,
    Machine,
    ModelMemory,
    Plan,
    estimate_memory,
    estimate_plans,
    first_fit,
    micro_batches,
    smallest_gpu_count,
)
from simcast_hpc.planning.recompute import RecomputeOption

N, GIB = 1_000_000_000, 2**30
NONE = RecomputeOption(levels=(), activations=(8 * GIB, 15 * GIB), cost=0.0)
COARSE = RecomputeOption(levels=(1,), activations=(3 * GIB, 6 * GIB), cost=0.1)
ALL = RecomputeOption(levels=(0, 1), activations=(GIB, 2 * GIB), cost=0.3)
MODEL = ModelMemory(sizes=(N - 10, 10), ema=True, auxiliary=7, recompute_options=(NONE, COARSE, ALL))
BATCH = BatchConfig(global_size=32)


def _estimate(machine, *, micro=1, recompute=NONE, **engine):
    return estimate_memory(MODEL, Plan(engine=EngineConfig(**engine), recompute=recompute, micro_batch=micro), machine)


def test_parts_by_hand():
    eight = Machine(gpus=8, memory=80 * GIB)
    estimate = _estimate(eight, zero_stage=3, micro=3)
    own = N // 8
    assert estimate.parts == {
        "weights": 2 * own,
        "gradients": 4 * own,
        "optimizer": 12 * own,
        "ema": 4 * own,
        "auxiliary": 7,
        "activations": 24 * GIB,  # at least 8 each
        "buffers": 4 * 500_000_000 + 2 * N,  # gradients are reduced in fp32
        "margin": CONTEXT_BYTES + int(0.1 * (24 * GIB + 4 * N)),
    }
    assert (
        estimate.total == sum(estimate.parts.values())
        and estimate.bottleneck == "activations"
        and estimate.host_per_node == 0
    )


def test_offload_moves_states_to_host():
    machine = Machine(gpus=8, nodes=2, memory=80 * GIB)
    estimate = _estimate(machine, zero_stage=2, offload="optimizer")
    assert estimate.parts["optimizer"] == 0 and estimate.host_per_node == 4 * 18 * (N // 8)
    parameters = _estimate(machine, zero_stage=3, offload="parameters")
    assert parameters.parts["weights"] == 0 and parameters.host_per_node == 4 * 22 * (N // 8)


def test_secondary_partition_stays_within_a_node():
    machine = Machine(gpus=8, nodes=2, memory=80 * GIB)
    plain = _estimate(machine, zero_stage=3)
    assert (
        _estimate(machine, zero_stage=3, zero_hpz_partition_size=4).parts["buffers"]
        == plain.parts["buffers"] + 2 * N // 4
    )


def test_plans_are_in_order_of_preference():
    estimates = estimate_plans(MODEL, Machine(gpus=8, nodes=2, memory=80 * GIB), BATCH, EngineConfig())
    plans = [estimate.plan for estimate in estimates]
    keys = [(plan.engine.offload, plan.recompute.cost, plan.engine.zero_stage) for plan in plans]
    hpz = [plan.engine.zero_hpz_partition_size for plan in plans]
    assert keys[:4] == [("none", 0.0, stage) for stage in (1, 2, 3, 3)] and hpz[:4] == [1, 1, 4, 1]
    assert keys == sorted(keys, key=lambda key: (("none", "optimizer", "parameters").index(key[0]), key[1]))
    assert len(keys) == 3 * (4 + 4 + 2)
    fp32 = estimate_plans(MODEL, Machine(gpus=1, memory=1), BATCH, EngineConfig(precision="fp32"))
    assert {estimate.plan.engine.zero_stage for estimate in fp32} == {0, 1, 2, 3}


def test_largest_micro_batch_that_fits():
    machine = Machine(gpus=4, memory=34 * GIB)
    assert micro_batches(BATCH, machine) == [1, 2, 4, 8]
    estimates = estimate_plans(MODEL, machine, BATCH, EngineConfig())
    by_plan = {(estimate.plan.recompute, estimate.plan.engine.zero_stage): estimate for estimate in estimates}
    without = by_plan[NONE, 2]
    larger = _estimate(machine, zero_stage=2, micro=without.plan.micro_batch * 2)
    assert without.total <= machine.memory < larger.total
    assert by_plan[ALL, 2].plan.micro_batch == 8


def test_first_fit_changes_at_the_exact_byte():
    least = _estimate(Machine(gpus=4, memory=1000 * GIB), zero_stage=1).total
    for memory, stage in ((least, 1), (least - 1, 2)):
        machine = Machine(gpus=4, memory=memory)
        best = first_fit(estimate_plans(MODEL, machine, BATCH, EngineConfig()), machine)
        assert best is not None and (best.plan.engine.zero_stage, best.plan.recompute) == (stage, NONE)
        assert best.total <= memory


def test_budget_selects_cheapest_option():
    """The weights determine the ZeRO stage; the remaining memory determines the checkpointed levels."""
    for budget, option in ((8, NONE), (7, COARSE), (3, COARSE), (2, ALL)):
        least = _estimate(Machine(gpus=4, memory=1), zero_stage=3, recompute=option)
        memory = least.total + (budget - option.activations[0] // GIB) * GIB
        machine = Machine(gpus=4, memory=memory)
        best = first_fit(estimate_plans(MODEL, machine, BATCH, EngineConfig()), machine)
        assert best is not None and best.plan.recompute is option and best.total <= memory


def test_smallest_gpu_count_if_nothing_fits():
    tight = Machine(gpus=1, memory=8 * GIB)
    split = ModelMemory(sizes=(N // 64,) * 64, ema=True, auxiliary=0, recompute_options=MODEL.recompute_options)
    assert first_fit(estimate_plans(split, tight, BATCH, EngineConfig()), tight) is None
    more = smallest_gpu_count(split, tight, BATCH, EngineConfig())
    assert more is not None and 32 % more == 0
    enough = Machine(gpus=more, nodes=more, memory=tight.memory)
    assert first_fit(estimate_plans(split, enough, BATCH, EngineConfig()), enough)
    large = RecomputeOption(levels=(), activations=(100 * GIB, 200 * GIB), cost=0.0)
    too_large = ModelMemory(sizes=(N,), ema=False, auxiliary=0, recompute_options=(large,))
    assert smallest_gpu_count(too_large, tight, BATCH, EngineConfig()) is None


def test_rejects_indivisible_batch_and_nodes():
    with pytest.raises(ConfigError, match=r"--gpus 12 does not divide batch\.global_size=32; choose 1, 2, 4, 8"):
        micro_batches(BATCH, Machine(gpus=12, memory=GIB))
    with pytest.raises(ConfigError, match=r"--gpus 64 does not divide"):
        micro_batches(BATCH, Machine(gpus=64, memory=GIB))
    with pytest.raises(ConfigError, match="--gpus 8 is not divisible by --nodes 3"):
        Machine(gpus=8, nodes=3, memory=GIB)
