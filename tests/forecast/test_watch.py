"""A watched folder: late, missing and damaged frames, a kill, a restart, pruning; every complete input is forecast."""

import os
import signal
import socket
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
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.monitoring.stop_request import StopRequest
from simcast_hpc.storage.directory_lock import LostLockError, hold_directory
from simcast_hpc.train.stop_errors import PausedError
from tests.forecast.watch_runs import FRAMES_IN, deliver, health, issues_of, make_watcher, write_frame
from tests.radar.radar_files import moment, predict, storm, write_cf
from tests.storage.test_hdf5_target import limited

FRAMES = 30
DAMAGED, LATE, MISSING = 9, 14, 20


def complete_issues(numbers: set[int]) -> set[datetime]:
    """Return the issue times of which all input frames are among ``numbers``."""
    complete = (k for k in range(FRAMES_IN - 1, FRAMES) if {k - back for back in range(FRAMES_IN)} <= numbers)
    return {moment(k) for k in complete}


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


def test_serves_all_complete_inputs_despite_damage_delay_loss_and_kill(model, storm_frames, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    watcher = start(model, folder, out)
    try:
        for number in range(12):
            deliver(storm_frames[number], folder)
            if number == DAMAGED:
                (folder / storm_frames[number].name).write_bytes(storm_frames[number].read_bytes()[:3000])
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
            deliver(storm_frames[number], folder)
        on_time = set(range(FRAMES)) - {DAMAGED, LATE, MISSING}
        wait_for(lambda: issues_of(out) == complete_issues(on_time), watcher)
        deliver(storm_frames[LATE], folder)
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
    assert [item["file"] for item in status["problems"] if "file" in item] == [storm_frames[DAMAGED].name]
    gaps = {item["issue"]: item["problem"] for item in status["problems"] if "issue" in item}
    assert (
        "1 of 3 frames every 5 minutes are missing: 02:40" in gaps["2024-11-26T02:45:00Z"]
        and "1 of 3 frames every 5 minutes are missing: 01:45" in gaps["2024-11-26T01:50:00Z"]
    )


def test_recomputes_only_forecasts_of_changed_frames(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:5]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out)
    assert (watcher.scan(), watcher.scan()) == (3, 0)
    assert make_watcher(model, folder, out).scan() == 0  # after a restart
    deliver(storm_frames[1], folder)  # with the same content
    assert watcher.scan() == 0
    write_frame(folder / storm_frames[1].name, 1, storm(20))
    assert watcher.scan() == 2
    assert make_watcher(model, folder, out, bridge=1).scan() == 3  # with other settings


def test_late_frame_replaces_interpolated_forecasts(model, storm_frames, folders):
    folder, out = folders
    for path in (*storm_frames[:3], *storm_frames[4:6]):
        deliver(path, folder)
    watcher = make_watcher(model, folder, out, bridge=1)
    assert watcher.scan() == 2  # of 01:10, and of 01:20 over the gap; the first frame of 01:25 is missing
    deliver(storm_frames[3], folder)
    assert watcher.scan() == 3
    with h5py.File(out / "forecast_20241126T0120Z.nc", "r") as file:
        assert file.attrs["simcast_bridged"] == "none"


def test_no_forecast_from_a_frame_that_is_too_late(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[10:13]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out, late_minutes=20)
    assert watcher.scan() == 1
    for path in storm_frames[:10]:
        deliver(path, folder)
    assert watcher.scan() == 4  # 01:40 to 01:55 are within twenty minutes before 02:00
    assert min(issues_of(out)) == moment(8)


def test_pruned_forecasts_are_not_computed_again(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:6]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out, keep=2)
    assert watcher.scan() == 2 and issues_of(out) == {moment(4), moment(5)}
    deliver(storm_frames[6], folder)
    assert watcher.scan() == 1 and issues_of(out) == {moment(5), moment(6)}
    assert watcher.scan() == 0


def test_damaged_frame_is_reported_until_it_is_replaced(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:4]:
        deliver(path, folder)
    (folder / storm_frames[2].name).write_bytes(storm_frames[2].read_bytes()[:4000])
    watcher = make_watcher(model, folder, out)
    assert watcher.scan() == 0
    assert [item["file"] for item in health(out)["problems"] if "file" in item] == [storm_frames[2].name]
    deliver(storm_frames[2], folder)
    assert watcher.scan() == 2 and health(out)["problems"] == []


def test_full_disk_is_reported_and_retried(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:3]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out)
    for size in (6000, 15000, 30000):
        with limited(size):  # as a full disk; without care HDF5 ends the process
            assert watcher.scan() == 0
        assert "cannot be written" in health(out)["problems"][0]["problem"] and not list(out.glob("*forecast*"))
    assert watcher.scan() == 1 and health(out)["problems"] == []


def test_ignores_a_frame_from_the_future(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:3]:
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


def test_signal_of_the_batch_system_pauses_the_watcher(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:3]:
        deliver(path, folder)
    notice = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2))

    def send_signal(_folder: Path) -> None:
        notice.start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simcast_hpc.forecast.watch_folder.sweep", send_signal)  # called once, at the start
        with pytest.raises(PausedError, match="SIGUSR2; run the same command to resume"):
            predict(model, "--watch", folder, "--out", out, "--write", "nc", "--every", "0.1")
    assert health(out)["state"] == "stopped"


def test_second_watcher_of_an_output_folder_is_rejected(model, storm_frames, folders):
    folder, out = folders
    with hold_directory(out, "a watcher", field="--out") as lock:
        owner = (
            rf"--out={out} is locked by a watcher: .*process {os.getpid()} .* on host {socket.gethostname()}, .* ago"
        )
        with pytest.raises(ConfigError, match=owner):
            predict(model, "--watch", folder, "--out", out)
        (out / ".simcast.lease").unlink()  # such as by an expiry while this process was suspended
        for path in storm_frames[:3]:
            deliver(path, folder)
        watcher = make_watcher(model, folder, out)
        watcher._check_lock = lambda: (lock._renew(), lock.check())
        with pytest.raises(LostLockError, match="this process stops"):
            watcher.run(StopRequest([], checks_files=False))
    assert issues_of(out) == set()


def test_rejects_invalid_watched_folder(model, tmp_path):
    with pytest.raises(ConfigError, match="equals --out"):
        predict(model, "--watch", tmp_path, "--out", tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        predict(model, "--watch", tmp_path / "none", "--out", tmp_path)


def test_rejects_invalid_output_formats(tmp_path):
    for kinds in (("png",), ("nc", "jpg"), ()):
        with pytest.raises(ConfigError, match="nc or zarr"):
            Publisher(tmp_path, kinds)
