"""Files of a watched folder that are no plain frames: links, odd names, growing stores, files whose reading fails."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import xarray as xr

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.forecast import watched_files
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.predictor import Predictor
from simcast_hpc.monitoring.log import set_up_logging
from simcast_hpc.monitoring.stop_request import StopRequest
from tests.forecast.watch_runs import deliver, health, issues_of, make_watcher, write_frame
from tests.radar.radar_files import moment, predict, storm, write_odim

ODD_NAME = b"[b]a\nframe \x1b[31m\xe2\x80\xae\xff.nc"  # markup, newline, escape sequence, right-to-left, invalid UTF-8


def by_file(out: Path) -> dict[str, str]:
    return {item["file"]: item["problem"] for item in health(out)["problems"] if "file" in item}


def test_links_and_special_files_do_no_harm(model, storm_frames, folders, tmp_path):
    folder, out = folders
    for path in storm_frames[:3]:
        deliver(path, folder)
    (tmp_path / "secret").write_text("root:$6$hash of a password")
    links = {
        "latest.nc": "frame02.nc", "broken.nc": "nothing.nc", "loop.nc": "loop.nc", "zero.nc": "/dev/zero",
        "secret.nc": str(tmp_path / "secret"),
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.link(folder / "frame01.nc", folder / "another_name.nc")
    (folder / "folder.h5").mkdir()
    os.mkfifo(folder / "fifo.h5")
    watcher = make_watcher(model, folder, out)
    assert (watcher.scan(), watcher.scan()) == (1, 0)
    assert list(by_file(out)) == ["secret.nc"]
    assert not [word for word in ("$6$", "hash", "password") if word in (out / "health.json").read_text()]
    with h5py.File(out / "forecast_20241126T0110Z.nc") as file:
        names = [item["file"] for item in json.loads(file.attrs["simcast_inputs"])]
    assert names[2] == "frame02.nc"
    # The one-shot command: no "both contain the time"
    (folder / "secret.nc").unlink()
    assert len(predict(model, folder, "--out", out, "--write", "nc")) == 1
    assert len(predict(model, folder / "latest.nc", *storm_frames[:2], "--out", out, "--write", "nc")) == 1


def test_odd_file_names_survive_messages_logs_health_and_attributes(model, storm_frames, folders, capsys):
    folder, out = folders
    named = Path(os.fsdecode(os.fsencode(folder) + b"/" + ODD_NAME))
    write_frame(folder / "2.nc", 2).rename(named)
    for path in storm_frames[:2]:
        deliver(path, folder)
    damaged = named.with_name("x" + named.name)
    damaged.write_bytes(b"\x1b[2Jnothing")
    set_up_logging(0)
    assert make_watcher(model, folder, out).scan() == 1
    (written,) = predict(model, folder, "--out", out, "--write", "nc")
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "ignored until it changes" in line]) == 1
    assert all(line.isprintable() for line in lines), lines
    shown = r"[b]a\nframe \x1b[31m\u202e\udcff.nc"
    assert list(by_file(out)) == ["x" + shown]
    assert all(text.isprintable() for text in by_file(out).values())
    with xr.open_dataset(written) as dataset:
        assert json.loads(dataset.attrs["simcast_inputs"])[2]["file"] == shown
    # An output folder and an institution with such names
    odd_out = folder.parent / named.stem
    predict(model, folder, "--out", odd_out, "--write", "nc", "--institution", "M\udcfcller")
    with h5py.File(odd_out / "forecast_20241126T0110Z.nc") as file:
        assert file.attrs["institution"] == r"M\udcfcller"


def write_store(path: Path, numbers: range) -> None:
    """Append frames to a Zarr store as a growing archive does."""
    for number in numbers:
        source = write_frame(path.with_suffix(".source"), number)
        with xr.open_dataset(source) as dataset:
            frame = dataset.load().drop_encoding()
        source.unlink()
        frame.time.encoding["units"] = "seconds since 2024-11-26"
        if path.exists():
            frame.drop_vars("crs").drop_vars(["x", "y"]).to_zarr(path, append_dim="time", consolidated=False)
        else:
            frame.to_zarr(path, zarr_format=2, consolidated=False)


def test_growing_zarr_store(model, folders):
    folder, out = folders
    store = folder / "radar.zarr"
    write_store(store, range(3))
    watcher = make_watcher(model, folder, out, pattern="**/*")  # the files in the store are no frames
    assert (watcher.scan(), watcher.scan()) == (1, 0)
    write_store(store, range(3, 4))
    assert (watcher.scan(), watcher.scan()) == (1, 0)  # the former forecast is not made again
    assert issues_of(out) == {moment(2), moment(3)} and health(out)["problems"] == []
    assert len(predict(model, store, "--out", out / "once", "--write", "nc")) == 1
    with pytest.raises(ConfigError, match=r"radar\.zarr is a Zarr store; .*--watch .* --pattern radar\.zarr"):
        predict(model, "--watch", store, "--out", out)
    with pytest.raises(ConfigError, match=r"--pattern '/\*' must be a pattern of names"):
        predict(model, "--watch", folder, "--out", out, "--pattern", "/*")


def test_zarr_store_with_data_elsewhere_is_rejected(model, folders, tmp_path):
    folder, out = folders
    store = folder / "radar.zarr"
    write_store(store, range(3))
    chunk = store / "field" / "1.0.0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    assert make_watcher(model, folder, out).scan() == 0
    assert by_file(out)["radar.zarr"].endswith("1.0.0 is a symbolic link; all data must be in the store")


def test_health_is_bounded(model, folders):
    folder, out = folders
    for number in range(300):
        (folder / f"{number:03d}{'x' * 200}.h5").write_bytes(b"\x00\x1b" * 100)
    make_watcher(model, folder, out).scan()
    status = health(out)
    assert status["problem_counts"] == {"files": 300, "future": 0, "issues": 0} and len(status["problems"]) == 100
    assert (out / "health.json").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("name", "error"),
    [("frame_times", RuntimeError("odd")), ("read_frames", MemoryError()), ("encode_frame", KeyError("x"))],
)
def test_any_failure_of_reading_is_an_error_of_the_file(model, storm_frames, folders, name, error, monkeypatch):
    folder, out = folders
    for path in storm_frames[:5]:
        deliver(path, folder)
    genuine = getattr(watched_files, name)

    def fail(subject, *arguments, **options):
        if getattr(subject, "path", subject).name == "frame04.nc":
            raise error
        return genuine(subject, *arguments, **options)

    watcher = make_watcher(model, folder, out)
    monkeypatch.setattr(watched_files, name, fail)
    assert (watcher.scan(), watcher.scan()) == (2, 0)
    assert type(error).__name__ in by_file(out)["frame04.nc"]
    # It is tried again after a minute, without a change of the file
    monkeypatch.setattr(watched_files, name, genuine)
    assert watcher.scan() == 0
    monkeypatch.setattr(watched_files.Retry, "is_due", True)
    assert watcher.scan() == 1 and by_file(out) == {}


def test_slow_failing_files_are_not_all_tried_again_in_one_scan(model, storm_frames, folders, monkeypatch):
    folder, out = folders
    tried: list[str] = []

    def fail(path: Path, **_options):
        tried.append(path.name)
        raise RuntimeError("slow")

    monkeypatch.setattr(watched_files, "frame_times", fail)
    for path in storm_frames[:3]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out)
    watcher.scan()
    monkeypatch.setattr(watched_files, "_RETRY_SECONDS_PER_SCAN", -1.0)
    monkeypatch.setattr(watched_files.Retry, "is_due", True)
    deliver(storm_frames[3], folder)
    watcher.scan()
    assert sorted(tried) == [f"frame{number:02d}.nc" for number in range(4)]  # a new file is not delayed
    monkeypatch.setattr(watched_files, "_RETRY_SECONDS_PER_SCAN", 60.0)
    watcher.scan()
    assert sorted(tried[4:]) == sorted(tried[:4])


def test_frame_on_another_grid_or_in_another_unit_counts_as_missing(model, storm_frames, folders):
    folder, out = folders
    for number in (0, 2, 4):
        deliver(storm_frames[number], folder)
    write_odim(folder / "other_grid.h5", storm(1, shape=(40, 40)), moment(1))
    write_odim(folder / "other_unit.h5", np.full((40, 52), 5.0), moment(3), quantity="RATE")
    watcher = make_watcher(model, folder, out)
    assert watcher.scan() == 0
    assert (
        list(by_file(out)) == ["other_unit.h5"] and "in mm/h and the model fmi in dBZ" in by_file(out)["other_unit.h5"]
    )
    gaps = {item["issue"][11:16]: item["problem"] for item in health(out)["problems"] if "issue" in item}
    assert gaps.keys() == {"01:10", "01:20"} and "another grid" in gaps["01:10"]
    assert "--bridge 1 interpolates them" in gaps["01:10"]
    assert make_watcher(model, folder, out, bridge=1).scan() == 2
    with h5py.File(out / "forecast_20241126T0110Z.nc") as file:
        assert file.attrs["simcast_bridged"] == "2024-11-26T01:05Z"
    assert issues_of(out) == {moment(2), moment(4)}


def test_failing_forecast_and_failing_scan_do_not_end_the_watcher(model, storm_frames, folders, monkeypatch, caplog):
    folder, out = folders
    for path in storm_frames[:3]:
        deliver(path, folder)
    watcher, stop = make_watcher(model, folder, out), StopRequest([], checks_files=False)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        assert (watcher.scan(), watcher.scan()) == (0, 0)
        assert caplog.text.count("RuntimeError: out of memory") == 1
    monkeypatch.setattr(watched_files.Retry, "is_due", True)
    assert watcher.scan() == 1 and health(out)["problems"] == []
    scans = iter([ZeroDivisionError("a defect"), None])

    def scan(_stop) -> int:
        if (error := next(scans)) is not None:
            raise error
        assert health(out)["state"] == "failing" and health(out)["why"] == "ZeroDivisionError: a defect"
        stop._receive(15, None)
        return 0

    monkeypatch.setattr(watcher, "scan", scan)
    watcher.run(stop)
    assert health(out)["state"] == "stopped" and "a scan failed" in caplog.text


def test_damaged_forecast_is_made_again(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:4]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out)
    watcher.scan()
    first, second = (Publisher(out, ("nc",)).paths(moment(k))["nc"] for k in (2, 3))
    content = first.read_bytes()
    first.write_bytes(content[:3000])
    second.write_bytes(content[:200] + bytes(len(content) - 200))
    assert (watcher.scan(), watcher.scan()) == (2, 0)


def test_files_that_take_the_time_limit_do_not_block_others(model, storm_frames, folders, monkeypatch):
    folder, out = folders
    genuine, attempts = watched_files.frame_times, []

    def read(path: Path, *, short: bool, **options):
        attempts.append((path.name, short))
        if path.name.startswith("slow"):
            raise DataError(f"{path} did not finish")
        return genuine(path, short=short, **options)

    monkeypatch.setattr(watched_files, "frame_times", read)
    for number in range(3):
        deliver(storm_frames[number], folder)
        os.utime(folder / f"frame{number:02d}.nc", (2000 + number, 2000 + number))
        (folder / f"slow{number}.nc").write_bytes(b"x")
        os.utime(folder / f"slow{number}.nc", (1000 + number, 1000 + number))
    # 1. The newest files first, each with the short limit; the others have no time in this scan
    watcher = make_watcher(model, folder, out)
    monkeypatch.setattr(watched_files, "_NEW_SECONDS_PER_SCAN", 2.5)
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(time_ns=time.time_ns, monotonic=lambda: len(attempts))
        patch.setattr(watched_files, "time", clock)
        watcher.files.update(lambda: False)
    assert attempts == [("frame02.nc", True), ("frame01.nc", True), ("frame00.nc", True)]
    assert watcher.scan() == 1
    assert attempts[3:] == [("slow2.nc", True), ("slow1.nc", True), ("slow0.nc", True)]
    # 2. Later attempts have the whole limit; a changed file is new
    monkeypatch.setattr(watched_files.Retry, "is_due", True)
    (folder / "slow1.nc").write_bytes(b"other")
    os.utime(folder / "slow1.nc", (1001, 1001))
    del attempts[:]
    watcher.scan()
    assert attempts[0] == ("slow1.nc", True) and {("slow0.nc", False), ("slow2.nc", False)} <= set(attempts)


def test_times_whose_file_failed_before_are_served_last(model, storm_frames, folders, monkeypatch):
    folder, out = folders
    genuine, attempts = watched_files.read_frames, []

    def read(path: Path, *, short: bool, **options):
        attempts.append((path.name, short))
        if path.name == "frame04.nc":
            raise DataError(f"{path} did not finish")
        return genuine(path, short=short, **options)

    monkeypatch.setattr(watched_files, "read_frames", read)
    for path in storm_frames[:5]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out)
    assert watcher.scan() == 2 and ("frame04.nc", True) in attempts
    deliver(storm_frames[5], folder)
    monkeypatch.setattr(watched_files.Retry, "is_due", True)
    del attempts[:]
    watcher.files.update(lambda: False)
    served = watcher._served_times(watcher.files.by_time(moment(5)), moment(5))
    assert served == [moment(5), moment(3), moment(2), moment(1), moment(0), moment(4)]
