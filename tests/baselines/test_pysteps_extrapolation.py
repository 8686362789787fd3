"""Extrapolation with pysteps: skill, persistence without motion, missing pixels, and the missing-extra error."""

import importlib
import importlib.util

import numpy as np
import pytest
import torch

from simcast_hpc.baselines import Persistence, PystepsExtrapolation
from simcast_hpc.data.encoding import Decibel, Linear, SevirVil
from simcast_hpc.verification import protocol_for, score

RAIN_RATE = Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, first_code=1, floor=0.1)
REFLECTIVITY = Linear(unit="dBZ", gain=0.5, offset=-32.0)
ENCODINGS = [RAIN_RATE, REFLECTIVITY, SevirVil()]

needs_pysteps = pytest.mark.skipif(
    importlib.util.find_spec("pysteps") is None or importlib.util.find_spec("cv2") is None,
    reason="pysteps and OpenCV are not installed; pip install pysteps opencv-python-headless",
)


def moving_storms(*, frames=9, side=64, shift=(1, 2), seed=0):
    """Return uint8 ``[1, frames, side, side]`` of smooth storms that move by (rows, columns) pixels per frame."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(float)
    field = np.zeros((frames, side, side))
    centres, widths = generator.uniform(0, side, (14, 2)), generator.uniform(2.0, 4.5, 14)
    for frame in range(frames):
        for (row, column), width in zip(centres + frame * np.array(shift), widths, strict=True):
            field[frame] += 180 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))
    return torch.from_numpy(np.clip(field, 0, 240).astype(np.uint8))[None]


def centre(field):
    return field[..., 12:-12, 12:-12]


@needs_pysteps
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: type(encoding).__name__)
def test_follows_a_steady_translation(encoding):
    storms = moving_storms()
    frames, future = storms[:, :5], storms[:, 5:]
    forecast = PystepsExtrapolation(encoding).forecast(frames, 4)
    assert forecast.shape == future.shape
    assert forecast.dtype == torch.float32
    protocol = protocol_for("heavy", (80.0, 120.0))
    followed = score(centre(future), centre(forecast), protocol=protocol, per_lead=True)
    still = score(centre(future), centre(Persistence().forecast(frames, 4)), protocol=protocol, per_lead=True)
    for lead in range(1, 5):
        assert followed[f"csi/mean/lead/{lead}"] > 0.75
    assert followed["csi/mean/lead/4"] > still["csi/mean/lead/4"] + 0.3
    assert followed["coverage"] == 1.0


@needs_pysteps
def test_motion_is_x_y_in_pixels_per_frame():
    motion = PystepsExtrapolation(RAIN_RATE).motion(moving_storms(shift=(1, 2))[0, :5].numpy())
    assert motion.shape == (2, 64, 64)
    assert np.median(motion[0]) == pytest.approx(2.0, abs=0.2)
    assert np.median(motion[1]) == pytest.approx(1.0, abs=0.2)


@needs_pysteps
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: type(encoding).__name__)
def test_without_motion_equals_persistence(encoding):
    storms = moving_storms(frames=1).repeat(1, 4, 1, 1)
    extrapolation = PystepsExtrapolation(encoding)
    extrapolation.motion = lambda codes: np.zeros((2, *codes.shape[1:]))
    forecast = extrapolation.forecast(storms, 3)
    codes = storms[:, -1:].numpy()
    expected = encoding.encode(np.nan_to_num(encoding.decode(codes), neginf=-32.0)) / np.float32(255)
    assert np.array_equal(forecast.numpy(), expected.repeat(3, axis=1))


@needs_pysteps
@pytest.mark.parametrize("fill", [0, 60, 255])
def test_field_without_features_has_no_motion(fill):
    frames = torch.full((2, 4, 32, 40), fill, dtype=torch.uint8)
    forecast = PystepsExtrapolation(RAIN_RATE).forecast(frames, 3)
    assert torch.equal(forecast, Persistence().forecast(frames, 3))


@needs_pysteps
def test_inflow_and_missing_pixels_are_no_echo():
    storms = moving_storms(shift=(0, 3))
    frames = torch.maximum(storms[:, :5], torch.tensor(60, dtype=torch.uint8))
    frames[:, :, :6, :6] = 255
    forecast = PystepsExtrapolation(RAIN_RATE).forecast(frames, 4)
    assert not torch.isnan(forecast).any()
    assert (forecast[0, -1, 20:, :6] == 0).all()
    assert (forecast[0, 0, 20:, 10:] > 0).all()
    assert forecast.max() < 1.0


@needs_pysteps
def test_floats_give_the_forecast_of_their_codes():
    storms = moving_storms(frames=4)
    storms[0, :, :4, :4] = 255
    floats = torch.where(storms == 255, float("nan"), storms / 255.0)
    extrapolation = PystepsExtrapolation(RAIN_RATE)
    assert torch.equal(extrapolation.forecast(floats, 2), extrapolation.forecast(storms.numpy(), 2))


@needs_pysteps
def test_follows_motion_on_a_large_grid():
    storms = moving_storms(side=160, frames=5, seed=2)
    motion = PystepsExtrapolation(RAIN_RATE).motion(storms[0].numpy())
    assert np.median(motion[0]) == pytest.approx(2.0, abs=0.3)


@needs_pysteps
def test_rejects_invalid_input():
    with pytest.raises(ValueError, match="motion_frames=1"):
        PystepsExtrapolation(RAIN_RATE, motion_frames=1)
    with pytest.raises(ValueError, match="at least 2 input frames, got 1"):
        PystepsExtrapolation(RAIN_RATE).forecast(torch.zeros(1, 1, 16, 16), 2)


@pytest.mark.parametrize("absent", ["pysteps.motion", "cv2"])
def test_missing_extra_error_names_the_install_command(monkeypatch, absent):
    present = importlib.import_module

    def fail(name, package=None):
        if name == absent or (absent == "pysteps.motion" and name == "cv2"):
            if name == absent:
                raise ImportError(f"No module named {name!r}")
            return None
        return present(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"pip install .*\[verify\].*pysteps opencv-python-headless"):
        PystepsExtrapolation(RAIN_RATE)
