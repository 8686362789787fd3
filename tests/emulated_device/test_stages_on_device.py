"""All stages and forecasts on the emulated device succeed and equal those of the CPU."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from simcast_hpc.inference.trained_model import load_trained
from tests.emulated_device.simcast_jobs import STEPS, Result
from tests.multi_rank.runs import losses, metrics, weights

pytestmark = pytest.mark.ci
Runs = tuple[Path, dict[str, Result]]
STAGES = ("teacher", "student", "cached", "direct", "autoencoder", "diffusion")
FORECASTS = ("rollout", "evaluate", "sample-fp32", "sample-bf16", "export", "predict", "predict-fp32", "predict-bf16")


@pytest.mark.parametrize("name", [*STAGES, *FORECASTS])
def test_command_succeeds_on_the_device(on_device: Runs, name: str):
    result = on_device[1][name]
    assert result.succeeded()
    assert "without a CUDA graph" not in result.output[0], "a capture must not synchronize"
    assert "running on the CPU" not in result.output[0]


@pytest.mark.parametrize("name", STAGES)
def test_training_equals_the_cpu(on_cpu: Runs, on_device: Runs, name: str):
    """Convolutions in TF32 would differ by 1e-4; the emulated device rounds to TF32 where PyTorch allows it."""
    assert on_cpu[1][name].succeeded()
    of_cpu, of_device = losses(on_cpu[0] / name), losses(on_device[0] / name)
    assert len(of_cpu) == STEPS
    assert of_device == pytest.approx(of_cpu, rel=1e-5)
    trained, expected = weights(on_device[0] / name), weights(on_cpu[0] / name)
    # Adam divides by the size of the gradient: where that is rounding error, an update has a random sign.
    assert all(torch.allclose(trained[key], expected[key], atol=2e-3 * STEPS) for key in expected)


def test_device_is_recorded(on_cpu: Runs, on_device: Runs):
    assert any("memory/peak_gib" in line for line in metrics(on_device[0] / "student")), "training used the device"
    assert not any("memory/peak_gib" in line for line in metrics(on_cpu[0] / "student"))


def test_scores_equal_those_of_the_cpu(on_cpu: Runs, on_device: Runs):
    assert on_cpu[1]["evaluate"].succeeded()
    of_cpu, of_device = (json.loads((folder / "scores" / "test.json").read_text()) for folder, _ in (on_cpu, on_device))
    numbers = [dict(_numbers(one)) for one in (of_cpu, of_device)]
    scores = {key: value for key, value in numbers[0].items() if "mse" in key or "mae" in key or "crps" in key}
    assert len(scores) > 20 and scores.keys() <= numbers[1].keys()
    assert {key: numbers[1][key] for key in scores} == pytest.approx(scores, rel=1e-3, nan_ok=True)


def _numbers(value: object, above: str = ""):
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{above}/{key}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _numbers(one, f"{above}/{number}")
    elif isinstance(value, float):
        yield above, value


def _sampled(folder: Path, precision: str) -> np.ndarray:
    with h5py.File(folder / f"{precision}.h5") as file:
        return np.asarray(file["forecast"])


def test_members_equal_those_of_the_cpu(on_cpu: Runs, on_device: Runs):
    assert on_cpu[1]["sample-fp32"].succeeded() and on_cpu[1]["sample-bf16"].succeeded()
    exact, of_device = _sampled(on_cpu[0], "fp32"), _sampled(on_device[0], "fp32")
    assert exact.std() > 1e-3
    np.testing.assert_allclose(of_device, exact, atol=1e-3)
    rounded = _sampled(on_device[0], "bf16")
    assert np.abs(rounded - of_device).max() > 1e-5, "bf16 has an effect"


def test_exported_model_equals_the_model(on_device: Runs):
    folder = on_device[0]
    program = torch.export.load(folder / "exported" / "model.pt2").module()
    model = load_trained(folder / "student")
    codes = torch.randint(0, 255, (1, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    forecast = model.forecast(codes, frames_out=4)
    torch.testing.assert_close(program(codes), forecast, atol=1e-6, rtol=0)


def _predicted(folder: Path) -> tuple[np.ndarray, dict]:
    (path,) = folder.glob("*.nc")
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        return dataset.reflectivity.values, dict(dataset.attrs)


@pytest.mark.parametrize("name", ["predicted", "predicted-fp32"])
def test_prediction_in_tiles_equals_that_of_the_cpu(on_cpu: Runs, on_device: Runs, name: str):
    assert on_cpu[1][name.replace("predicted", "predict")].succeeded()
    (of_cpu, _), (of_device, attributes) = _predicted(on_cpu[0] / name), _predicted(on_device[0] / name)
    assert of_cpu.shape[-2:] == (40, 52), "more than one tile of 32 x 32"
    assert np.isfinite(of_cpu).any()
    np.testing.assert_allclose(of_device, of_cpu, atol=0.05)
    assert attributes["simcast_run"] == "tiny"


def test_precision_of_a_prediction_has_an_effect_and_is_recorded(on_device: Runs):
    exact, rounded = (_predicted(on_device[0] / f"predicted-{precision}") for precision in ("fp32", "bf16"))
    assert (
        '"precision":"bf16"' in rounded[1]["simcast_sampling"] and '"precision":"fp32"' in exact[1]["simcast_sampling"]
    )
    assert np.nanmax(np.abs(rounded[0] - exact[0])) > 1e-3
