"""CUDA graphs of forecasting networks: no host synchronization, and a new capture after weights have moved."""

import pytest
import torch
from torch import nn

from simcast_hpc.config import (
    EarthformerConfig,
    GlobalVectorConfig,
    LossConfig,
    ModelConfig,
    SimVPConfig,
    StackConvStem,
)
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.losses import WeightedMSE
from simcast_hpc.models import build_model
from tests.emulated_graphs import EmulatedGraph, MetaDeviceOnly

FRAMES_IN, FRAMES_OUT, SIZE = 3, 2, 16
NETWORKS: dict[str, ModelConfig] = {
    "simvp": SimVPConfig(hidden_spatial=8, hidden_temporal=16, groups=2),
    "simvp-extrapolation": SimVPConfig(hidden_spatial=8, hidden_temporal=16, groups=2, base="extrapolation"),
    "earthformer": EarthformerConfig(
        grid=(SIZE, SIZE), width=16, heads=1, stem=StackConvStem(widths=(4, 16), scales=(2, 2), convolutions=(1, 1)),
        global_vectors=GlobalVectorConfig(count=2), attention_dropout=0.0,  # a graph would contain a constant seed
    ),
}  # fmt: skip


def make_network(kind: str, *, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return build_model(NETWORKS[kind], frames_in=FRAMES_IN, frames_out=FRAMES_OUT)


def frames(batch: int = 2, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, FRAMES_IN, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NETWORKS)
def test_forecast_does_not_synchronize(kind):
    network = make_network(kind, device="meta").eval()
    with torch.no_grad(), MetaDeviceOnly() as mode:
        forecast = network(torch.empty(2, FRAMES_IN, 1, SIZE, SIZE, device="meta"))
    assert forecast.shape == (2, FRAMES_OUT, 1, SIZE, SIZE)
    assert mode.operations > 20


@pytest.mark.parametrize("kind", NETWORKS)
def test_training_step_does_not_synchronize(kind):
    network, loss = make_network(kind, device="meta").train(), WeightedMSE(LossConfig(), read_spec("sevir"))
    target = torch.empty(2, FRAMES_OUT, 1, SIZE, SIZE, dtype=torch.uint8, device="meta")
    inputs, valid = torch.empty(2, FRAMES_IN, 1, SIZE, SIZE, device="meta"), torch.empty_like(target, dtype=torch.bool)
    with MetaDeviceOnly() as mode:
        loss(network(inputs), target, valid).backward()
    assert sum(parameter.grad is not None for parameter in network.parameters()) > 10
    assert mode.operations > 60


@pytest.fixture
def graphs(monkeypatch) -> GraphCache:
    monkeypatch.setattr(EmulatedGraph, "captures", 0)
    return GraphCache(capture=EmulatedGraph)  # pyright: ignore[reportArgumentType]


def test_replay_equals_network_and_returns_new_tensors(graphs):
    network = make_network("simvp").eval().requires_grad_(False)
    forecasts = [graphs.run(network, frames(seed=seed), network=network) for seed in range(4)]
    assert EmulatedGraph.captures == 1
    assert all(torch.equal(one, network(frames(seed=seed))) for seed, one in enumerate(forecasts))


def test_recaptures_moved_weights_and_reads_changed_values(graphs):
    network = make_network("simvp").eval().requires_grad_(False)
    for _ in range(2):
        graphs.run(network, frames(), network=network)
    for parameter in network.parameters():
        parameter.mul_(0.5)
    assert torch.equal(graphs.run(network, frames(), network=network), network(frames()))
    assert EmulatedGraph.captures == 1
    network.double().float()
    for count in (1, 2):
        assert torch.equal(graphs.run(network, frames(), network=network), network(frames()))
        assert EmulatedGraph.captures == count
