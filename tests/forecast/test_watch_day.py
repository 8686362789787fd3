"""A day of a watcher, compressed in time: outage, late, damaged and future frames, a full disk, a restart."""

import resource
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import pytest

from simcast_hpc.forecast.fallback_predictor import FallbackPredictor
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.load_predictor import FramePlaces, PredictorSettings, load_predictor
from simcast_hpc.forecast.watch_folder import FolderWatcher, WatchSettings
from simcast_hpc.forecast.watch_health import duration
from simcast_hpc.forecast.watch_metrics import prometheus_text
from simcast_hpc.monitoring.stop_request import StopRequest
from tests.forecast.watch_runs import deliver, health, issues_of, make_watcher, write_frame
from tests.radar.radar_files import moment, storm
from tests.storage.test_hdf5_target import limited


@pytest.fixture
def set_clock(monkeypatch):
    def set_clock(time: datetime) -> None:
        monkeypatch.setattr("simcast_hpc.forecast.watch_folder.current_time", lambda: time)

    return set_clock


def metrics(path: Path) -> dict[str, float]:
    """Return the samples of a text file of Prometheus by name with labels, and check its form."""
    samples = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name.removeprefix("simcast_watch_")] = float(value)
    return samples


def test_state_is_stale_without_new_frames_and_watching_after_one(model, storm_frames, folders, set_clock, caplog):
    folder, out = folders
    prometheus = out.parent / "simcast.prom"
    set_clock(moment(0))
    watcher = make_watcher(model, folder, out, stale_steps=3, prometheus=prometheus)
    assert watcher.scan() == 0 and health(out)["state"] == "watching"  # has just started
    set_clock(moment(4))
    watcher.scan()
    assert health(out)["state"] == "stale" and health(out)["why"] == "no frame for 20 minutes, more than 3 time steps"
    for path in storm_frames[:5]:
        deliver(path, folder)
    assert watcher.scan() == 3
    status = health(out)
    assert (status["state"], status["why"], status["last_frame_age_seconds"]) == ("watching", "", 0.0)
    assert metrics(prometheus)['state{state="watching"}'] == 1 and metrics(prometheus)["forecasts_total"] == 3
    set_clock(moment(7))
    watcher.scan()
    assert health(out)["state"] == "watching"
    set_clock(moment(7) + timedelta(seconds=61))
    watcher.scan()
    status, values = health(out), metrics(prometheus)
    assert status["why"] == "the newest frame is 16 minutes old, more than 3 time steps"
    assert values['state{state="stale"}'] == 1 and values['state{state="watching"}'] == 0
    assert values["last_frame_timestamp_seconds"] == moment(4).timestamp()
    watcher.scan()
    assert caplog.text.count("the feed is stale") == 2  # not at every scan
    (out / "STOP").touch()
    watcher.run(StopRequest([out], checks_files=True))
    assert health(out)["state"] == "stopped" and "no longer stale" not in caplog.text.split("16 minutes old")[1]
    latency = status["latency_seconds"]
    assert latency["count"] == 3 and 0 <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert values['latency_seconds{quantile="0.9"}'] == latency["p90"] and values["latency_seconds_count"] == 3


def test_ages_are_in_units_that_can_be_read():
    assert [duration(minutes) for minutes in (16, 119.4, 120, 2820, 3199012)] == [
        "16 minutes", "119 minutes", "2 hours", "47 hours", "2,222 days"
    ]  # fmt: skip


def test_text_for_prometheus_escapes_labels_and_has_one_header_per_family(model, folders):
    folder, out = folders
    make_watcher(model, folder, out).scan()
    text = prometheus_text({**health(out), "run": 'a"b\\c\nd'})
    assert 'simcast_watch_info{run="a\\"b\\\\c\\nd",weights="' in text
    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds)) and all(name.startswith("simcast_watch_") for name in kinds)
    assert 'simcast_watch_latency_seconds{quantile="0.5"} NaN' in text and text.endswith("\n")


def run_day(model: Path, folder: Path, out: Path, set_clock, *, frames: int) -> dict[str, object]:
    """Run a watcher over ``frames`` frames, one scan each, and check every product; return what was seen."""
    outage = set(range(frames // 3, frames // 3 + 8))
    late = {frames // 2: frames // 2 + 4}  # frame, and the step at which it arrives
    lost, ahead = {frames // 5}, frames - 10
    damaged, full = frames * 2 // 3, {frames - 6, frames - 5}  # replaced after two steps; steps with a full disk
    states, issued, fallbacks = [], [], {}
    settings = WatchSettings(every_seconds=0.0, prometheus=out.parent / "simcast.prom")

    def start() -> FolderWatcher:
        predictor = load_predictor(model, PredictorSettings(), FramePlaces([folder]), fallback="extrapolation")
        assert isinstance(predictor, FallbackPredictor)
        return FolderWatcher(predictor, Publisher(out, ("nc",)), folder, settings)

    def arrive(number: int) -> None:
        deliver(write_frame(folder.parent / f"frame{number:04d}.nc", number, storm(number % 20)), folder)

    set_clock(moment(0))
    watcher, memory = start(), []
    for step in range(frames):
        set_clock(moment(step) + timedelta(minutes=1))
        arriving = {number for number, at in late.items() if at == step}
        if step not in outage | lost | set(late) | {ahead}:
            arriving.add(step)
        if step == ahead - 20:
            arriving.add(ahead)  # more than an hour ahead of the clock
        if step == damaged + 2:
            arriving.add(damaged)
        for number in sorted(arriving):
            arrive(number)
        if step == damaged:
            (folder / f"frame{step:04d}.nc").write_bytes(bytes(range(256)) * 20)
        before = issues_of(out)
        with limited(6000) if step in full else nullcontext():
            made = watcher.scan()
        assert (health(out)["problem_counts"]["files"] == 1) == (step in (damaged, damaged + 1))
        states.append(health(out)["state"])
        issued += sorted(issues_of(out) - before)
        assert made >= len(issues_of(out) - before)
        if step in (ahead - 20, ahead - 11):
            assert (health(out)["problem_counts"]["future"] == 1) == (step == ahead - 20)
        if step == frames // 4:  # a restart makes nothing again
            watcher = start()
            assert watcher.scan() == 0
        if step in (frames // 8, frames - 1):
            memory.append(_resident_bytes())
    for issue in issues_of(out):
        with h5py.File(out / f"forecast_{issue:%Y%m%dT%H%MZ}.nc", "r") as file:
            assert file["reflectivity"].shape == (4, 40, 52)
            fallbacks[issue] = file.attrs["simcast_fallback"]
    absent = outage | lost
    expected = {moment(k) for k in range(1, frames) if k not in absent and k - 1 not in absent}
    assert issues_of(out) == expected and len(issued) == len(set(issued)) == len(expected)
    by_model = {moment(k) for k in range(2, frames) if not {k, k - 1, k - 2} & absent}
    assert {issue for issue, name in fallbacks.items() if name == "none"} == by_model
    assert set(states) == {"watching", "stale"} and not list(out.glob(".*.partial"))
    status = health(out)
    assert status["failed"] == 3 and status["problem_counts"]["files"] == status["problem_counts"]["future"] == 0
    return {"forecasts": len(issued), "fallbacks": len(expected - by_model), "states": states, "memory": memory}


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize("frames", [44, pytest.param(288, marks=pytest.mark.slow)])
def test_every_issue_time_of_a_day_is_made_once(model, folders, set_clock, frames):
    folder, out = folders
    seen = run_day(model, folder, out, set_clock, frames=frames)
    print(seen["forecasts"], seen["fallbacks"], seen["memory"])
    start, end = seen["memory"]
    assert end - start < 100e6
