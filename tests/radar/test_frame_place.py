"""Frames larger than the earth, and Zarr stores with other than regular files, are errors at once."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from simcast_hpc.config import DataError
from simcast_hpc.radar import read_frames
from simcast_hpc.radar.radar_frame import RadarFrame, RadarGrid
from tests.radar.radar_files import LAEA, START, write_cf


@pytest.mark.parametrize(("spacing_x", "spacing_y"), [(20_060_000.0, 1000.0), (1000.0, 20_060_000.0), (np.inf, 1.0)])
def test_a_grid_larger_than_the_earth_is_rejected(spacing_x, spacing_y):
    grid = RadarGrid(LAEA, 0.0, 0.0, spacing_x, spacing_y, 2, 2)
    with pytest.raises(DataError, match=r"a\.nc: the grid of .* km is larger than the earth; at most 40100 km"):
        RadarFrame(np.ones((2, 2), np.float32), "mm/h", START, grid, Path("a.nc"))


def test_a_grid_around_the_earth_is_accepted():
    grid = RadarGrid(LAEA, 0.0, 0.0, 20_037_500.0, 10_000_000.0, 2, 2)
    assert RadarFrame(np.ones((2, 2), np.float32), "mm/h", START, grid, Path("a.nc")).grid == grid


def test_a_pipe_in_a_zarr_store_is_rejected_without_being_opened(tmp_path):
    write_cf(tmp_path / "a.nc", np.ones((1, 4, 6), np.float32), [START])
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as dataset:
        dataset.load().drop_encoding().to_zarr(tmp_path / "a.zarr", zarr_format=2)
    assert len(read_frames(tmp_path / "a.zarr")) == 1
    chunk = next(path for path in (tmp_path / "a.zarr" / "field").iterdir() if path.name[0].isdigit())
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(DataError, match=r"a\.zarr: [0-9.]+ is not a regular file"):
        read_frames(tmp_path / "a.zarr")
