"""ODIM files that contradict themselves (sentinels, malfunctions, corners, pixel sizes), and the choice of datasets."""

import logging

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import frame_times, read_frames
from tests.radar.odim_files import LEFT, TOP, corners, layout, polar_layout, write_layout
from tests.radar.radar_files import LAEA


def read(tmp_path, groups, **choice):
    (frame,) = read_frames(write_layout(tmp_path / "a.h5", groups), **choice)
    return frame


@pytest.mark.parametrize("name", ["nodata", "undetect"])
@pytest.mark.parametrize(
    ("dtype", "stored", "sentinel"),
    [(np.uint8, 255, -1.0), (np.int8, -1, 255.0), (np.uint8, 255, 65535.0), (np.uint16, 65535, -1), (np.uint8, 0, 256)],
)
def test_sentinel_that_was_converted_to_the_dtype_is_an_error(tmp_path, name, dtype, stored, sentinel):
    groups = layout(np.array([[stored, 7]], dtype), gain=0.1, **{name: sentinel})
    with pytest.raises(DataError, match=rf"{name} of dataset1/data1 is .*{np.dtype(dtype)} cannot represent, and the "
                       rf"data contain {stored}"):  # fmt: skip
        read(tmp_path, groups)


@pytest.mark.parametrize(("sentinel", "stored"), [(-1.0, 254), (0.5, 0), (np.nan, 0), (-9999000.0, 136), (1e300, 255)])
def test_sentinel_that_no_pixel_can_have_is_logged(tmp_path, caplog, sentinel, stored):
    # -9999000 modulo 256 is 136: a template value that was never meant for uint8.
    frame = read(tmp_path, layout(np.array([[stored, 1]], np.uint8), gain=0.1, nodata=sentinel))
    np.testing.assert_allclose(frame.values, [[0.1 * stored, 0.1]], rtol=1e-6)
    assert "which uint8 cannot represent; no pixel has this value" in caplog.text


def test_integers_without_a_gain_are_logged(tmp_path, caplog):
    assert read(tmp_path, layout(np.array([[7]], np.uint8))).values == 7.0
    assert "is of type uint8 without a gain; 1 is used" in caplog.text


@pytest.mark.parametrize(("name", "meaning"), [("nodata", "missing"), ("undetect", "without echo")])
@pytest.mark.parametrize("writer", ["composite", "volume"])
def test_integers_without_a_sentinel_are_logged(tmp_path, caplog, name, meaning, writer):
    if writer == "composite":
        # 0.5 * 255 - 32 is 95.5 dBZ, 0.5 * 0 - 32 is -32 dBZ: measurements, if the file does not state otherwise.
        sentinels = {"gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
        groups = layout(np.array([[255, 0]], np.uint8), **sentinels)
        left, right = ([95.5, -np.inf], [np.nan, -32.0])
        expected = left if name == "nodata" else right
    else:
        groups, expected = polar_layout(), None
    read(tmp_path, groups, prefer="dBZ")
    assert "without" not in caplog.text
    groups["dataset1/data1/what"].pop(name)
    frame = read(tmp_path, groups, prefer="dBZ")
    dtype = groups["dataset1/data1/data"].dtype
    assert f"a.h5: dataset1/data1 is of type {dtype} without {name}; no pixel is {meaning}" in caplog.text
    if expected is not None:
        np.testing.assert_array_equal(frame.values, [expected])


@pytest.mark.parametrize(("quantity", "stored"), [("RATE", -9999.0), ("DBZH", -9999.0), ("DBZH", -9999000.0)])
def test_float_sentinel_that_is_not_stated_is_an_error(tmp_path, quantity, stored):
    with pytest.raises(DataError, match=r"a\.h5"):
        read(tmp_path, layout([[stored, 5.0]], quantity=quantity))


@pytest.mark.parametrize(("gain", "offset", "value"), [(-0.5, 95.5, 75.5), (0.5, -32.0, -12.0), (1e-3, 0.0, 0.04)])
def test_gain_may_be_negative_or_small(tmp_path, gain, offset, value):
    frame = read(tmp_path, layout(np.array([[40]], np.uint8), gain=gain, offset=offset))
    assert frame.values == pytest.approx(value)


def two_datasets(**how):
    """Return RATE 1 mm/h in dataset1 and 2 mm/h in dataset2."""
    groups = layout([[1.0]], quantity="RATE")
    groups |= {"dataset2/data1/what": {"quantity": "RATE"}, "dataset2/data1/data": np.array([[2.0]])}
    return groups | how


def test_dataset_with_a_malfunction_is_skipped(tmp_path, caplog):
    frame = read(tmp_path, two_datasets() | {"dataset1/how": {"malfunc": "True"}})
    assert frame.values == 2.0 and "skipped dataset1/data1, whose how/malfunc is true" in caplog.text
    with pytest.raises(DataError, match="malfunc is true for all 2 fields"):
        read(tmp_path, two_datasets() | {"how": {"malfunc": True}})
    with pytest.raises(DataError, match="malfunc is true for all 1 fields"):
        read(tmp_path, two_datasets() | {"dataset1/how": {"malfunc": 1}}, dataset=1)


@pytest.mark.parametrize("dataset", [1, 2])
def test_chosen_dataset_is_read_without_a_warning(tmp_path, caplog, dataset):
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, two_datasets(), dataset=dataset).values == dataset
    assert not caplog.text


def test_quantity_is_chosen_within_the_dataset(tmp_path):
    # dataset2 contains an accumulation over its own interval: 3 mm in 15 minutes are 12 mm/h.
    groups = layout([[1.0]], quantity="RATE")
    groups |= {
        "dataset2/what": {"startdate": "20241126", "starttime": "0045", "enddate": "20241126", "endtime": "0100"},
        "dataset2/data1/what": {"quantity": "ACRR"}, "dataset2/data1/data": np.array([[3.0]]),
        "dataset2/data2/what": {"quantity": "DBZH"}, "dataset2/data2/data": np.array([[30.0]]),
        "dataset3/data1/what": {"quantity": "VRAD"}, "dataset3/data1/data": np.array([[3.0]]),
    }  # fmt: skip
    assert read(tmp_path, groups).values == 1.0
    chosen = read(tmp_path, groups, dataset=2)
    assert chosen.values == 12.0 and chosen.interval_minutes == 15.0
    assert read(tmp_path, groups, dataset=2, prefer="dBZ").values == 30.0
    with pytest.raises(DataError, match=r"quantities \['VRAD'\]; it must contain RATE, ACRR or DBZH"):
        frame_times(tmp_path / "a.h5", dataset=3)
    with pytest.raises(DataError, match=r"dataset1 \(RATE\), dataset2 \(ACRR, DBZH\), dataset3 \(VRAD\)"):
        frame_times(tmp_path / "a.h5", dataset=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Corners of another projection, south at the top, swapped names, another number of pixels.
        ({"projdef": LAEA.replace("lon_0=10.0", "lon_0=20.0")}, "where/projdef does not belong to them"),
        ({"UL_lat": 40.0, "UR_lat": 40.0}, "must be finite and in order, row 0 north|does not belong to them"),
        ({"xsize": 8}, r"where/ysize and where/xsize are \(60, 8\), but the field has shape \(60, 80\)"),
        ({"UL_lat": np.nan}, "does not belong to them"), ({"LL_lon": np.inf}, "must be finite"),
        ({"xscale": 500.0}, "pixel size along x is 500 in the file, but 1000 by its corners"),
    ],
)  # fmt: skip
def test_contradictory_grid_is_an_error(tmp_path, change, message):
    groups = layout(np.zeros((60, 80)))
    groups["where"] |= change
    with pytest.raises(DataError, match=rf"a\.h5.*({message})"):
        read(tmp_path, groups)


def test_south_at_the_top_is_an_error(tmp_path):
    groups, names = layout(np.zeros((60, 80))), {"UL": "LL", "UR": "LR", "LL": "UL", "LR": "UR"}
    groups["where"] |= {names[name[:2]] + name[2:]: value for name, value in corners(60, 80).items()}
    with pytest.raises(DataError, match="must be finite and in order, row 0 north"):
        read(tmp_path, groups)


def test_one_corner_with_a_pixel_size_in_km(tmp_path):
    groups = layout(np.zeros((3, 4)))
    groups["where"] = {"projdef": LAEA, "xscale": 1.0, "yscale": 1.0} | corners(3, 4, names="UL")
    grid = read(tmp_path, groups).grid
    assert (grid.left, grid.top, grid.spacing_x, grid.spacing_y) == pytest.approx((LEFT, TOP, 1000.0, 1000.0), abs=0.05)
