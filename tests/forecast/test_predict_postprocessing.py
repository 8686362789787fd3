"""`simcast predict --postprocess`: values, names in attributes, and the identity of a watched folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from simcast_hpc.config import ConfigError
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.load_predictor import PredictorSettings, load_model
from simcast_hpc.forecast.predictor import Predictor
from simcast_hpc.inference.postprocessing import model_identity, no_echo_limit
from simcast_hpc.inference.probability_matching import ProbabilityMatching
from simcast_hpc.inference.quantile_mapping import BINS, FILE_NAME, QuantileMapping
from simcast_hpc.inference.trained_ensemble import load_ensemble, load_run
from simcast_hpc.radar import EncodedFrame, RadarGrid, encoding_of_run
from tests.radar.radar_files import LAEA, moment, predict, small_model, storm, write_odim

HALF_CODE = 0.5 / 255


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number in range(3):
        write_odim(folder / f"{number}.h5", storm(number), moment(number))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with the quantile mapping of forecasts of 40..119 to observations of 60..219, different by lead time."""
    run_dir = small_model(tmp_path_factory.mktemp("model") / "student")
    forecast, observed = np.zeros((4, BINS), np.int64), np.zeros((4, 255), np.int64)
    for lead in range(4):
        forecast[lead, 200:600] = 50
        observed[lead, 60 + lead : 220 + lead] = 125
    QuantileMapping(
        forecast, observed, HALF_CODE, {**model_identity(load_run(run_dir)), "windows": 7, "data": "abc"}
    ).save(run_dir / FILE_NAME)
    return run_dir


def fields(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Return encoded values ``[T', H, W]``, not rounded (0 no echo, NaN missing), and the attributes of a forecast."""
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        dbz = dataset.reflectivity.values.astype(np.float64)
        return np.where(dbz <= -31.5, 0.0, (dbz + 32.0) / 0.5), dict(dataset.attrs)


def test_values_and_attributes(run: Path, frames: Path, tmp_path: Path):
    made = {
        name: fields(predict(run, frames, "--out", tmp_path / name, "--write", "nc", "--postprocess", name)[0])
        for name in ("none", "quantile-mapping", "probability-matching")
    }
    raw, attributes = made["none"]
    missing = np.isnan(raw)
    assert missing.any() and (raw > 1).any() and attributes["simcast_postprocessing"] == "none"
    # 1. Quantile mapping of the blended domain
    mapped, attributes = made["quantile-mapping"]
    assert attributes["simcast_postprocessing"] == "quantile-mapping"
    assert attributes["simcast_postprocessing_reference"] == "7 validation windows of the data abc"
    forecast = torch.from_numpy(np.nan_to_num(raw).astype(np.float32) / np.float32(255))[None]
    expected = QuantileMapping.load(run / FILE_NAME).apply(forecast)[0].numpy() * 255
    echo = raw > 1  # files store values without echo as that of the encoded value 1
    np.testing.assert_allclose(mapped[echo], expected[echo], atol=0.02)
    assert (np.isnan(mapped) == missing).all() and mapped[~missing & ~echo].max() < 3
    assert np.nanmax(np.abs(mapped - raw)) > 5
    # 2. Probability matching with the last frame: every lead time has its values
    matched, attributes = made["probability-matching"]
    assert attributes["simcast_postprocessing_reference"] == "last input frame"
    last = np.where(np.isneginf(storm(2)), 0.0, ((storm(2) + 32) / 0.5).round())
    known = ~missing[0]
    for lead in range(4):
        echoes = np.sort(matched[lead][known])[::-1]
        count = min(int((raw[lead][known] >= 1).sum()), int((last[known] > 0).sum()))
        np.testing.assert_allclose(echoes[:count], np.sort(last[known])[::-1][:count], atol=0.02)


def test_identity_of_a_watched_folder_changes(run: Path):
    def identity(name: str) -> str:
        return load_model(run, PredictorSettings(postprocess=name)).identity

    assert len({identity(name) for name in ("none", "quantile-mapping", "probability-matching")}) == 3


def test_rejects_unknown_name_and_absent_file(model: Path, frames: Path):
    with pytest.raises(ConfigError, match="postprocess 'cdf' is unknown; choose none"):
        predict(model, frames, "--postprocess", "cdf")
    with pytest.raises(ConfigError, match=r"quantile_mapping\.npz does not exist; run `simcast calibrate"):
        predict(model, frames, "--postprocess", "quantile-mapping")


def test_members_of_an_ensemble_are_matched_before_mean_and_probabilities(runs: Path):
    """On one tile: each member has the values of the last frame where it has echo; the mean is that of the members."""
    ensemble = load_ensemble(runs / "diffusion")
    code = encoding_of_run(ensemble.config.data, any_spacing=True)
    codes = np.random.default_rng(3).integers(6, 255, (3, 16, 16), dtype=np.uint8)
    grid = RadarGrid(LAEA, 0.0, 0.0, 8000.0, 8000.0, 16, 16)
    frames = {moment(k): EncodedFrame(codes[k], grid, "kg/m^2", moment(k), Path(f"{k}")) for k in range(3)}
    matching = ProbabilityMatching(no_echo_limit(code.spec.encoding))
    forecast = Predictor(ensemble, code, FrameRequest(3, 5.0), (16, 16), 4, postprocessing=matching).predict(
        frames, moment(2)
    )
    members = ensemble.forecast(torch.from_numpy(codes)[None], frames_out=4).clamp(max=254 / 255)
    expected = code.linear_of_forecast(matching.apply(members, torch.from_numpy(codes)[None])[0].numpy())
    assert forecast.values is not None and forecast.mean is not None and forecast.probability is not None
    # Conversion to linear units and back may exchange the ranks of two pixels that are equal but for rounding.
    different = ~np.isclose(forecast.values, expected, rtol=1e-4, atol=1e-4)
    assert different.mean() < 0.01
    np.testing.assert_allclose(forecast.mean, forecast.values.mean(axis=0), rtol=1e-5)
    for level, probability in zip(forecast.thresholds, forecast.probability, strict=True):
        np.testing.assert_allclose(probability, (forecast.values >= np.float32(level)).mean(axis=0), atol=1e-6)
