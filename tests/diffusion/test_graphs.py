"""CUDA graphs of the sampling loop: capture, replay, and fallback if capture fails."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simcast_hpc.config import CasFormerConfig
from simcast_hpc.diffusion import BatchNoise, SamplingResult, make_schedule, plan_steps, run_sampler, spaced_timesteps
from simcast_hpc.diffusion.samplers import SamplerKind
from simcast_hpc.diffusion.sampling_loop import sample
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.models.casformer import CasFormer
from tests.emulated_graphs import EmulatedGraph, MetaDeviceOnly

SMALL = CasFormerConfig(frame_width=8, frame_depth=1, frame_heads=2, width=12, depth=1, heads=2)
FRAMES, CHANNELS, SIZE = 3, 2, 4


def steps_of(kind: SamplerKind):
    schedule = make_schedule()
    return plan_steps(kind, schedule, spaced_timesteps(schedule, 4, "trailing"))


def loop_of(network: CasFormer, kind: SamplerKind = "ddpm", guidance: float = 2.0):
    """Return the sampling loop of ensembles."""
    steps = steps_of(kind)

    def loop(start: Tensor, sample_of: Tensor, member: Tensor, condition: Tensor) -> SamplingResult:
        return run_sampler(
            steps,
            lambda x, t: network(x, t, condition),
            start,
            unconditional=None if guidance == 1 else lambda x, t: network(x, t, torch.zeros_like(condition)),
            guidance=guidance,
            clip=2.0,
            batch_noise=BatchNoise(7, sample_of, member),
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
def meta_network() -> CasFormer:
    """Return a network on the meta device, which has no values that the host could wait for."""
    return CasFormer(SMALL, frames=FRAMES, channels=CHANNELS).eval().requires_grad_(False).to("meta")


@pytest.mark.parametrize(("kind", "guidance"), [("ddpm", 2.0), ("ddim", 1.0), ("dpm_solver", 2.0)])
def test_loop_neither_synchronizes_nor_leaves_device(kind, guidance, meta_network):
    loop, tensors = loop_of(meta_network, kind, guidance), inputs(device="meta")
    with MetaDeviceOnly() as mode:
        result = loop(*tensors)
    assert mode.operations > 100
    assert result.latents.shape == (3, FRAMES, CHANNELS, SIZE, SIZE)


@pytest.mark.parametrize(
    ("synchronize", "error", "message"),
    [
        (lambda t: t + int(t[0]), RuntimeError, "item"),
        (lambda t: t[t > 0], NotImplementedError, "nonzero"),
        (lambda t: t.cpu().to("meta"), NotImplementedError, "meta tensor"),
        (lambda t: t + torch.ones(1).sum().to("meta"), AssertionError, "leaves the device"),
    ],
)
def test_operations_that_cannot_be_captured_are_detected(synchronize, error, message, meta_network):
    steps, tensors = steps_of("ddim"), inputs(device="meta")
    with pytest.raises(error, match=message), MetaDeviceOnly():
        run_sampler(steps, lambda x, t: meta_network(x, synchronize(t), tensors[3]), tensors[0])
    with pytest.raises(RuntimeError, match="item"), MetaDeviceOnly():
        sample(steps, lambda x, t: meta_network(x, t, tensors[3]), tensors[0])


@pytest.fixture
def network() -> CasFormer:
    torch.manual_seed(0)
    network = CasFormer(SMALL, frames=FRAMES, channels=CHANNELS).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    return network


@pytest.fixture
def graphs(monkeypatch) -> GraphCache:
    monkeypatch.setattr(EmulatedGraph, "captures", 0)
    return GraphCache(capture=EmulatedGraph)  # pyright: ignore[reportArgumentType]


def test_captures_second_call_of_a_size(network, graphs):
    loop, counts = loop_of(network), []
    for seed in range(4):
        result = graphs.run(loop, *inputs(seed=seed))
        want = loop(*inputs(seed=seed))
        assert torch.equal(result.latents, want.latents) and torch.equal(result.clip_rate, want.clip_rate)
        counts.append(EmulatedGraph.captures)
    assert counts == [0, 1, 1, 1]


def test_keeps_two_least_recently_used_sizes(network, graphs):
    loop = loop_of(network)
    for rows in (3, 2, 3, 2, 3, 2):
        assert len(graphs.run(loop, *inputs(rows)).latents) == rows
    assert EmulatedGraph.captures == 2
    graphs.run(loop, *inputs(1))
    graphs.run(loop, *inputs(2))
    assert EmulatedGraph.captures == 2
    graphs.run(loop, *inputs(3))
    graphs.run(loop, *inputs(2))
    assert EmulatedGraph.captures == 2, "1 evicts 3 and 3 evicts 1, the least recently used"
    graphs.run(loop, *inputs(3))
    assert EmulatedGraph.captures == 3


def test_clear_discards_graphs(network, graphs):
    loop = loop_of(network)
    for _ in range(2):
        graphs.run(loop, *inputs())
    graphs.clear()
    for _ in range(2):
        graphs.run(loop, *inputs())
    assert EmulatedGraph.captures == 2


def test_failed_capture_warns_once_and_runs_eagerly(network, caplog):
    attempts = []

    def fails(loop: Any, tensors: list[Tensor]) -> Any:
        attempts.append(len(tensors))
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs, loop = GraphCache("the sampling loop", capture=fails), loop_of(network)
    for seed in range(3):
        assert torch.equal(graphs.run(loop, *inputs(seed=seed)).latents, loop(*inputs(seed=seed)).latents)
    assert attempts == [4]
    assert [record.getMessage() for record in caplog.records] == [
        "the sampling loop runs without a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_no_capture_on_cpu(network, monkeypatch):
    monkeypatch.setattr("simcast_hpc.inference.cuda_graph.CapturedGraph", None)
    graphs, loop = GraphCache(), loop_of(network)
    for _ in range(3):
        graphs.run(loop, *inputs())
