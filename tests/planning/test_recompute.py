"""Activation checkpointing: Pareto-optimal options, their memory compared with real steps, and their cost."""

import itertools

import pytest
import torch

from simcast_hpc.config import CasFormerConfig, EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.planning.flops import denoiser, forecaster
from simcast_hpc.planning.peak_memory import peak_bytes
from simcast_hpc.planning.recompute import (
    RecomputeOption,
    _pareto_front,
    level_subsets,
    measured_costs,
    recompute_options,
)

EARTHFORMER = EarthformerConfig(
    grid=(16, 16), width=8, heads=1, stem=StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
)


def network_of(config):
    return forecaster(config, frames_in=4, frames_out=3, grid=(16, 16), dtype=torch.float32)


def test_level_subsets_per_network():
    assert level_subsets(network_of(EARTHFORMER)) == [(), (0,), (1,), (0, 1)]
    assert level_subsets(network_of(SimVPConfig(hidden_spatial=8, hidden_temporal=16, groups=2))) == [()]
    casformer = CasFormerConfig(frame_width=8, frame_depth=1, frame_heads=2, width=12, depth=1, heads=2)
    assert level_subsets(denoiser(casformer, frames_in=4, frames_out=3, channels=2, grid=(4, 4))) == [(), (0,)]


def test_options_trade_memory_for_flops():
    options = recompute_options(network_of(EARTHFORMER), dtype=torch.float32)
    assert options[0].levels == () and options[0].cost == 0
    assert options[-1].levels == (0, 1) and 0 < options[-1].cost < 1 / 3, "less than one more forward pass"
    for cheaper, smaller in itertools.pairwise(options):
        assert cheaper.cost < smaller.cost
        assert all(a > b for a, b in zip(cheaper.activations, smaller.activations, strict=True))


def test_planned_bytes_equal_real_step():
    network = network_of(EARTHFORMER)
    planned = {option.levels: option.activations[1] for option in recompute_options(network, dtype=torch.float32)}
    for levels, expected in planned.items():
        torch.manual_seed(0)
        real = peak_bytes(network.build(levels).train(), torch.rand(2, 4, 1, 16, 16))
        assert expected == pytest.approx(real, rel=0.25), "operators on a CPU use other temporaries"


def test_dominated_options_are_dropped():
    def option(*levels: int, size: int, cost: float) -> RecomputeOption:
        return RecomputeOption(levels=levels, activations=(size, 2 * size), cost=cost)

    none, fine, coarse, both = (
        option(size=9, cost=0),
        option(0, size=5, cost=0.2),
        option(1, size=9, cost=0.1),
        option(0, 1, size=4, cost=0.3),
    )
    assert _pareto_front([both, coarse, fine, none]) == [none, fine, both]
    free = option(0, size=5, cost=0)
    assert _pareto_front([free, none]) == [none, free], "timing noise does not put an option first"
    assert [each.bytes_at(3) for each in (none, both)] == [27, 12]


def test_measured_costs_are_relative_step_times(monkeypatch):
    seconds = {(): 2.0, (0,): 2.5, (1,): 1.9, (0, 1): 3.0}
    monkeypatch.setattr("simcast_hpc.planning.recompute._step_seconds", lambda _s, levels, *_: seconds[levels])
    costs = measured_costs(network_of(EARTHFORMER), dtype=torch.float32, device=torch.device("cpu"))
    assert costs == {(): 0.0, (0,): 0.25, (1,): 0.0, (0, 1): 0.5}
    options = recompute_options(network_of(EARTHFORMER), dtype=torch.float32, costs=costs)
    assert options[0].levels == () and options[-1].levels == (0, 1) and options[-1].cost == 0.5
