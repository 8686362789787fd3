"""Extrapolation without pysteps: skill, missing pixels, batches, types of input, and agreement with pysteps."""

import builtins
import importlib.util

import numpy as np
import pytest
import torch

from simcast_hpc.baselines import Extrapolation, Persistence, PystepsExtrapolation, load_baseline
from simcast_hpc.data.encoding import Decibel
from simcast_hpc.models.advection import extrapolate
from simcast_hpc.verification import protocol_for, score
from tests.baselines.test_pysteps_extrapolation import centre, moving_storms

RAIN_RATE = Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, first_code=1, floor=0.1)


def test_follows_a_steady_translation():
    storms = moving_storms()
    frames, future = storms[:, :5], storms[:, 5:]
    forecast = Extrapolation().forecast(frames, 4)
    assert forecast.shape == future.shape and forecast.dtype == torch.float32
    protocol = protocol_for("heavy", (80.0, 120.0))
    followed = score(centre(future), centre(forecast), protocol=protocol, per_lead=True)
    still = score(centre(future), centre(Persistence().forecast(frames, 4)), protocol=protocol, per_lead=True)
    for lead in range(1, 5):
        assert followed[f"csi/mean/lead/{lead}"] > 0.9
    assert followed["csi/mean/lead/4"] > still["csi/mean/lead/4"] + 0.4


def test_is_the_base_of_the_models_unrounded():
    frames = moving_storms(frames=5)
    frames[:, 1:, :9, :9] = 255
    valid = frames != 255
    unit = torch.where(valid, frames.float() / 255.0, 0.0)
    forecast = Extrapolation().forecast(frames, 3)
    assert torch.equal(forecast, extrapolate(unit, 3, valid))
    assert not torch.equal(forecast, (forecast * 255).round() / 255)


def test_floats_and_arrays_give_the_forecast_of_their_codes():
    storms = moving_storms(frames=4)
    storms[0, :, :4, :4] = 255
    floats = torch.where(storms == 255, float("nan"), storms / 255.0)
    expected = Extrapolation().forecast(storms, 2)
    assert torch.equal(Extrapolation().forecast(floats, 2), expected)
    assert torch.equal(Extrapolation().forecast(storms.numpy(), 2), expected)


def test_inflow_and_missing_pixels_are_no_echo():
    storms = moving_storms(shift=(0, 3))
    frames = torch.maximum(storms[:, :5], torch.tensor(60, dtype=torch.uint8))
    frames[:, :, :6, :6] = 255
    forecast = Extrapolation().forecast(frames, 4)
    assert torch.isfinite(forecast).all()
    assert (forecast[0, -1, 20:-20, :6] == 0).all()
    assert (forecast[0, 0, 20:, 10:] > 0.2).all()
    assert forecast.max() <= frames[:, -1].where(frames[:, -1] < 255, 0).max() / 255.0 + 1e-6


@pytest.mark.parametrize("fill", [0, 60, 255])
def test_field_without_gradients_has_no_motion(fill):
    frames = torch.full((2, 4, 32, 40), fill, dtype=torch.uint8)
    forecast = Extrapolation().forecast(frames, 3)
    torch.testing.assert_close(forecast, Persistence().forecast(frames, 3), rtol=0, atol=1e-5)


def test_rejects_invalid_input():
    with pytest.raises(ValueError, match="at least 2 input frames, got 1"):
        Extrapolation().forecast(torch.zeros(1, 1, 16, 16), 2)
    with pytest.raises(TypeError, match="uint8 or floats"):
        Extrapolation().forecast(torch.zeros(1, 3, 16, 16, dtype=torch.int32), 2)


def test_needs_no_extra(monkeypatch):
    load = builtins.__import__

    def without_extras(name, *arguments, **options):
        if name.split(".")[0] in ("pysteps", "cv2"):
            raise ImportError(f"No module named {name!r}")
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_extras)
    assert load_baseline("extrapolation", RAIN_RATE).forecast(moving_storms(frames=3, side=24), 1).any()


@pytest.mark.skipif(
    importlib.util.find_spec("pysteps") is None or importlib.util.find_spec("cv2") is None,
    reason="pysteps and OpenCV are not installed; pip install pysteps opencv-python-headless",
)
def test_has_the_skill_of_pysteps():
    storms = torch.cat([moving_storms(side=48, shift=shift, seed=seed) for seed, shift in enumerate([(1, 2), (-2, 1)])])
    frames, future = storms[:, :5], storms[:, 5:]
    protocol = protocol_for("heavy", (40.0, 80.0, 120.0))
    ours, theirs = (
        score(future, one.forecast(frames, 4), protocol=protocol)
        for one in (Extrapolation(), PystepsExtrapolation(RAIN_RATE))
    )
    assert ours["csi/mean"] > theirs["csi/mean"] - 0.02
    assert ours["mse"] < 1.1 * theirs["mse"]
    persistence = score(future, Persistence().forecast(frames, 4), protocol=protocol)
    assert ours["csi/mean"] > persistence["csi/mean"] + 0.2 and np.isfinite(ours["mse"])
