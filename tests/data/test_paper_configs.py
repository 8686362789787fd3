"""The paper's configurations on HKO-7 and MeteoNet: network shapes at full size, training steps at a small size."""

from pathlib import Path

import pytest
import torch

from simcast_hpc.config import EarthformerConfig, StackConvStem, TrainConfig, read_config
from simcast_hpc.data.open_windows import step_minutes, target_spec
from simcast_hpc.losses import WeightedMSE
from simcast_hpc.models import build_model, with_grid

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = [
    f"{stage}/{name}{backbone}"
    for stage in ("teacher", "student", "direct")
    for name in ("hko7", "meteonet")
    for backbone in ("", "-earthformer")
]
PAPER = {  # frames in, frames out, teacher frames out, minutes, grid, tau, unit of tau
    "hko7": (10, 10, 5, 6, (480, 480), 185, "code"),
    "meteonet": (12, 12, 6, 5, (400, 400), 47, "dBZ"),
}


def read(run: str) -> TrainConfig:
    return read_config(TrainConfig, CONFIGS / f"{run}.yaml")


def network_of(config: TrainConfig, grid: tuple[int, int]) -> torch.nn.Module:
    model = with_grid(config.model, grid)
    return build_model(model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)


@pytest.mark.parametrize("run", RUNS)
def test_paper_network_has_the_right_shapes(run):
    config, spec = read(run), target_spec(read(run).data)
    frames_in, frames_out, short, minutes, grid, tau, unit = PAPER[run.split("/")[1].split("-")[0]]
    sequence = config.sequence
    assert (sequence.frames_in, sequence.frames_out, sequence.teacher_frames_out) == (frames_in, frames_out, short)
    assert (spec.grid.height, spec.grid.width) == grid and step_minutes(config.data) == minutes
    loss = WeightedMSE(config.loss, spec)
    assert loss.weights == (1.0, 10.0) and loss.thresholds == spec.codes_of((tau,), unit=unit)
    assert loss.thresholds == ((185.0,) if unit == "code" else (141.0,)), (
        "integer codes: a target equal to tau has weight 1"
    )
    with torch.device("meta"):
        output = network_of(config, grid)(torch.empty(1, frames_in, 1, *grid))
    assert output.shape == (1, config.frames_out, 1, *grid)
    if isinstance(config.model, EarthformerConfig):
        stem = config.model.stem
        assert isinstance(stem, StackConvStem)
        token = torch.tensor(stem.scales).prod().item()
        assert all(size % (token * config.model.downsampling) == 0 for size in grid)
        assert {size // token for size in grid} == {40}


@pytest.mark.parametrize(
    "run",
    [run if run.startswith(("teacher", "student")) else pytest.param(run, marks=pytest.mark.slow) for run in RUNS],
)
def test_paper_network_learns_at_a_small_size(run):
    config = read(run)
    side = {"hko7": 24, "meteonet": 20}[run.split("/")[1].split("-")[0]]
    torch.manual_seed(0)
    network, loss = network_of(config, (side, side)), WeightedMSE(config.loss, target_spec(config.data))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    inputs = torch.rand(1, config.sequence.frames_in, 1, side, side)
    target = torch.randint(0, 255, (1, config.frames_out, 1, side, side), dtype=torch.uint8)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        value = loss(network(inputs), target, target != 255)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert losses[2] < losses[0]


def test_tau_is_compared_with_the_code():
    spec = target_spec(read("teacher/meteonet").data)
    loss = WeightedMSE(read("teacher/meteonet").loss, spec)
    codes = torch.tensor([[[[[140, 141, 142]]]]], dtype=torch.uint8)
    zero = torch.zeros(codes.shape)
    values = [float(loss(zero[..., k : k + 1], codes[..., k : k + 1], None)) for k in range(3)]
    unit = [(code / 255) ** 2 for code in (140, 141, 142)]
    assert values == pytest.approx([unit[0], unit[1], 10 * unit[2]], rel=1e-6), "47 dBZ is code 141"
