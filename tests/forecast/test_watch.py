"""A watched folder: late, missing and damaged frames, a kill, a restart, pruning; each complete input is served."""

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
from simcast_hpc.forecast.watch_folder import HEALTH, FolderWatcher, WatchSettings
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import encoding_of_run
from simcast_hpc.train.stop_errors import PausedError
from tests.radar.radar_files import moment, predict, small_model, storm, write_cf

FRAMES, FRAMES_IN = 30, 3
CORRUPT, LATE, MISSING = 9, 14, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Path]:
    """Thirty frames of a storm, in dBZ, as small netCDF files."""
    folder = tmp_path_factory.mktemp("frames")
    return [
        write_cf(
            folder / f"frame{number:02d}.nc", np.nan_to_num(storm(number)[None], neginf=-32.0).astype(np.float32),
            [moment(number)], name="equivalent_reflectivity_factor", units="dBZ", undetect=-32.0,
        )
        for number in range(FRAMES)
    ]  # fmt: skip


def arrive(path: Path, folder: Path) -> None:
    """Put a frame where it is watched for, whole at once, as a transfer that renames does."""
    partial = folder / f".{path.name}"
    shutil.copyfile(path, partial)
    partial.rename(folder / path.name)


def issues_of(out: Path) -> set[datetime]:
    return set(Publisher(out, ("nc",)).issues())


def complete(numbers: set[int]) -> set[datetime]:
    """Return the issue times whose frames are all there."""
    whole = (k for k in range(FRAMES_IN - 1, FRAMES) if {k - back for back in range(FRAMES_IN)} <= numbers)
    return {moment(k) for k in whole}


def health(out: Path) -> dict:
    return json.loads((out / HEALTH).read_text(encoding="utf-8"))


def every_file_is_whole(out: Path) -> bool:
    for path in out.glob("forecast_*.nc"):
        with h5py.File(path, "r") as file:
            assert file["reflectivity"][...].shape == (4, 40, 52), path
    return True


def start(model: Path, folder: Path, out: Path) -> subprocess.Popen:
    words = ["predict", str(model), "--watch", str(folder), "--out", str(out), "--write", "nc", "--every", "0.2"]
    return subprocess.Popen(
        [sys.executable, "-m", "simcast_hpc", *words, "--late", "150"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, watcher: subprocess.Popen, *, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert watcher.poll() is None, watcher.stderr.read() if watcher.stderr else ""
        assert time.monotonic() < until, "the watcher did not come so far"
        time.sleep(0.05)


def test_thirty_frames_one_damaged_one_late_one_missing_and_a_kill(model, frames, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    watcher = start(model, folder, out)
    try:
        for number in range(12):
            arrive(frames[number], folder)
            if number == CORRUPT:
                (folder / frames[number].name).write_bytes(frames[number].read_bytes()[:3000])
        wait_for(lambda: len(issues_of(out)) >= 4, watcher)
    finally:
        watcher.send_signal(signal.SIGKILL)  # in the midst of the others
        watcher.wait()
    assert every_file_is_whole(out)

    early = [k for k in range(12, FRAMES) if k not in (LATE, MISSING)]
    before = {path.name: path.stat().st_ino for path in out.glob("forecast_*.nc")}
    watcher = start(model, folder, out)
    try:
        for number in early:
            arrive(frames[number], folder)
        on_time = set(range(FRAMES)) - {CORRUPT, LATE, MISSING}
        wait_for(lambda: issues_of(out) == complete(on_time), watcher)
        arrive(frames[LATE], folder)
        wait_for(lambda: issues_of(out) == complete(on_time | {LATE}), watcher)
        wait_for(lambda: health(out)["last_frame"] == "2024-11-26T03:25:00Z", watcher)
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(60) == 0
    finally:
        watcher.kill()
    assert every_file_is_whole(out) and not list(out.glob("*.partial*"))
    assert {name: (out / name).stat().st_ino for name in before} == before  # what stood was not made again
    said = health(out)
    assert said["state"] == "stopped" and said["why"] == "signal SIGTERM" and said["pid"] == watcher.pid
    assert said["last_forecast"]["issue"] == "2024-11-26T03:25:00Z" and said["lag_seconds"] >= 0
    assert [one["file"] for one in said["problems"] if "file" in one] == [frames[CORRUPT].name]
    gaps = {one["issue"]: one["problem"] for one in said["problems"] if "issue" in one}
    assert (
        "1 of 3 frames every 5 minutes are missing: 02:40" in gaps["2024-11-26T02:45:00Z"]
        and "1 of 3 frames every 5 minutes are missing: 01:45" in gaps["2024-11-26T01:50:00Z"]
    )


def watching(model: Path, folder: Path, out: Path, *, bridge: int = 0, **settings) -> FolderWatcher:
    trained = load_trained(model)
    code = encoding_of_run(trained.config.data)
    predictor = Predictor(trained, code, FrameRequest(FRAMES_IN, code.step_minutes, bridge), (32, 32), 8)
    return FolderWatcher(predictor, Publisher(out, ("nc",)), folder, WatchSettings(every_seconds=0.0, **settings))


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


def test_nothing_is_made_twice_and_a_changed_frame_redoes_what_it_was_in(model, frames, folders):
    folder, out = folders
    for path in frames[:5]:
        arrive(path, folder)
    watch = watching(model, folder, out)
    assert (watch.scan(), watch.scan()) == (3, 0)
    assert watching(model, folder, out).scan() == 0  # after a restart
    arrive(frames[1], folder)  # again, so with another time of change
    assert watch.scan() == 2
    assert watching(model, folder, out, bridge=1).scan() == 3  # another way to forecast


def test_a_late_frame_redoes_the_forecasts_that_were_bridged(model, frames, folders):
    folder, out = folders
    for path in (*frames[:3], *frames[4:6]):
        arrive(path, folder)
    watch = watching(model, folder, out, bridge=1)
    assert watch.scan() == 2  # of 01:10, and of 01:20 over the gap; the first frame of 01:25 is missing
    arrive(frames[3], folder)
    assert watch.scan() == 3
    with h5py.File(out / "forecast_20241126T0120Z.nc", "r") as file:
        assert file.attrs["simcast_bridged"] == "none"


def test_a_frame_that_is_too_late_gives_no_forecast(model, frames, folders):
    folder, out = folders
    for path in frames[10:13]:
        arrive(path, folder)
    watch = watching(model, folder, out, late_minutes=20)
    assert watch.scan() == 1
    for path in frames[:10]:
        arrive(path, folder)
    assert watch.scan() == 4  # 01:40 to 01:55 lie within twenty minutes before 02:00
    assert min(issues_of(out)) == moment(8)


def test_old_forecasts_are_pruned_and_not_made_again(model, frames, folders):
    folder, out = folders
    for path in frames[:6]:
        arrive(path, folder)
    watch = watching(model, folder, out, keep=2)
    assert watch.scan() == 2 and issues_of(out) == {moment(4), moment(5)}
    arrive(frames[6], folder)
    assert watch.scan() == 1 and issues_of(out) == {moment(5), moment(6)}
    assert watch.scan() == 0


def test_a_damaged_frame_is_named_and_counts_once_it_is_replaced(model, frames, folders):
    folder, out = folders
    for path in frames[:4]:
        arrive(path, folder)
    (folder / frames[2].name).write_bytes(frames[2].read_bytes()[:4000])
    watch = watching(model, folder, out)
    assert watch.scan() == 0
    assert [one["file"] for one in health(out)["problems"] if "file" in one] == [frames[2].name]
    arrive(frames[2], folder)
    assert watch.scan() == 2 and health(out)["problems"] == []


def test_a_full_disk_is_said_and_tried_again(model, frames, folders, monkeypatch):
    folder, out = folders
    for path in frames[:3]:
        arrive(path, folder)
    watch, publish = watching(model, folder, out), Publisher.publish

    def full(_self: Publisher, _forecast: Forecast):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Publisher, "publish", full)
    assert watch.scan() == 0 and "No space left" in health(out)["problems"][0]["problem"]
    monkeypatch.setattr(Publisher, "publish", publish)
    assert watch.scan() == 1 and health(out)["problems"] == []


def test_a_frame_from_the_future_is_not_the_newest(model, frames, folders):
    folder, out = folders
    for path in frames[:3]:
        arrive(path, folder)
    values = np.zeros((1, 40, 52), np.float32)
    write_cf(
        folder / "wrong_clock.nc", values, [moment(20_000_000)], name="equivalent_reflectivity_factor", units="dBZ"
    )
    assert watching(model, folder, out).scan() == 1
    assert "in the future" in health(out)["problems"][0]["problem"]


def test_what_a_killed_watcher_left_is_removed(model, folders):
    folder, out = folders
    out.mkdir()
    (out / ".forecast_20241126T0120Z.nc.node7-4711-0.partial").write_bytes(b"half")
    watching(model, folder, out)
    assert list(out.iterdir()) == []


def test_the_batch_systems_notice_asks_to_be_started_again(model, frames, folders):
    folder, out = folders
    for path in frames[:3]:
        arrive(path, folder)
    notice = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2))

    def then_notify(_folder: Path) -> None:
        notice.start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simcast_hpc.forecast.watch_folder.sweep", then_notify)  # called once, as the watch begins
        with pytest.raises(PausedError, match="SIGUSR2; run the same command to resume"):
            predict(model, "--watch", folder, "--out", out, "--write", "nc", "--every", "0.1")
    assert health(out)["state"] == "stopped"


def test_the_folder_of_forecasts_is_not_watched(model, tmp_path):
    with pytest.raises(ConfigError, match="equals --out"):
        predict(model, "--watch", tmp_path, "--out", tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        predict(model, "--watch", tmp_path / "none", "--out", tmp_path)


def test_unknown_kinds_and_pictures_alone_are_rejected(tmp_path):
    for kinds in (("png",), ("nc", "jpg"), ()):
        with pytest.raises(ConfigError, match="nc or zarr"):
            Publisher(tmp_path, kinds)
