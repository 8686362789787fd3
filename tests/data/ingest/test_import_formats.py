"""Import of Zarr stores, netCDF files with many times, RADOLAN files and a download with its license."""

from datetime import timedelta

import numpy as np
import pytest

from simcast_hpc.data.data_license import DataLicense
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.ingest.day_shards import encode_rows, model_encoding
from simcast_hpc.data.ingest.frame_selection import find_series, select_frames
from simcast_hpc.data.ingest.import_recipe import Recipe
from simcast_hpc.data.shards.shard_format import read_manifest
from simcast_hpc.data.shards.shard_reader import ShardSource
from simcast_hpc.radar import encode_frame, read_frames
from tests.data.ingest.radar_archive import BEGIN, frame_codes, write_frame
from tests.data.ingest.test_import import run
from tests.radar.radar_files import write_cf
from tests.shared_data import shared

STEP = timedelta(minutes=5)


def write_store(folder, frames: int):
    """Write rain rates ``[T, 16, 12]``, k + 1 in frame k, as netCDF and as a Zarr store with one chunk per frame."""
    import xarray as xr

    values = np.broadcast_to(np.arange(1, frames + 1, dtype=np.float32)[:, None, None], (frames, 16, 12)).copy()
    values[:, :, 8:] = np.nan
    values[5] = np.nan  # the radars were off
    netcdf = write_cf(folder / f"{frames}.nc", values, [BEGIN + k * STEP for k in range(frames)])
    with xr.open_dataset(netcdf) as dataset:
        for variable in dataset.variables.values():
            variable.encoding = {}
        dataset.chunk({"time": 1}).to_zarr(folder / "radar.zarr", zarr_format=2, mode="w")
    return folder / "radar.zarr"


def test_a_zarr_store_by_times_and_appended_as_it_grows(tmp_path):
    store = write_store(tmp_path, 60)
    options = {"event": "1h", "train_until": "2023-05-01T02:59", "val_until": "2023-05-01T03:59"}
    content = run(store, tmp_path / "t", **options, until=BEGIN + 35 * STEP)
    assert content["inventory"]["frames"] == 35  # of 36 one is entirely missing
    (lost,) = content["inventory"]["not_used"]["missing"]
    assert lost["file"] == f"{store}::2023-05-01T00:25:00" and "missing" in lost["reason"]
    write_store(tmp_path, 72)
    run(store, tmp_path / "t", append=True)
    spec = read_spec(str(tmp_path / "t/dataset.yaml"))
    source = ShardSource(spec, tmp_path / "t", split="all", frames=12, max_percent_missing=None)
    assert [source.key(k).event for k in range(len(source))] == [f"20230501T0{hour}00" for hour in (1, 2, 3, 4, 5)]
    expected = spec.encoding.encode(np.arange(13, 73, dtype=np.float32))
    codes = np.concatenate([source.read(k) for k in range(5)])
    np.testing.assert_array_equal(codes[:, :, :8], np.broadcast_to(expected[:, None, None], (60, 16, 8)))
    assert (codes[:, :, 8:] == 255).all()


def test_the_license_of_a_download_is_carried(tmp_path):
    for k in range(12):
        write_frame(tmp_path / f"a/{k}.h5", frame_codes(BEGIN + k * STEP), BEGIN + k * STEP)
    DataLicense("opera", "cirrus", "CC-BY-4.0", "EUMETNET OPERA", "https://example.org", "2024-01-01").write(
        tmp_path / "a"
    )
    content = run(tmp_path / "a", tmp_path / "t")
    assert content["inventory"]["files"] == 12
    spec, manifest = read_spec(str(tmp_path / "t/dataset.yaml")), read_manifest(tmp_path / "t")
    assert (spec.license, spec.credit) == (manifest.license, manifest.attribution) == ("CC-BY-4.0", "EUMETNET OPERA")
    run(tmp_path / "a", tmp_path / "u", license="internal")
    assert read_manifest(tmp_path / "u").license == "internal"


def test_encoding_in_blocks_equals_that_of_a_forecast(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (300, 7)).astype(np.uint8)
    (frame,) = read_frames(write_frame(tmp_path / "a.h5", codes, BEGIN))
    for k in range(1, 12):
        write_frame(tmp_path / f"a/{k}.h5", codes, BEGIN + k * STEP)
    recipe = Recipe.model_validate(run(tmp_path / "a", tmp_path / "t")["recipe"], strict=False)
    encoding = model_encoding(recipe, recipe.spec(covered_percent=None, source=""))
    np.testing.assert_array_equal(encode_rows(frame, encoding), encode_frame(frame, encoding).codes)
    np.testing.assert_array_equal(encode_rows(frame, encoding), codes)


@pytest.mark.slow
def test_radolan_equals_its_reader(tmp_path):
    folder = shared("data/radar/files/radolan_yw")
    run(folder, tmp_path / "t", event="1h")
    spec = read_spec(str(tmp_path / "t/dataset.yaml"))
    source = ShardSource(spec, tmp_path / "t", split="train", frames=11, max_percent_missing=None)
    frames = sorted((frame for path in folder.iterdir() for frame in read_frames(path)), key=lambda frame: frame.time)
    expected = [spec.encoding.encode(frame.values) for frame in frames]
    np.testing.assert_array_equal(source.read(0)[:, :1100, :900], expected[1:])


@pytest.mark.parametrize(("minutes", "phase"), [(60, 50 * 60), (5, 0), (10, 3 * 60)])
def test_cadence_and_phase_from_the_times(tmp_path, minutes, phase):
    from simcast_hpc.data.ingest.scan_frames import microseconds
    from simcast_hpc.data.ingest.scan_table import NO_INTERVAL, FrameKind, ScanTable
    from simcast_hpc.data.ingest.source_files import SourceFile
    from simcast_hpc.radar import RadarGrid

    jitter = np.random.default_rng(0).integers(0, 30, 200)
    times = np.array(
        [microseconds(BEGIN) + (phase + minutes * 60 * k + int(jitter[k])) * 1_000_000 for k in range(200)]
    )
    times = np.delete(times, [20, 21, 50])
    count = len(times)
    table = ScanTable(
        [SourceFile(str(k)) for k in range(count)], [""] * count, [FrameKind("f", "RATE", "mm/h")],
        [RadarGrid("+proj=merc", 0, 0, 1, 1, 4, 4)], np.arange(count, dtype=np.int32), times,
        np.full(count, NO_INTERVAL), np.zeros(count, np.int32), np.zeros(count, np.int32), np.arange(count + 1),
        np.zeros((count, 3), np.float32), [np.zeros((4, 4), np.uint32)],
    )  # fmt: skip
    series = find_series(table, step_minutes=None)
    assert series.step_minutes == minutes and abs(series.phase / 1e6 - phase) <= 30
    assert (select_frames(table, series).reason == 0).all()
