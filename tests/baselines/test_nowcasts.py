"""Nowcasting methods of pysteps as baselines: skill, fallback on dry windows, cache of forecasts."""

import importlib.util
import logging

import numpy as np
import pytest
import torch

from simcast_hpc.baselines import BASELINES, Persistence, PystepsBaseline, load_baseline
from simcast_hpc.baselines import intensity as intensities
from simcast_hpc.data.encoding import Decibel, Linear, SevirVil
from simcast_hpc.verification import protocol_for, score
from tests.baselines.test_pysteps_extrapolation import REFLECTIVITY, centre, moving_storms

RAIN_RATE = Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, first_code=1, floor=0.1)
METHODS = ("darts", "s-prog", "steps", "linda", "anvil")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pysteps") is None or importlib.util.find_spec("cv2") is None,
    reason="pysteps and OpenCV are not installed; pip install pysteps opencv-python-headless",
)


@pytest.fixture(scope="module")
def storms():
    return moving_storms(frames=13)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_more_skill_than_persistence(name, storms):
    frames, future = storms[:, :9], storms[:, 9:]
    forecast = load_baseline(name, RAIN_RATE).forecast(frames, 4)
    members = (10,) if name == "steps" else ()
    assert forecast.shape == (1, *members, 4, 64, 64) and forecast.dtype == torch.float32
    assert torch.equal((forecast * 255).round() / 255, forecast), "integer codes"
    protocol = protocol_for("heavy", (80.0, 120.0))
    scores = score(centre(future), centre(forecast), protocol=protocol)
    persistence = score(centre(future), centre(Persistence().forecast(frames, 4)), protocol=protocol)
    assert scores["csi/mean"] > persistence["csi/mean"] + 0.2
    assert scores["crps"] < persistence["crps"]


@pytest.mark.parametrize("encoding", [REFLECTIVITY, SevirVil()], ids=["dBZ", "VIL"])
def test_other_encodings_are_converted_to_intensity_and_back(encoding, storms):
    frames, future = storms[:, :9], storms[:, 9:]
    forecast = load_baseline("s-prog", encoding).forecast(frames, 4)
    scores = score(centre(future), centre(forecast), protocol=protocol_for("heavy", (80.0, 120.0)))
    assert scores["csi/mean"] > 0.8
    codes = np.arange(255, dtype=np.uint8)
    back = intensities.codes_of_intensity(intensities.intensity(codes, encoding), encoding)
    assert np.abs(back.astype(int) - encoding.encode(encoding.decode(codes)).astype(int)).max() <= 1


def test_ensemble_is_a_function_of_the_frames(storms):
    first = load_baseline("steps", RAIN_RATE).forecast(storms[:, :9], 2)
    assert torch.equal(load_baseline("steps", RAIN_RATE).forecast(storms[:, :9], 2), first)
    assert not torch.equal(first[:, 0], first[:, 1]), "members differ"


@pytest.mark.parametrize("name", ["s-prog", "steps", "linda", "anvil"])
def test_uses_extrapolation_on_dry_windows(name, caplog):
    dry = torch.zeros(1, 5, 32, 32, dtype=torch.uint8)
    baseline = load_baseline(name, RAIN_RATE)
    with caplog.at_level(logging.INFO, logger="simcast_hpc"):
        forecast = baseline.forecast(dry, 3)
    assert not forecast.any()
    assert isinstance(baseline, PystepsBaseline) and baseline.fallbacks == 1
    assert "0.00% of a frame is wet" in caplog.text


def test_uses_extrapolation_if_the_method_fails(storms, monkeypatch, caplog):
    def fail(*_arguments, **_options):
        raise ValueError("singular matrix")

    baseline = load_baseline("linda", RAIN_RATE)
    assert isinstance(baseline, PystepsBaseline)
    monkeypatch.setattr(baseline, "_forecast", fail)
    with caplog.at_level(logging.INFO, logger="simcast_hpc"):
        forecast = baseline.forecast(storms[:, :9], 4)
    assert torch.equal(forecast, load_baseline("pysteps-lk", RAIN_RATE).forecast(storms[:, :9], 4))
    assert "singular matrix" in caplog.text


def test_cache_is_keyed_by_content_and_replaces_damaged_files(storms, tmp_path, monkeypatch):
    baseline = load_baseline("pysteps-lk", RAIN_RATE, cache=tmp_path)
    first = baseline.forecast(storms[:, :9], 2)
    (path,) = (tmp_path / "pysteps-lk").glob("*.npz")
    calls = []
    forecast_window = type(baseline).forecast_window
    monkeypatch.setattr(
        type(baseline), "forecast_window", lambda self, *a: calls.append(1) or forecast_window(self, *a)
    )
    assert torch.equal(baseline.forecast(storms[:, :9], 2), first) and not calls
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(baseline.forecast(storms[:, :9], 2), first) and len(calls) == 1
    other = load_baseline("pysteps-lk", Linear(unit="dBZ", gain=0.5, offset=-32.0), cache=tmp_path)
    other.forecast(storms[:, :9], 2)
    baseline.forecast(storms[:, :9], 3)
    assert len(calls) == 3 and len(list((tmp_path / "pysteps-lk").iterdir())) == 3


def test_rejects_too_few_frames():
    frames = torch.zeros(1, 2, 16, 16, dtype=torch.uint8)
    for name, needed in (("darts", 5), ("s-prog", 3)):
        with pytest.raises(ValueError, match=f"at least {needed} input frames, got 2"):
            load_baseline(name, RAIN_RATE).forecast(frames, 1)


def test_each_name_has_a_note_and_a_baseline():
    assert {load_baseline(name, RAIN_RATE).name for name in BASELINES} == set(BASELINES)
