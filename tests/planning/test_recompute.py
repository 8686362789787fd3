"""What is computed again: which ways are worth taking, that their bytes are true, and what they cost."""

import itertools

import pytest
import torch

from simcast_hpc.config import CasFormerConfig, EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.planning.flops import denoiser, forecaster
from simcast_hpc.planning.peak_memory import peak_bytes
from simcast_hpc.planning.recompute import Recomputation, _worth_taking, measured_costs, recomputations, ways_of

EARTHFORMER = EarthformerConfig(
    grid=(16, 16), width=8, heads=1, stem=StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
)


def subject_of(config):
    return forecaster(config, frames_in=4, frames_out=3, grid=(16, 16), dtype=torch.float32)


def test_every_choice_of_levels_or_all_or_nothing():
    assert ways_of(subject_of(EARTHFORMER)) == [(), (0,), (1,), (0, 1)]
    assert ways_of(subject_of(SimVPConfig(hidden_spatial=8, hidden_temporal=16, groups=2))) == [()]
    casformer = CasFormerConfig(frame_width=8, frame_depth=1, frame_heads=2, width=12, depth=1, heads=2)
    assert ways_of(denoiser(casformer, frames_in=4, frames_out=3, channels=2, grid=(4, 4))) == [(), (0,)]


def test_ways_cost_what_they_compute_again_and_each_saves_more_than_a_cheaper_one():
    found = recomputations(subject_of(EARTHFORMER), dtype=torch.float32)
    assert found[0].levels == () and found[0].cost == 0
    assert found[-1].levels == (0, 1) and 0 < found[-1].cost < 1 / 3, "a forward pass again, but not all of it"
    for cheaper, dearer in itertools.pairwise(found):
        assert cheaper.cost < dearer.cost
        assert all(a > b for a, b in zip(cheaper.activations, dearer.activations, strict=True))


def test_planned_bytes_are_those_of_a_step_with_values():
    subject = subject_of(EARTHFORMER)
    planned = {way.levels: way.activations[1] for way in recomputations(subject, dtype=torch.float32)}
    for levels, told in planned.items():
        torch.manual_seed(0)
        real = peak_bytes(subject.made(levels).train(), torch.rand(2, 4, 1, 16, 16))
        assert told == pytest.approx(real, rel=0.25), "operators' bodies on a CPU need other bytes for moments"


def test_a_way_that_saves_nothing_is_left_out():
    def way(*levels: int, size: int, cost: float) -> Recomputation:
        return Recomputation(levels=levels, activations=(size, 2 * size), cost=cost)

    kept, fine, coarse, both = (
        way(size=9, cost=0),
        way(0, size=5, cost=0.2),
        way(1, size=9, cost=0.1),
        way(0, 1, size=4, cost=0.3),
    )
    assert _worth_taking([both, coarse, fine, kept]) == [kept, fine, both]
    free = way(0, size=5, cost=0)
    assert _worth_taking([free, kept]) == [kept, free], "what costs nothing by a clock's noise is not preferred"
    assert [w.bytes_at(3) for w in (kept, both)] == [27, 12]


def test_measured_costs_are_those_of_real_steps(monkeypatch):
    seconds = {(): 2.0, (0,): 2.5, (1,): 1.9, (0, 1): 3.0}
    monkeypatch.setattr("simcast_hpc.planning.recompute._seconds", lambda _s, levels, *_: seconds[levels])
    found = measured_costs(subject_of(EARTHFORMER), dtype=torch.float32, device=torch.device("cpu"))
    assert found == {(): 0.0, (0,): 0.25, (1,): 0.0, (0, 1): 0.5}
    ways = recomputations(subject_of(EARTHFORMER), dtype=torch.float32, costs=found)
    assert ways[0].levels == () and ways[-1].levels == (0, 1) and ways[-1].cost == 0.5
