"""ODIM composites in every legal layout: inheritance, strings, times, several datasets, sentinels, pixel sizes."""

import logging
from datetime import UTC, datetime

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import frame_times, read_frames
from tests.radar.odim_files import LEFT, TOP, corners, layout, write_layout
from tests.radar.radar_files import LAEA

ONE_OCLOCK = datetime(2024, 11, 26, 1, 0, tzinfo=UTC)


def read(path, prefer="mm/h"):
    (frame,) = read_frames(path, prefer=prefer)
    return frame


@pytest.mark.parametrize("first", ["ACRR", "DBZH"])
def test_accumulation_uses_the_interval_of_its_own_dataset(tmp_path, first):
    # 5 mm in 60 minutes are 5 mm/h, whatever the interval of the other dataset.
    groups = layout([[20.0, 30.0]])
    groups["dataset1/what"]["starttime"] = "005500"
    groups |= {name.replace("dataset1", "dataset2"): content
               for name, content in layout([[5.0, 2.5]], quantity="ACRR").items() if "dataset1" in name}  # fmt: skip
    if first == "ACRR":
        exchange = {"dataset1": "dataset2", "dataset2": "dataset1"}
        groups = {exchange.get(name[:8], name[:8]) + name[8:]: content for name, content in groups.items()}
    frame = read(write_layout(tmp_path / "a.h5", groups))
    np.testing.assert_array_equal(frame.values, [[5.0, 2.5]])
    assert frame.unit == "mm/h" and frame.interval_minutes == 60.0
    np.testing.assert_array_equal(read(tmp_path / "a.h5", "dBZ").values, [[20.0, 30.0]])


def test_interval_may_be_split_between_dataset_and_data(tmp_path):
    groups = layout([[5.0]], quantity="ACRR", starttime="0030")
    assert read(write_layout(tmp_path / "a.h5", groups)).values == 10.0


NUMBERS = {"gain": 0.1, "offset": 1.0, "nodata": 255.0, "undetect": 0.0}


@pytest.mark.parametrize("level", ["what", "dataset1/what", "dataset1/data1/what"])
@pytest.mark.parametrize("moved", [("gain",), ("offset",), ("nodata",), ("undetect",), ("quantity",), tuple(NUMBERS)])
def test_attributes_are_inherited_from_file_and_dataset(tmp_path, level, moved):
    groups = layout(np.array([[50, 0, 255]], np.uint8), quantity="RATE", **NUMBERS)
    for name in moved:
        value = groups["dataset1/data1/what"].pop(name)
        groups[level][name] = value
    frame = read(write_layout(tmp_path / "a.h5", groups))
    np.testing.assert_allclose(frame.values, [[6.0, 0.0, np.nan]])


def test_most_specific_attribute_wins(tmp_path):
    groups = layout(np.array([[50]], np.uint8), quantity="RATE", gain=0.1)
    groups["dataset1/what"] |= {"gain": 1.0, "quantity": "DBZH"}
    groups["what"]["gain"] = 7.0
    assert read(write_layout(tmp_path / "a.h5", groups)).values == pytest.approx(5.0)


@pytest.mark.parametrize(("clock", "minute", "second"), [("0440", 40, 0), ("044005", 40, 5), ("0404", 4, 0)])
def test_times_have_four_or_six_digits(tmp_path, clock, minute, second):
    groups = layout([[1.0]])
    groups["what"]["time"] = clock
    path = write_layout(tmp_path / "a.h5", groups)
    expected = datetime(2024, 11, 26, 4, minute, second, tzinfo=UTC)
    assert read(path).time == expected and frame_times(path) == [expected]


@pytest.mark.parametrize(
    ("date", "clock"),
    [
        ("20241126", "44000"),
        ("2024112", "6044000"),
        ("20241126", "04"),
        ("20241126", "04:40"),
        ("20230229", "0440"),
        ("20241126", "2460"),
    ],
)
def test_rejects_other_times(tmp_path, date, clock):
    groups = layout([[1.0]])
    groups["what"] |= {"date": date, "time": clock}
    with pytest.raises(DataError, match=f"a.h5: what/date and what/time are '{date}{clock}'; they must be YYYYMMDD"):
        frame_times(write_layout(tmp_path / "a.h5", groups))


def of_datasets(**levels):
    """Return a file with a DBZH of the value 10 N in dataset N, of a product at the given level."""
    groups = layout([[0.0]])
    for name in [name for name in groups if name.startswith("dataset1")]:
        del groups[name]
    for number, attributes in levels.items():
        value = 10.0 * int(number[1:])
        one = layout([[value]])
        groups[f"dataset{number[1:]}/what"] = one["dataset1/what"] | attributes
        groups[f"dataset{number[1:]}/data1/what"] = one["dataset1/data1/what"]
        groups[f"dataset{number[1:]}/data1/data"] = one["dataset1/data1/data"]
    return groups


@pytest.mark.parametrize(
    ("levels", "value", "reason"),
    [
        ({"d1": {}, "d2": {}}, 10.0, "dataset1/data1 is read (the first)"),
        ({"d2": {}, "d10": {}}, 20.0, "dataset2/data1 is read (the first)"),
        ({"d1": {"product": "CAPPI", "prodpar": 3000.0}, "d2": {"product": "CAPPI", "prodpar": 500.0}}, 20.0, "500"),
        ({"d1": {"product": "MAX", "prodpar": 3.0}, "d2": {"product": "CAPPI", "prodpar": 500.0}}, 10.0, "the first"),
    ],
)
def test_lowest_or_first_of_several_datasets_is_read_and_logged(tmp_path, caplog, levels, value, reason):
    path = write_layout(tmp_path / "a.h5", of_datasets(**levels))
    with caplog.at_level(logging.WARNING):
        frame = read(path)
    assert frame.values == value and "contains DBZH in" in caplog.text and reason in caplog.text
    assert frame.metadata["group"] == f"dataset{int(value / 10)}/data1"


def test_several_data_groups_of_one_quantity(tmp_path, caplog):
    groups = layout([[1.0]]) | {"dataset1/data2/what": {"quantity": "DBZH"}, "dataset1/data2/data": np.array([[2.0]])}
    assert read(write_layout(tmp_path / "a.h5", groups)).values == 1.0
    assert "dataset1/data1 is read (the first)" in caplog.text


@pytest.mark.parametrize("stored", [np.float32, np.float64])
@pytest.mark.parametrize("attribute", [np.float32, np.float64])
def test_sentinels_are_compared_in_the_dtype_of_the_data(tmp_path, stored, attribute):
    values = np.array([[-99.9, -88.8, 20.0]], stored)
    groups = layout(values, nodata=attribute(-99.9), undetect=attribute(-88.8))
    np.testing.assert_array_equal(read(write_layout(tmp_path / "a.h5", groups)).values, [[np.nan, -np.inf, 20.0]])


def test_nan_and_infinity_as_sentinels(tmp_path):
    groups = layout(np.array([[np.nan, np.inf, 2.0]]), quantity="RATE", nodata=np.nan, undetect=np.inf)
    np.testing.assert_array_equal(read(write_layout(tmp_path / "a.h5", groups)).values, [[np.nan, 0.0, 2.0]])


@pytest.mark.parametrize(("quantity", "no_echo"), [("DBZH", -np.inf), ("RATE", 0.0), ("ACRR", 0.0)])
def test_equal_nodata_and_undetect_are_no_echo(tmp_path, quantity, no_echo):
    groups = layout(np.array([[0, 40]], np.uint8), quantity=quantity, nodata=0.0, undetect=0.0, gain=0.5)
    np.testing.assert_array_equal(read(write_layout(tmp_path / "a.h5", groups)).values, [[no_echo, 20.0]])


@pytest.mark.parametrize("encode", [str, np.bytes_, lambda value: np.array([value], "S"), lambda value: [value],
                                    lambda value: np.bytes_(value + "\0\0")],
                         ids=["variable", "fixed", "fixed array", "variable array", "padded"])  # fmt: skip
def test_strings_and_numbers_in_any_legal_form(tmp_path, encode):
    groups = layout(np.array([[50, 0]], np.uint8), quantity="ACRR", gain=[0.1], offset=np.array([[0.0]]), undetect=[0])
    groups["where"] = {name: value if isinstance(value, str) else [value] for name, value in groups["where"].items()}
    frame = read(write_layout(tmp_path / "a.h5", groups, encode=encode))
    np.testing.assert_allclose(frame.values, [[5.0, 0.0]])
    assert frame.time == ONE_OCLOCK and frame.grid.projection == LAEA


@pytest.mark.parametrize("level", ["dataset1/where", "dataset1/data1/where"])
@pytest.mark.parametrize("conventions", [True, False])
def test_where_below_the_root(tmp_path, level, conventions):
    groups = layout([[1.0, 2.0]])
    groups[level] = groups.pop("where")
    path = write_layout(tmp_path / "a.h5", groups)
    if not conventions:
        with h5py.File(path, "r+") as file:
            del file.attrs["Conventions"]
    grid = read(path).grid
    assert (grid.left, grid.top) == pytest.approx((LEFT, TOP), abs=0.01) and grid.spacing_x == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"xscale": 1.0, "yscale": 1.0}, "UL UR LL LR"),  # km
        ({"projdef": LAEA.replace("+units=m", "+units=km")}, "UL UR LL LR"),
        ({"projdef": LAEA.replace("+units=m", "+units=km"), "xscale": 1.0, "yscale": 1.0}, "LL UR"),
        ({}, "UL LR"), ({}, "UL"), ({}, "UR"), ({}, "LL"), ({}, "LR"),
    ],
)  # fmt: skip
def test_grid_from_pixel_sizes_in_km_and_from_any_corners(tmp_path, change, names):
    groups = layout(np.zeros((3, 4)))
    kept = {name: value for name, value in groups["where"].items() if "_l" not in name}
    groups["where"] = kept | corners(3, 4, names=names) | change
    grid = read(write_layout(tmp_path / "a.h5", groups)).grid
    assert grid.unit == "m" and grid.shape == (3, 4) and "+units=m" in grid.projection
    found = (grid.left, grid.top, grid.spacing_x, grid.spacing_y)
    assert found == pytest.approx((LEFT, TOP, 1000.0, 1000.0), abs=0.05)


def remove(name, *keys):
    def change(groups):
        for key in keys or list(groups[name]):
            del groups[name][key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("where", "projdef"), "no where/projdef"),
        (remove("where", "UL_lon", "UR_lon", "LL_lon", "LR_lon"), "it must contain LL and UR"),
        (remove("what", "date", "time"), "''; they must be YYYYMMDD"),
        (remove("what"), "object ''; it must be a composite"),
        (lambda groups: groups.pop("what"), "object ''; it must be a composite"),
        (lambda groups: groups["dataset1/data1/what"].update(gain=[1.0, 2.0]), "gain.*must be one number"),
        (lambda groups: groups["dataset1/data1/what"].update(gain=0.0), "gain 0.0"),
        (lambda groups: groups.update({"dataset1/data1/data": np.zeros((1, 2, 3))}), "must be two-dimensional"),
    ],
)
def test_error_names_the_attribute_and_not_damage(tmp_path, change, message):
    groups = layout([[1.0]])
    change(groups)
    with pytest.raises(DataError, match=f"a.h5.*{message}") as error:
        read(write_layout(tmp_path / "a.h5", groups))
    assert "damaged" not in str(error.value)


def test_files_of_another_layout_are_not_called_damaged(tmp_path):
    path = write_layout(
        tmp_path / "knmi.h5",
        {"overview": {"product_datetime_start": "26-NOV-2024;01:00:00.000"}, "scan1": {}, "geographic": {}},
        encode=str,
    )
    with h5py.File(path, "r+") as file:
        del file.attrs["Conventions"]
    with pytest.raises(DataError, match="KNMI polar volume"):
        read(path)
    volume = layout([[1.0]])
    volume["what"]["object"] = "PVOL"
    with pytest.raises(DataError, match=r"where/elangle of dataset1/data1 is None; it must be from -5 to 90"):
        read(write_layout(tmp_path / "volume.h5", volume))
