"""A watcher and clocks: frames of the future, corrected clocks, times at the ends of the calendar."""

from datetime import datetime, timedelta
from pathlib import Path

import h5py
import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.forecast.watch_folder import WatchSettings
from tests.forecast.watch_runs import deliver, health, issues_of, make_watcher
from tests.radar.radar_files import moment, predict, storm, write_odim


@pytest.fixture
def set_clock(monkeypatch):
    """Return the function that sets the clock of the watcher."""

    def set_clock(time: datetime) -> None:
        monkeypatch.setattr("simcast_hpc.forecast.watch_folder.current_time", lambda: time)

    return set_clock


def futures(out: Path) -> dict[str, str]:
    assert health(out)["problem_counts"]["files"] == 0
    return {item["file"]: item["problem"] for item in health(out)["problems"] if "in the future" in item["problem"]}


def test_frame_of_the_future_waits_for_the_clock_and_makes_no_other_late(model, storm_frames, folders, set_clock):
    folder, out = folders
    for number in (0, 1, 2, 15):  # 02:15 is 65 minutes ahead of 01:10
        deliver(storm_frames[number], folder)
    watcher = make_watcher(model, folder, out, late_minutes=15)
    set_clock(moment(2))
    assert watcher.scan() == 1 and issues_of(out) == {moment(2)}
    assert futures(out) == {
        "frame15.nc": "the time 2024-11-26 02:15 UTC is in the future; it is used when the clock reaches it"
    }
    set_clock(moment(3))  # 60 minutes behind: it counts, but the others are not late
    deliver(storm_frames[3], folder)
    assert watcher.scan() == 1 and issues_of(out) == {moment(2), moment(3)}
    assert futures(out) == {} and health(out)["last_frame"] == "2024-11-26T02:15:00Z"
    set_clock(moment(15))
    for number in (13, 14):
        deliver(storm_frames[number], folder)
    assert watcher.scan() == 1 and issues_of(out) == {moment(2), moment(3), moment(15)}


def test_watcher_recovers_from_a_clock_that_was_behind_or_ahead(model, storm_frames, folders, set_clock, caplog):
    folder, out = folders
    for path in storm_frames[:3]:
        deliver(path, folder)
    watcher = make_watcher(model, folder, out)
    set_clock(moment(2) - timedelta(days=400))
    assert (watcher.scan(), watcher.scan()) == (0, 0)
    assert len(futures(out)) == 3 and caplog.text.count("in the future") == 3  # not at every scan
    set_clock(moment(2))
    assert watcher.scan() == 1 and futures(out) == {}
    for number in (3, 27, 28, 29):
        deliver(storm_frames[number], folder)
    set_clock(moment(29))  # the clock jumps ahead, and back
    assert watcher.scan() == 1 and issues_of(out) == {moment(2), moment(29)}  # 01:15 is more than two hours late
    set_clock(moment(3))
    assert watcher.scan() == 1 and issues_of(out) == {moment(2), moment(3), moment(29)} and len(futures(out)) == 3
    deliver(storm_frames[4], folder)
    assert watcher.scan() == 1 and moment(4) in issues_of(out)


def test_forecasts_and_frames_of_the_future_take_no_place_of_those_to_keep(model, storm_frames, folders, set_clock):
    folder, out = folders
    for number in (0, 1, 2, 11):  # 01:55 is 45 minutes ahead
        deliver(storm_frames[number], folder)
    (out).mkdir()
    (out / "forecast_20310101T0000Z.nc").write_bytes(b"of a wrong clock")
    watcher = make_watcher(model, folder, out, keep=1)
    set_clock(moment(2))
    assert (watcher.scan(), watcher.scan()) == (1, 0)
    deliver(storm_frames[3], folder)
    assert (watcher.scan(), watcher.scan()) == (1, 0)
    assert issues_of(out) == {moment(3), datetime.fromisoformat("2031-01-01T00:00+00:00")}


@pytest.mark.parametrize(("year", "problem"), [("0001", "before the first weather radars"), ("9999", "in the future")])
def test_years_at_the_ends_of_the_calendar(model, storm_frames, folders, year, problem, set_clock):
    """As the only frame, and together with others."""
    folder, out = folders
    path = write_odim(folder / "odd.h5", storm(0), moment(0))
    with h5py.File(path, "r+") as file:
        for group, names in (("what", ("date",)), ("dataset1/what", ("startdate", "enddate"))):
            for name in names:
                file[group].attrs[name] = (year + "0101").encode()
    watcher = make_watcher(model, folder, out)
    set_clock(moment(3))
    assert (watcher.scan(), watcher.scan()) == (0, 0)
    (only,) = health(out)["problems"]
    assert only["file"] == "odd.h5" and problem in only["problem"]
    for one in storm_frames[:4]:
        deliver(one, folder)
    assert watcher.scan() == 2 and issues_of(out) == {moment(2), moment(3)}
    if year == "9999":  # the one-shot command
        paths = predict(model, folder, "--out", out / "once", "--write", "nc", "--pattern", "*")
        assert [one.name for one in paths] == ["forecast_20241126T0115Z.nc"]


def test_two_frames_within_a_minute_are_one_issue_time(model, storm_frames, folders):
    folder, out = folders
    for path in storm_frames[:3]:
        deliver(path, folder)
    write_odim(folder / "again.h5", storm(2), moment(2) + timedelta(seconds=20))  # another grid, but no matter
    watcher = make_watcher(model, folder, out)
    watcher.scan()
    assert watcher.scan() == 0


@pytest.mark.parametrize("settings", [{"late_minutes": float("inf")}, {"every_seconds": float("nan")}])
def test_rejects_settings_that_are_not_finite(settings):
    with pytest.raises(ConfigError, match=r"--(late inf|every nan) must be a finite number"):
        WatchSettings(**settings)
