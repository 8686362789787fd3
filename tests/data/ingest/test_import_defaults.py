"""Defaults of an import of a short archive: length of events, splits with windows, name and license."""

from datetime import timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.ingest.default_splits import default_splits, event_minutes
from simcast_hpc.data.ingest.import_recipe import ImportOptions
from simcast_hpc.data.ingest.import_source import take_inventory
from simcast_hpc.data.ingest.import_target import import_source
from simcast_hpc.data.ingest.source_defaults import default_name
from simcast_hpc.data.inspection import inspect
from simcast_hpc.distributed.ranks import SingleRank
from tests.data.ingest.radar_archive import BEGIN, frame_codes, write_frame

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def day(tmp_path_factory) -> Path:
    """A day of frames every 10 minutes, without those of 01:00 and 01:10, in a folder named by its date."""
    folder = tmp_path_factory.mktemp("archive") / "prcp-c10/2023/05/01"
    for minute in range(0, 1440, 10):
        if minute not in (60, 70):
            time = BEGIN + timedelta(minutes=minute)
            path = write_frame(folder / f"radar_{time:%Y%m%d%H%M}.h5", frame_codes(time), time)
            with h5py.File(path, "a") as file:
                file.attrs["licence"] = np.bytes_("CC BY 4.0")
                file.attrs["institution"] = "Institute A" if minute else "Institute B"
    return folder


def test_a_day_has_windows_in_each_split_and_passes_inspection(day, tmp_path):
    target = tmp_path / "t"
    content = import_source([str(day)], target, ImportOptions(), SingleRank())
    # 2 slots of 24 frames for train, the first with 16 frames in sequence; one slot for val and test each
    assert content["recipe"]["event_minutes"] == 240
    assert content["windows"] == {"train": 7, "val": 7, "test": 7}
    assert content["warnings"] == []
    spec = read_spec(str(target / "dataset.yaml"))
    assert spec.name == "prcp-c10"
    assert spec.license == "CC BY 4.0"
    assert spec.attribution == ""  # the files do not agree
    found = inspect(spec, target)
    assert found.problems == []
    text = "\n".join(found.facts["notes"])
    assert "[missing-frame] 1 of" in text
    assert "[date-in-two-splits] 2023-05-01" in text


def test_splits_without_a_window_are_named(day):
    content = take_inventory([str(day)], ImportOptions(event="2h", license="own"), SingleRank())
    assert content["windows"] == {"train": 0, "val": 0, "test": 0}
    assert "train, val, test" in content["warnings"][0]
    for option in ("--event", "--gap-days", "--train-until"):
        assert option in content["warnings"][0]


@pytest.mark.parametrize(
    ("step", "count", "frames"),
    [(6, 61, 48), (6, 90, 30), (6, 120, 24), (10, 144, 24), (5, 288, 48), (5, 2000, 48), (30, 48, 48), (60, 200, 24)],
)
def test_events_of_short_archives_are_not_shorter_than_24_frames(step, count, frames):
    times = [k * step * 60_000_000 for k in range(count)]
    event = event_minutes(None, step, times)
    assert event / step == frames
    assert 1440 % event == 0


def test_a_slot_without_a_window_is_no_split():
    step = 600_000_000
    times = [k * step for k in range(144) if k < 120 or k % 2]  # the last slot has every second frame
    train_until, val_until, gap, _ = default_splits(times, 240, 10, None)
    assert (train_until.hour, val_until.hour, gap) == (3, 11, 240 / 1440)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    ("source", "name"),
    [("/a/prcp-c10/2020/10/31", "prcp-c10"), ("/2020/16/", "radar"), ("/a/%Y/%m/*.h5", "a"),
     ("/x/fmi-5/2020-10-16", "fmi-5"), ("s3://bucket/radar.zarr", "radar"), ("/data/mine.zarr", "mine")],
)  # fmt: skip
def test_default_name(source, name):
    assert default_name(source) == name
