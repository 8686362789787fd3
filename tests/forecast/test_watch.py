"""A watched folder: late, missing and damaged frames, a kill, a restart, pruning; every complete input is forecast."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.predictor import Forecast, Predictor
from simcast_hpc.forecast.watch_folder import FolderWatcher, WatchSettings
from simcast_hpc.forecast.watch_health import HEALTH
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import encoding_of_run
from simcast_hpc.train.stop_errors import PausedError
from tests.radar.radar_files import moment, predict, small_model, storm, write_cf

FRAMES, FRAMES_IN = 30, 3
DAMAGED, LATE, MISSING = 9, 14, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Path]:
    """Thirty frames of a storm, in dBZ, as small netCDF files."""
    folder = tmp_path_factory.mktemp("frames")
    return [write_frame(folder / f"frame{number:02d}.nc", storm(number), number) for number in range(FRAMES)]


def write_frame(path: Path, field: np.ndarray, number: int) -> Path:
    """Write a field in dBZ, minus infinity where there is no echo, as the frame of a number."""
    stored = np.nan_to_num(field[None], nan=np.nan, neginf=-32.0).astype(np.float32)
    return write_cf(path, stored, [moment(number)], name="equivalent_reflectivity_factor", units="dBZ", undetect=-32.0)


def deliver(path: Path, folder: Path) -> None:
    """Copy a frame into the watched folder by a rename, as transfer programs do."""
    partial = folder / f".{path.name}"
    shutil.copyfile(path, partial)
    partial.rename(folder / path.name)


def issues_of(out: Path) -> set[datetime]:
    return set(Publisher(out, ("nc",)).issues())


def complete_issues(numbers: set[int]) -> set[datetime]:
    """Return the issue times of which all input frames are among ``numbers``."""
    complete = (k for k in range(FRAMES_IN - 1, FRAMES) if {k - back for back in range(FRAMES_IN)} <= numbers)
    return {moment(k) for k in complete}


def health(out: Path) -> dict:
    return json.loads((out / HEALTH).read_text(encoding="utf-8"))


def all_files_are_complete(out: Path) -> bool:
    for path in out.glob("forecast_*.nc"):
        with h5py.File(path, "r") as file:
            assert file["reflectivity"][...].shape == (4, 40, 52), path
    return True


def start(model: Path, folder: Path, out: Path) -> subprocess.Popen:
    arguments = ["predict", str(model), "--watch", str(folder), "--out", str(out), "--write", "nc", "--every", "0.2"]
    return subprocess.Popen(
        [sys.executable, "-m", "simcast_hpc", *arguments, "--late", "150"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, watcher: subprocess.Popen, *, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert watcher.poll() is None, watcher.stderr.read() if watcher.stderr else ""
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.05)


def test_serves_all_complete_inputs_despite_damage_delay_loss_and_kill(model, frames, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    watcher = start(model, folder, out)
    try:
        for number in range(12):
            deliver(frames[number], folder)
            if number == DAMAGED:
                (folder / frames[number].name).write_bytes(frames[number].read_bytes()[:3000])
        wait_for(lambda: len(issues_of(out)) >= 4, watcher)
    finally:
        watcher.send_signal(signal.SIGKILL)  # while it processes the other frames
        watcher.wait()
    assert all_files_are_complete(out)

    early = [k for k in range(12, FRAMES) if k not in (LATE, MISSING)]
    before = {path.name: path.stat().st_ino for path in out.glob("forecast_*.nc")}
    watcher = start(model, folder, out)
    try:
        for number in early:
            deliver(frames[number], folder)
        on_time = set(range(FRAMES)) - {DAMAGED, LATE, MISSING}
        wait_for(lambda: issues_of(out) == complete_issues(on_time), watcher)
        deliver(frames[LATE], folder)
        wait_for(lambda: issues_of(out) == complete_issues(on_time | {LATE}), watcher)
        wait_for(lambda: health(out)["last_frame"] == "2024-11-26T03:25:00Z", watcher)
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(60) == 0
    finally:
        watcher.kill()
    assert all_files_are_complete(out) and not list(out.glob("*.partial*"))
    assert {name: (out / name).stat().st_ino for name in before} == before  # existing forecasts were kept
    status = health(out)
    assert status["state"] == "stopped" and status["why"] == "signal SIGTERM" and status["pid"] == watcher.pid
    assert status["last_forecast"]["issue"] == "2024-11-26T03:25:00Z" and status["lag_seconds"] >= 0
    assert [item["file"] for item in status["problems"] if "file" in item] == [frames[DAMAGED].name]
    gaps = {item["issue"]: item["problem"] for item in status["problems"] if "issue" in item}
    assert (
        "1 of 3 frames every 5 minutes are missing: 02:40" in gaps["2024-11-26T02:45:00Z"]
        and "1 of 3 frames every 5 minutes are missing: 01:45" in gaps["2024-11-26T01:50:00Z"]
    )


def make_watcher(model: Path, folder: Path, out: Path, *, bridge: int = 0, **settings) -> FolderWatcher:
    trained = load_trained(model)
    code = encoding_of_run(trained.config.data)
    predictor = Predictor(trained, code, FrameRequest(FRAMES_IN, code.step_minutes, bridge), (32, 32), 8)
    return FolderWatcher(predictor, Publisher(out, ("nc",)), folder, WatchSettings(every_seconds=0.0, **settings))


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


def test_recomputes_only_forecasts_of_changed_frames(model, frames, folders):
    folder, out = folders
    for path in frames[:5]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out)
    assert (watcher.scan(), watcher.scan()) == (3, 0)
    assert make_watcher(model, folder, out).scan() == 0  # after a restart
    deliver(frames[1], folder)  # with the same content
    assert watcher.scan() == 0
    write_frame(folder / frames[1].name, storm(20), 1)
    assert watcher.scan() == 2
    assert make_watcher(model, folder, out, bridge=1).scan() == 3  # with other settings


def test_late_frame_replaces_interpolated_forecasts(model, frames, folders):
    folder, out = folders
    for path in (*frames[:3], *frames[4:6]):
        deliver(path, folder)
    watcher = make_watcher(model, folder, out, bridge=1)
    assert watcher.scan() == 2  # of 01:10, and of 01:20 over the gap; the first frame of 01:25 is missing
    deliver(frames[3], folder)
    assert watcher.scan() == 3
    with h5py.File(out / "forecast_20241126T0120Z.nc", "r") as file:
        assert file.attrs["simcast_bridged"] == "none"


def test_no_forecast_from_a_frame_that_is_too_late(model, frames, folders):
    folder, out = folders
    for path in frames[10:13]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out, late_minutes=20)
    assert watcher.scan() == 1
    for path in frames[:10]:
        deliver(path, folder)
    assert watcher.scan() == 4  # 01:40 to 01:55 are within twenty minutes before 02:00
    assert min(issues_of(out)) == moment(8)


def test_pruned_forecasts_are_not_computed_again(model, frames, folders):
    folder, out = folders
    for path in frames[:6]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out, keep=2)
    assert watcher.scan() == 2 and issues_of(out) == {moment(4), moment(5)}
    deliver(frames[6], folder)
    assert watcher.scan() == 1 and issues_of(out) == {moment(5), moment(6)}
    assert watcher.scan() == 0


def test_damaged_frame_is_reported_until_it_is_replaced(model, frames, folders):
    folder, out = folders
    for path in frames[:4]:
        deliver(path, folder)
    (folder / frames[2].name).write_bytes(frames[2].read_bytes()[:4000])
    watcher = make_watcher(model, folder, out)
    assert watcher.scan() == 0
    assert [item["file"] for item in health(out)["problems"] if "file" in item] == [frames[2].name]
    deliver(frames[2], folder)
    assert watcher.scan() == 2 and health(out)["problems"] == []


def test_full_disk_is_reported_and_retried(model, frames, folders, monkeypatch):
    folder, out = folders
    for path in frames[:3]:
        deliver(path, folder)
    watcher, publish = make_watcher(model, folder, out), Publisher.publish

    def full(_self: Publisher, _forecast: Forecast):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Publisher, "publish", full)
    assert watcher.scan() == 0 and "No space left" in health(out)["problems"][0]["problem"]
    monkeypatch.setattr(Publisher, "publish", publish)
    assert watcher.scan() == 1 and health(out)["problems"] == []


def test_ignores_a_frame_from_the_future(model, frames, folders):
    folder, out = folders
    for path in frames[:3]:
        deliver(path, folder)
    values = np.zeros((1, 40, 52), np.float32)
    write_cf(
        folder / "wrong_clock.nc", values, [moment(20_000_000)], name="equivalent_reflectivity_factor", units="dBZ"
    )
    assert make_watcher(model, folder, out).scan() == 1
    assert "in the future" in health(out)["problems"][0]["problem"]


def test_removes_temporary_files_of_a_killed_watcher(model, folders):
    folder, out = folders
    out.mkdir()
    (out / ".forecast_20241126T0120Z.nc.node7-4711-0.partial").write_bytes(b"half")
    make_watcher(model, folder, out)
    assert list(out.iterdir()) == []


def test_signal_of_the_batch_system_pauses_the_watcher(model, frames, folders):
    folder, out = folders
    for path in frames[:3]:
        deliver(path, folder)
    notice = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2))

    def send_signal(_folder: Path) -> None:
        notice.start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simcast_hpc.forecast.watch_folder.sweep", send_signal)  # called once, at the start
        with pytest.raises(PausedError, match="SIGUSR2; run the same command to resume"):
            predict(model, "--watch", folder, "--out", out, "--write", "nc", "--every", "0.1")
    assert health(out)["state"] == "stopped"


def test_rejects_invalid_watched_folder(model, tmp_path):
    with pytest.raises(ConfigError, match="equals --out"):
        predict(model, "--watch", tmp_path, "--out", tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        predict(model, "--watch", tmp_path / "none", "--out", tmp_path)


def test_rejects_invalid_output_formats(tmp_path):
    for kinds in (("png",), ("nc", "jpg"), ()):
        with pytest.raises(ConfigError, match="nc or zarr"):
            Publisher(tmp_path, kinds)
