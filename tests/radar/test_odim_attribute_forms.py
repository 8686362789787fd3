"""Unusual forms of ODIM attributes and objects: numbers as strings, times as numbers, links, the date line."""

from datetime import UTC, datetime

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import frame_times, read_frames
from tests.radar.odim_files import layout, polar_layout, write_layout
from tests.radar.radar_files import LAEA


def read(path, **choice):
    (frame,) = read_frames(path, **choice)
    return frame


def test_numbers_as_strings(tmp_path):
    groups = layout(np.array([[50, 0, 255]], np.uint8), quantity="RATE",
                    gain="0.1", offset="1", nodata="255", undetect="0.0")  # fmt: skip
    groups["where"] = {name: str(value) for name, value in groups["where"].items()}
    values = read(write_layout(tmp_path / "a.h5", groups)).values
    np.testing.assert_allclose(values, [[6.0, 0.0, np.nan]])


@pytest.mark.parametrize("name", ["gain", "offset", "nodata", "undetect"])
def test_words_instead_of_numbers_are_an_error(tmp_path, name):
    path = write_layout(tmp_path / "a.h5", layout(np.array([[50]], np.uint8), **{name: "none"}))
    with pytest.raises(DataError, match=f"attribute {name} is 'none'; it must be one number"):
        read(path)


def test_largest_integer_that_float64_rounds_is_a_sentinel(tmp_path):
    largest = 2**64 - 1
    groups = layout(np.array([[largest, 0, 30]], np.uint64), nodata=float(largest), undetect=np.uint64(0), gain=1.0)
    np.testing.assert_array_equal(read(write_layout(tmp_path / "a.h5", groups)).values, [[np.nan, -np.inf, 30.0]])


@pytest.mark.parametrize(("date", "clock"), [(20241126, 104000), ("20241126", 104000), (np.array([20241126]), 104000)])
def test_times_as_numbers_of_six_digits(tmp_path, date, clock):
    groups = layout([[1.0]])
    groups["what"] |= {"date": date, "time": clock}
    assert frame_times(write_layout(tmp_path / "a.h5", groups)) == [datetime(2024, 11, 26, 10, 40, tzinfo=UTC)]


@pytest.mark.parametrize("clock", [1200, 4000, 44000, 0, 104000.0])
def test_numbers_that_lost_leading_zeros_are_an_error(tmp_path, clock):
    # 1200 may be 12:00 or 00:12:00.
    groups = layout([[1.0]])
    groups["what"]["time"] = clock
    with pytest.raises(DataError, match="they must be YYYYMMDD and HHmmss or HHmm"):
        frame_times(write_layout(tmp_path / "a.h5", groups))


@pytest.mark.parametrize(("product", "minutes"), [("RR", 60.0), ("COMP", None), (None, None)])
def test_rate_of_an_accumulation_product_is_a_mean(tmp_path, product, minutes):
    groups = layout([[4.0]], quantity="RATE")
    groups["dataset1/what"] |= {"product": product} if product else {}
    frame = read(write_layout(tmp_path / "a.h5", groups))
    assert frame.values == 4.0 and frame.interval_minutes == minutes


def test_grid_in_degrees_across_the_date_line(tmp_path):
    groups = layout(np.zeros((3, 4)))
    groups["where"] = {
        "projdef": "+proj=longlat +datum=WGS84", "LL_lon": 178.0, "LL_lat": -20.0, "UR_lon": -178.0, "UR_lat": -17.0,
    }  # fmt: skip
    grid = read(write_layout(tmp_path / "a.h5", groups)).grid
    assert (grid.left, grid.top, grid.spacing_x, grid.spacing_y, grid.unit) == (178.0, -17.0, 1.0, 1.0, "degree")


@pytest.mark.parametrize("projection", ["+proj=nonsense", "laea", "+proj=laea +lat_0=x", "EPSG:999999"])
def test_invalid_projection_is_named(tmp_path, projection):
    groups = layout([[1.0]])
    groups["where"]["projdef"] = projection
    with pytest.raises(DataError, match=r"a\.h5: where/projdef '.*' is not a valid projection"):
        read(write_layout(tmp_path / "a.h5", groups))


@pytest.mark.parametrize("member", ["dataset1", "dataset1/data1", "dataset1/data1/data", "what", "dataset1/data1/what"])
@pytest.mark.parametrize("groups", [layout([[1.0]]), polar_layout()], ids=["composite", "volume"])
def test_links_to_other_files_are_not_followed(tmp_path, groups, member):
    write_layout(tmp_path / "other.h5", groups)
    path = write_layout(tmp_path / "a.h5", groups)
    with h5py.File(path, "r+") as file:
        del file[member]
        file[member] = h5py.ExternalLink(str(tmp_path / "other.h5"), f"/{member}")
    with pytest.raises(DataError, match=r"a\.h5.*another file; the file must contain its data itself"):
        read(path)


@pytest.mark.parametrize("kind", ["virtual", "external"])
def test_data_in_other_files_are_not_read(tmp_path, kind):
    write_layout(tmp_path / "other.h5", layout(np.ones((2, 2), np.uint8)))
    (tmp_path / "secret").write_bytes(b"\x01\x02\x03\x04")
    path = write_layout(tmp_path / "a.h5", layout(np.ones((2, 2), np.uint8)))
    with h5py.File(path, "r+") as file:
        del file["dataset1/data1/data"]
        if kind == "virtual":
            source = h5py.VirtualLayout((2, 2), np.uint8)
            source[:] = h5py.VirtualSource(tmp_path / "other.h5", "dataset1/data1/data", (2, 2))
            file.create_virtual_dataset("dataset1/data1/data", source)
        else:
            file.create_dataset("dataset1/data1/data", (2, 2), np.uint8, external=[(str(tmp_path / "secret"), 0, 4)])
    with pytest.raises(DataError, match=r"a\.h5: /dataset1/data1/data is stored in another file"):
        read(path)


def test_soft_links_within_the_file_are_followed(tmp_path):
    path = write_layout(tmp_path / "a.h5", layout([[7.0]]))
    with h5py.File(path, "r+") as file:
        file.move("dataset1/data1/data", "dataset1/data1/stored")
        file["dataset1/data1/data"] = h5py.SoftLink("/dataset1/data1/stored")
    assert read(path, prefer="dBZ").values == 7.0 and read(path).grid.projection == LAEA
