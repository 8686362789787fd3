"""The sampling loop as a graph: what can be recorded, what is replayed, and what happens where recording fails."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simcast_hpc.config import CasFormerConfig
from simcast_hpc.diffusion import Drawn, Rows, make_schedule, plan_steps, spaced_timesteps, walk
from simcast_hpc.diffusion.samplers import SamplerKind
from simcast_hpc.diffusion.sampling_loop import sample
from simcast_hpc.inference.cuda_graph import Graphs
from simcast_hpc.models.casformer import CasFormer
from tests.recorded_calls import OnMeta, Replayed

SMALL = CasFormerConfig(frame_width=8, frame_depth=1, frame_heads=2, width=12, depth=1, heads=2)
FRAMES, CHANNELS, SIZE = 3, 2, 4


def steps_of(kind: SamplerKind):
    schedule = make_schedule()
    return plan_steps(kind, schedule, spaced_timesteps(schedule, 4, "trailing"))


def loop_of(network: CasFormer, kind: SamplerKind = "ddpm", guidance: float = 2.0):
    """Return the loop as ensembles run it."""
    steps = steps_of(kind)

    def loop(start: Tensor, sample_of: Tensor, member: Tensor, condition: Tensor) -> Drawn:
        return walk(
            steps,
            lambda x, t: network(x, t, condition),
            start,
            unconditional=None if guidance == 1 else lambda x, t: network(x, t, torch.zeros_like(condition)),
            guidance=guidance,
            clip=2.0,
            rows=Rows(7, sample_of, member),
        )

    return loop


def inputs(rows: int = 3, *, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, FRAMES, CHANNELS, SIZE, SIZE)
    if device != "cpu":
        return (
            torch.empty(shape, device=device),
            torch.empty(rows, dtype=torch.int64, device=device),
            torch.empty(rows, dtype=torch.int64, device=device),
            torch.empty(shape, device=device),
        )
    member = torch.arange(rows)
    return torch.randn(shape, generator=generator), member + seed, member, torch.randn(shape, generator=generator)


@pytest.fixture
def without_values() -> CasFormer:
    """A network whose tensors have shapes and a place, and no values that anything could wait for."""
    return CasFormer(SMALL, frames=FRAMES, channels=CHANNELS).eval().requires_grad_(False).to("meta")


@pytest.mark.parametrize(("kind", "guidance"), [("ddpm", 2.0), ("ddim", 1.0), ("dpm_solver", 2.0)])
def test_the_loop_neither_waits_nor_leaves_the_device(kind, guidance, without_values):
    loop, tensors = loop_of(without_values, kind, guidance), inputs(device="meta")
    with OnMeta() as mode:
        drawn = loop(*tensors)
    assert mode.seen > 100
    assert drawn.latents.shape == (3, FRAMES, CHANNELS, SIZE, SIZE)


@pytest.mark.parametrize(
    ("wait", "seen", "says"),
    [
        (lambda t: t + int(t[0]), RuntimeError, "item"),
        (lambda t: t[t > 0], NotImplementedError, "nonzero"),
        (lambda t: t.cpu().to("meta"), NotImplementedError, "meta tensor"),
        (lambda t: t + torch.ones(1).sum().to("meta"), AssertionError, "leaves the device"),
    ],
)
def test_what_could_not_be_recorded_would_be_seen(wait, seen, says, without_values):
    steps, tensors = steps_of("ddim"), inputs(device="meta")
    with pytest.raises(seen, match=says), OnMeta():
        walk(steps, lambda x, t: without_values(x, wait(t), tensors[3]), tensors[0])
    with pytest.raises(RuntimeError, match="item"), OnMeta():
        sample(steps, lambda x, t: without_values(x, t, tensors[3]), tensors[0])


@pytest.fixture
def network() -> CasFormer:
    torch.manual_seed(0)
    made = CasFormer(SMALL, frames=FRAMES, channels=CHANNELS).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    return made


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    monkeypatch.setattr(Replayed, "made", 0)
    return Graphs(record=Replayed)  # pyright: ignore[reportArgumentType]


def test_the_second_of_a_size_is_recorded_and_every_answer_is_the_loops_own(network, graphs):
    loop, made = loop_of(network), []
    for seed in range(4):
        drawn = graphs.run(loop, *inputs(seed=seed))
        want = loop(*inputs(seed=seed))
        assert torch.equal(drawn.latents, want.latents) and torch.equal(drawn.clip_rate, want.clip_rate)
        made.append(Replayed.made)
    assert made == [0, 1, 1, 1]


def test_the_rest_of_an_ensemble_has_a_graph_of_its_own_and_no_third_is_kept(network, graphs):
    loop = loop_of(network)
    for rows in (3, 2, 3, 2, 3, 2):
        assert len(graphs.run(loop, *inputs(rows)).latents) == rows
    assert Replayed.made == 2
    graphs.run(loop, *inputs(1))
    graphs.run(loop, *inputs(2))
    assert Replayed.made == 2
    graphs.run(loop, *inputs(3))
    graphs.run(loop, *inputs(2))
    assert Replayed.made == 2, "3 made room for 1, and 1 for 3: each was used longest ago"
    graphs.run(loop, *inputs(3))
    assert Replayed.made == 3


def test_what_has_moved_is_recorded_anew(network, graphs):
    loop = loop_of(network)
    for _ in range(2):
        graphs.run(loop, *inputs())
    graphs.clear()
    for _ in range(2):
        graphs.run(loop, *inputs())
    assert Replayed.made == 2


def test_where_recording_fails_it_is_said_once_and_the_loop_runs_as_it_is(network, caplog):
    tried = []

    def fails(loop: Any, held: list[Tensor]) -> Any:
        tried.append(len(held))
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs, loop = Graphs("the sampling loop", record=fails), loop_of(network)
    for seed in range(3):
        assert torch.equal(graphs.run(loop, *inputs(seed=seed)).latents, loop(*inputs(seed=seed)).latents)
    assert tried == [4]
    assert [record.getMessage() for record in caplog.records] == [
        "the sampling loop runs without a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_on_a_cpu_nothing_is_recorded(network, monkeypatch):
    monkeypatch.setattr("simcast_hpc.inference.cuda_graph.Recorded", None)
    graphs, loop = Graphs(), loop_of(network)
    for _ in range(3):
        graphs.run(loop, *inputs())
