"""Defaults of an import of a short archive: length of events, splits with windows, name and license."""

from datetime import timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.ingest.default_splits import default_splits, event_minutes
from simcast_hpc.data.ingest.import_recipe import ImportOptions
from simcast_hpc.data.ingest.import_source import take_inventory
from simcast_hpc.data.ingest.import_target import import_source
from simcast_hpc.data.ingest.inventory import inventory_text
from simcast_hpc.data.ingest.source_attributes import stated_terms
from simcast_hpc.data.ingest.source_defaults import default_name
from simcast_hpc.data.inspection import inspect
from simcast_hpc.data.shards.shard_format import read_manifest
from simcast_hpc.distributed.ranks import SingleRank
from simcast_hpc.radar.projection_text import projection_name
from tests.data.ingest.radar_archive import BEGIN, frame_codes, write_frame
from tests.data.ingest.test_import import run

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


WKT = 'PROJCRS["EUREF-FIN / TM35FIN(E,N)",BASEGEOGCRS["EUREF-FIN"],CONVERSION["UTM 35N",METHOD["Transverse Mercator"]]]'


@pytest.mark.parametrize(
    ("projection", "name"),
    [(WKT, "EUREF-FIN / TM35FIN(E,N) (Transverse Mercator)"), ("+proj=longlat  +no_defs", "+proj=longlat +no_defs"),
     ("EPSG:3035", "EPSG:3035"), ("+proj=laea " + 30 * "+x_0=1 ", ("+proj=laea " + 30 * "+x_0=1 ")[:76] + " ...")],
)  # fmt: skip
def test_projections_are_shortened(projection, name):
    assert projection_name(projection) == name


def test_values_out_of_range_and_very_high_ones_are_named(tmp_path):
    for k in range(8):
        codes = np.full((40, 40), 100, np.uint8)
        codes[:20] = 0
        if k == 2:
            codes[5, :5] = 220  # 89 dBZ
        if k == 4:
            codes[5, 5] = 254  # 107.7 dBZ, one of 1600 pixels
        if k == 6:
            codes[:30] = 254
        write_frame(tmp_path / f"a/{k}.h5", codes, BEGIN + timedelta(minutes=5 * k), gain=0.55)
    inventory = run(tmp_path / "a", tmp_path / "t")["inventory"]
    (file,) = inventory["not_used"]["implausible"]
    assert "a/6.h5" in file["file"] and "outside the valid range of dBZ" in file["reason"]
    (high,), (few,) = inventory["notes"]["high"], inventory["notes"]["implausible"]
    assert "a/2.h5" in high["file"] and "values up to 89 dBZ" in high["reason"]
    assert "a/4.h5" in few["file"] and few["reason"] == "1 pixel out of the valid range of dBZ is missing"
    text = inventory_text(inventory)
    assert "1 implausible: values outside of the valid range" in text and "x 2640 .. 2720, y -1024 .. -944 km" in text
    manifest = (tmp_path / "t/manifest.json").read_text()
    assert max(len(line) for line in manifest.splitlines() if "unreadable" not in line) > 500
    assert len(manifest.splitlines()) < 120 and read_manifest(tmp_path / "t").text != manifest


def test_license_and_attribution_of_each_format(tmp_path):
    odim = write_frame(tmp_path / "a.h5", np.zeros((8, 8), np.uint8), BEGIN)
    assert stated_terms(str(odim)) == ("", "")
    with h5py.File(odim, "a") as file:
        file["what"].attrs["source"] = np.bytes_("ORG:247,CMT:x")
    assert stated_terms(str(odim)) == ("", "ODIM source ORG:247,CMT:x")
    dataset = xr.Dataset({"a": (("y", "x"), np.zeros((2, 3)))}, attrs={"license": "CC BY 4.0", "institution": "é met"})
    dataset.attrs |= {"n": 3, "list": [1.0, 2.0]}
    dataset.to_netcdf(tmp_path / "a.nc", engine="scipy")
    for version in (2, 3):
        dataset.to_zarr(tmp_path / f"{version}.zarr", zarr_format=version, consolidated=False)
    for name in ("a.nc", "2.zarr", "3.zarr"):
        assert stated_terms(str(tmp_path / name)) == ("CC BY 4.0", "é met")
    content = (tmp_path / "a.nc").read_bytes()
    for end in (5, 20, 60):
        (tmp_path / "cut.nc").write_bytes(content[:end])
        assert stated_terms(str(tmp_path / "cut.nc")) == ("", "")
