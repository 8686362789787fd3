"""Persistence: exact pixel values of the last frame, 0 where it is missing."""

import numpy as np
import pytest
import torch

from simcast_hpc.baselines import BASELINES, Persistence, load_baseline
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.verification import score


def every_code():
    frames = np.zeros((1, 3, 16, 16), dtype=np.uint8)
    frames[0, -1] = np.arange(256).reshape(16, 16)
    return frames


def test_forecast_equals_the_last_frame_exactly():
    frames = every_code()
    forecast = Persistence().forecast(frames, 4)
    assert forecast.shape == (1, 4, 16, 16)
    assert forecast.dtype == torch.float32
    expected = (np.arange(255) / 255).astype(np.float32)
    for lead in range(4):
        assert np.array_equal(forecast[0, lead].flatten()[:255].numpy(), expected)


def test_missing_pixels_are_forecast_as_no_echo():
    codes = torch.from_numpy(every_code())
    assert Persistence().forecast(codes, 1)[0, 0, -1, -1] == 0.0
    floats = torch.full((1, 2, 2, 2), 0.5)
    floats[0, 1, 0, 0] = float("nan")
    forecast = Persistence().forecast(floats, 2)
    assert forecast[0, :, 0, 0].tolist() == [0.0, 0.0]
    assert forecast[0, :, 1, 1].tolist() == [0.5, 0.5]
    assert torch.isnan(floats[0, 1, 0, 0])


def test_constant_field_has_perfect_scores():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 12, 12), dtype=np.uint8))
    forecast = Persistence().forecast(frames, 2)
    result = score(frames[:, -1:].repeat(1, 2, 1, 1), forecast)
    assert result["csi/mean"] == 1.0
    assert result["mse"] == 0.0


def test_forecast_is_not_a_view_of_the_input():
    frames = torch.rand(1, 2, 4, 4)
    forecast = Persistence().forecast(frames, 2)
    before = forecast.clone()
    frames.zero_()
    assert torch.equal(forecast, before)


@pytest.mark.parametrize(
    ("frames", "frames_out", "error", "message"),
    [
        (torch.zeros(2, 4, 4), 1, ValueError, r"\[B, T, H, W\]"),
        (torch.zeros(1, 0, 4, 4), 1, ValueError, "at least 1 input frames, got 0"),
        (torch.zeros(1, 2, 4, 4), 0, ValueError, "frames_out=0"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.int32), 1, TypeError, "uint8 or floats"),
    ],
)
def test_rejects_invalid_input(frames, frames_out, error, message):
    with pytest.raises(error, match=message):
        Persistence().forecast(frames, frames_out)


def test_loads_baselines_by_name():
    encoding = read_spec("sevir").encoding
    assert {"persistence", "extrapolation"} <= set(BASELINES)
    assert load_baseline("persistence", encoding).name == "persistence"
    with pytest.raises(KeyError, match="did you mean 'persistence'"):
        load_baseline("persistance", encoding)
