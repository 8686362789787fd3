"""`simcast predict --fallback`: a forecast in spite of a failed model or missing frames, and the product states it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner, Result

from simcast_hpc.cli import app
from simcast_hpc.forecast.fallback_predictor import FallbackPredictor
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.load_predictor import FramePlaces, PredictorSettings, load_predictor
from simcast_hpc.forecast.watch_folder import FolderWatcher, WatchSettings
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.storage.run_directory import RunDirectory
from tests.forecast.watch_runs import deliver, health, issues_of
from tests.radar.radar_files import moment


@pytest.fixture
def radar(storm_frames, tmp_path) -> Path:
    folder = tmp_path / "radar"
    folder.mkdir()
    for path in storm_frames[:3]:
        shutil.copy(path, folder)
    return folder


def forecast(run: Path, radar: Path, *options: object) -> Result:
    arguments = ["predict", run, radar, "--out", radar.parent / "out", "--write", "nc", *options]
    return CliRunner().invoke(app, [str(one) for one in arguments])


def product(radar: Path) -> xr.Dataset:
    (path,) = (radar.parent / "out").glob("*.nc")
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        return dataset.load()


def damaged(model: Path, tmp_path: Path, what: str) -> Path:
    run = tmp_path / "run"
    if what == "absent":
        return run
    shutil.copytree(model, run)
    directory = RunDirectory(run)
    if what == "truncated":
        directory.weights.write_bytes(directory.weights.read_bytes()[:2000])
    elif what == "no configuration":
        directory.config.write_text("][")
    elif what == "deleted":
        directory.weights.unlink()
    return run


@pytest.mark.parametrize("what", ["truncated", "deleted", "no configuration", "absent"])
def test_a_damaged_run_is_replaced_and_the_product_says_so(model, radar, tmp_path, what):
    run = damaged(model, tmp_path, what)
    assert forecast(run, radar).exit_code != 0 and not list((tmp_path / "out").glob("*.nc"))
    result = forecast(run, radar, "--fallback", "extrapolation")
    assert result.exit_code == 0, result.output
    assert "this forecast is a fallback, not that of the model: the model cannot be loaded" in result.stderr
    attributes = product(radar).attrs
    assert attributes["simcast_fallback"] == attributes["simcast_model"] == "extrapolation"
    assert attributes["simcast_fallback_reason"].startswith("the model cannot be loaded: ")
    assert attributes["simcast_fallback_for"] == str(run) and "extrapolation" in attributes["source"]
    # Encoding and lead times of the model as long as its configuration can be read, otherwise those of the frames.
    is_readable = what in ("truncated", "deleted")
    assert product(radar)["reflectivity"].shape[0] == (4 if is_readable else 24)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (MemoryError(), "MemoryError: "),
        (None, "RuntimeError: the network of .* returned non-finite values"),
    ],
)
def test_a_network_that_fails_is_replaced(model, radar, monkeypatch, error, reason):
    own = TrainedModel.forecast

    def fail(self, *arguments, **settings):
        if error is not None:
            raise error
        return own(self, *arguments, **settings) * np.nan

    monkeypatch.setattr(TrainedModel, "forecast", fail)
    with pytest.raises(type(error or RuntimeError())):
        CliRunner().invoke(
            app, ["predict", str(model), str(radar), "--out", str(radar.parent / "out")], catch_exceptions=False
        )
    assert forecast(model, radar, "--fallback", "persistence").exit_code == 0
    with product(radar) as dataset:
        assert dataset.attrs["simcast_fallback"] == "persistence"
        assert re.search("the model failed: " + reason, dataset.attrs["simcast_fallback_reason"])
        assert dataset["reflectivity"].shape[0] == 4


def test_too_few_frames_for_the_model_suffice_for_extrapolation(model, radar):
    (radar / "frame00.nc").unlink()
    assert forecast(model, radar).exit_code != 0
    assert forecast(model, radar, "--fallback", "extrapolation").exit_code == 0
    reason = product(radar).attrs["simcast_fallback_reason"]
    assert "1 of 3 frames every 5 minutes are missing: 01:00" in reason
    (radar / "frame01.nc").unlink()
    result = forecast(model, radar, "--fallback", "extrapolation")  # the error is that of the model
    problem = str(result.exception)
    assert result.exit_code != 0 and "2 of 3 frames" in problem
    assert (
        "; --fallback extrapolation cannot forecast either: no forecast for" in problem and "1 of 2 frames" in problem
    )


def test_reason_of_a_gap_is_that_of_the_model(model, storm_frames, folders):
    """Only 01:05 is missing, although the fallback does not use 01:00 either."""
    folder, out = folders
    for number in (0, 2, 3):
        deliver(storm_frames[number], folder)
    predictor = load_predictor(model, PredictorSettings(), FramePlaces([folder]), fallback="persistence")
    settings = WatchSettings(every_seconds=0.0, late_minutes=5.0)
    assert FolderWatcher(predictor, Publisher(out, ("nc",)), folder, settings).scan() == 2
    reasons = {}
    for path in out.glob("*.nc"):
        with xr.open_dataset(path) as dataset:
            reasons[path.stem[-5:-1]] = dataset.attrs["simcast_fallback_reason"]
    assert all("1 of 3 frames every 5 minutes are missing: 01:05; " in reason for reason in reasons.values())
    assert reasons["0110"].endswith("--bridge 1 interpolates them")
    assert health(out)["last_fallback"]["reason"] in reasons.values()


def test_a_sound_model_is_used_and_no_option_is_hidden(model, radar):
    assert forecast(model, radar, "--fallback", "extrapolation").exit_code == 0
    assert product(radar).attrs["simcast_fallback"] == "none"
    assert product(radar).attrs["simcast_model"] == "direct tiny"
    for wrong, message in ((("--set", "members=3"), "--set overrides"), (("--tile", 1, 1), "--tile 1 1")):
        result = forecast(model, radar, "--fallback", "extrapolation", *wrong)
        assert result.exit_code != 0 and message in str(result.exception)


def test_watcher_counts_fallbacks_and_replaces_them_when_the_frame_arrives(model, storm_frames, folders, monkeypatch):
    folder, out = folders
    predictor = load_predictor(model, PredictorSettings(), FramePlaces([folder]), fallback="extrapolation")
    watcher = FolderWatcher(predictor, Publisher(out, ("nc",)), folder, WatchSettings(every_seconds=0.0))
    for number in (0, 2, 3):
        deliver(storm_frames[number], folder)
    assert watcher.scan() == 1 and issues_of(out) == {moment(3)}  # from 01:10 and 01:15
    status = health(out)
    assert status["fallbacks"] == 1 and status["last_forecast"]["fallback"] is True
    assert "1 of 3 frames" in status["last_fallback"]["reason"]
    deliver(storm_frames[1], folder)
    assert watcher.scan() == 3  # 01:05 by extrapolation, 01:10 and 01:15 by the model
    assert health(out)["fallbacks"] == 2 and health(out)["last_forecast"]["fallback"] is False
    monkeypatch.setattr(TrainedModel, "forecast", lambda *_, **__: 1 / 0)
    deliver(storm_frames[4], folder)
    assert (watcher.scan(), watcher.scan()) == (1, 0)  # a fallback is complete: it is not made again
    assert health(out)["last_fallback"]["reason"] == "the model failed: ZeroDivisionError: division by zero"
    restarted = FolderWatcher(predictor, Publisher(out, ("nc",)), folder, WatchSettings(every_seconds=0.0))
    assert restarted.scan() == 0


def test_a_model_that_could_not_be_loaded_is_loaded_later(model, radar):
    settings, now = PredictorSettings(), [0.0]
    sound = load_predictor(model, settings, FramePlaces([radar]), fallback="extrapolation")
    assert isinstance(sound, FallbackPredictor)
    attempts = []

    def load():
        attempts.append(now[0])
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("no memory")
        return sound._model

    predictor = FallbackPredictor(str(model), load, sound._baseline, clock=lambda: now[0])
    times = [moment(number) for number in range(3)]
    assert len(predictor.inputs(times, times[-1]).frames) == 3 and predictor.about["weights"] == "none"
    now[0] = 300.0
    predictor.inputs(times, times[-1])
    assert attempts == [0.0]
    before, now[0] = predictor.identity, 601.0
    predictor.inputs(times, times[-1])
    assert attempts == [0.0, 601.0] and predictor.identity != before
    assert predictor.about == sound._model.about
