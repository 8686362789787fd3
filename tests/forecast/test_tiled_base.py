"""Models with a base forecast on domains of several tiles: the base is that of the domain, without seams."""

from pathlib import Path

import numpy as np
import pytest
import torch

from simcast_hpc.config import DataError
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.predictor import Predictor
from simcast_hpc.inference.noise_ensemble import load_noise_ensemble
from simcast_hpc.inference.trained_ensemble import load_ensemble
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.models.advection import extrapolate
from simcast_hpc.radar import EncodedFrame, RadarGrid, encoding_of_run
from tests.archives import tiny_config, write_trained
from tests.generative_runs import make_runs
from tests.radar.radar_files import LAEA, moment

DOMAIN, TILE = (28, 44), 16


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """Cells that move 1.5 pixels per frame to the east through a domain of several tiles; some pixels missing."""
    row, column = np.mgrid[: DOMAIN[0], : DOMAIN[1]]
    fields = [
        sum(200 * np.exp(-((row - y) ** 2 + (column - x - 1.5 * t) ** 2) / 20) for y, x in ((8, 9), (19, 24), (12, 33)))
        for t in range(3)
    ]
    codes = np.stack(fields).clip(0, 254).astype(np.uint8)
    codes[:, 20:23, 5:9] = MISSING_CODE
    return codes


def _run(folder: Path, **sections) -> Path:
    model = tiny_config(folder).model.model_dump(mode="json") | {"base": "extrapolation"} | sections.pop("model", {})
    torch.manual_seed(3)
    return write_trained(tiny_config(folder, model=model, **sections))


def _values(model, codes: np.ndarray) -> np.ndarray:
    """Return the tiled forecast ``[M, T', H, W]`` of encoded frames; the unit is linear."""
    code = encoding_of_run(model.config.data, any_spacing=True)
    grid = RadarGrid(LAEA, 0.0, 0.0, 8000.0, 8000.0, *codes.shape[1:])
    frames = {moment(k): EncodedFrame(codes[k], grid, "kg/m^2", moment(k), Path(f"{k}")) for k in range(3)}
    values = Predictor(model, code, FrameRequest(3, 5.0), (TILE, TILE), 4).predict(frames, moment(2)).values
    assert values is not None
    return values


def _extrapolation_of_domain(model, codes: np.ndarray) -> np.ndarray:
    """Return the extrapolation of all frames, with windows of the motion as in a tile, NaN where missing."""
    known = torch.from_numpy(codes)[None]
    units = torch.where(known == MISSING_CODE, 0.0, known.float() / 255)
    forecast = extrapolate(units, 4, known != MISSING_CODE, side=TILE)[0].numpy()
    linear = encoding_of_run(model.config.data, any_spacing=True).linear_of_forecast(forecast)
    linear[:, (codes == MISSING_CODE).any(axis=0)] = np.nan
    return linear


def test_untrained_model_forecasts_the_extrapolation_of_the_domain(tmp_path, codes):
    model = load_trained(_run(tmp_path / "run"))
    values, expected = _values(model, codes)[0], _extrapolation_of_domain(model, codes)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    tile = codes[:, :TILE, 22 : 22 + TILE]
    assert np.nanmax(np.abs(_extrapolation_of_domain(model, tile) - expected[:, :TILE, 22 : 22 + TILE])) > 1, (
        "echoes that enter a tile from its neighbor are not in the extrapolation of the tile"
    )


def test_frames_without_a_common_pixel_are_rejected(tmp_path, codes):
    """A last frame of only missing pixels must not become a forecast of no rain."""
    model = load_trained(_run(tmp_path / "run"))
    for frame, name in ((-1, r"3 of 3 \(the last\)"), (0, "1 of 3")):
        lost = codes.copy()
        lost[frame] = MISSING_CODE
        with pytest.raises(DataError, match=rf"no forecast for .* UTC: no pixel .*100 % of frame {name}"):
            _values(model, lost)
    halves = codes.copy()
    halves[0, :TILE], halves[1, TILE:] = MISSING_CODE, MISSING_CODE
    with pytest.raises(DataError, match=r"missing in sample 0: [\d.]+ % of frame 1 of 3, [\d.]+ % of frame 2 of 3"):
        _values(model, halves)


def test_first_pass_of_a_rollout_has_the_base_of_the_domain(tmp_path, codes):
    model = load_trained(_run(tmp_path / "run", stage="teacher"))
    values, expected = _values(model, codes)[0], _extrapolation_of_domain(model, codes)
    np.testing.assert_allclose(values[:2], expected[:2], rtol=1e-4, atol=1e-5)
    assert np.isfinite(values[2:][~np.isnan(expected[2:])]).all()
    assert np.nanmean(np.abs(values[2:] - expected[2:])) < 0.1 * np.nanmean(expected[2:])


def test_members_of_a_network_with_noise_have_the_base_of_the_domain(tmp_path, codes):
    loss = {"mse_weight": 0.0, "crps_weight": 1.0, "thresholds": [], "weights": [1.0]}
    ensemble = load_noise_ensemble(_run(tmp_path / "run", model={"noise_channels": 1}, loss=loss))
    for member in _values(ensemble, codes)[:2]:
        np.testing.assert_allclose(member, _extrapolation_of_domain(ensemble, codes), rtol=1e-4, atol=1e-5)


def test_student_of_a_diffusion_has_the_base_of_the_domain(tmp_path, root, codes, monkeypatch):
    """The student of the fixture has no base; it is replaced by one that records the base forecasts it is given."""
    ensemble = load_ensemble(make_runs(tmp_path / "runs", root) / "diffusion")
    student, given = load_trained(_run(tmp_path / "student")), []
    monkeypatch.setattr(
        type(ensemble), "base_forecast", lambda _, codes, *, side: student.base_forecast(codes, side=side)
    )
    monkeypatch.setattr(
        type(student), "forecast",
        lambda _, cut, *, frames_out, base: given.append(base) or torch.zeros(len(cut), frames_out, TILE, TILE),
    )  # fmt: skip
    _values(ensemble, codes)
    expected = student.base_forecast(torch.from_numpy(codes)[None], side=TILE)
    assert expected is not None
    assert torch.equal(given[0][0], expected[0, ..., :TILE, :TILE])
    assert torch.equal(given[-1][-1], expected[0, ..., -TILE:, -TILE:])
