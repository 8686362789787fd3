"""Property-based tests of the ODIM and CF readers: any legal packing gives the values that the standard defines."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simcast_hpc.radar.radar_frame import FieldChoice
from simcast_hpc.radar.read_frame import frame_times_in_process, read_frames_in_process
from tests.fuzz.valid_files import TIME, cf_dataset, write_valid_files

SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LEVELS = ("what", "dataset1/what", "dataset1/data1/what")
SHAPE = (4, 6)


def forms(value: float) -> st.SearchStrategy[Any]:
    """Return the forms in which writers store a number."""
    found = [float(value), np.array([value], np.float64), np.array(value, np.float64)]
    if value == int(value) and abs(value) < 2**31:
        found += [int(value), np.array([int(value)], np.int32)]
    return st.sampled_from(found)


@st.composite
def packings(draw: st.DrawFn, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Return a data type, 24 stored codes, and two codes with a meaning; at least one code is a value."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    low = 0 if dtype.kind == "u" else -20
    code = st.integers(low, 100)
    first, second = draw(st.lists(code, min_size=2, max_size=2, unique=True))
    codes = draw(st.lists(st.one_of(code, st.sampled_from([first, second])), min_size=24, max_size=24))
    codes[0] = next(one for one in range(50, 53) if one not in (first, second))
    return {"codes": np.array(codes, dtype).reshape(SHAPE), "first": first, "second": second}


@SETTINGS
@given(
    packing=packings(("u1", "u2", "i2", "i4", ">i2", "f4", "f8")),
    gain=st.sampled_from([0.5, 0.1, 1.0, -0.25, 1e-2]),
    offset=st.sampled_from([-32.0, 0.0, 12.5]),
    data=st.data(),
)
def test_odim_values_follow_gain_offset_and_sentinels_at_any_level(packing, gain, offset, data):
    codes, nodata, undetect = packing["codes"], packing["first"], packing["second"]
    with TemporaryDirectory() as folder:
        write_valid_files("odim", Path(folder))
        path = Path(folder, "odim-0")
        with h5py.File(path, "r+") as file:
            del file["dataset1/data1/data"]
            file["dataset1/data1/data"] = codes
            for name, value in {"gain": gain, "offset": offset, "nodata": nodata, "undetect": undetect}.items():
                del file[LEVELS[2]].attrs[name]
                file[data.draw(st.sampled_from(LEVELS))].attrs[name] = data.draw(forms(value))
        (frame,) = read_frames_in_process(path, FieldChoice("dBZ"))
        assert frame_times_in_process(path, FieldChoice("dBZ")) == [frame.time] == [TIME]
    for stored, value in zip(codes.ravel().tolist(), frame.values.ravel().tolist(), strict=True):
        if stored == undetect:
            assert value == -np.inf
        elif stored == nodata:
            assert np.isnan(value)
        else:
            assert value == np.float32(stored * gain + offset)


@pytest.mark.filterwarnings("ignore:variable 'rate' has multiple fill values")
@SETTINGS
@given(
    packing=packings(("i1", "i2", "i4", "f4", "f8")),
    scale=st.sampled_from([None, 0.5, 0.1, 1.0]),
    offset=st.sampled_from([None, 20.0, 30.5]),
    fill=st.booleans(),
    missing=st.booleans(),
    valid=st.booleans(),
)
def test_cf_values_follow_scale_offset_and_missing_values(packing, scale, offset, fill, missing, valid):
    codes, dtype = np.abs(packing["codes"]), packing["codes"].dtype
    first, second = abs(packing["first"]), abs(packing["second"])
    codes.flat[0] = next(one for one in range(50, 53) if one not in (first, second))
    attributes: dict[str, Any] = {"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    attributes |= {} if scale is None else {"scale_factor": np.float64(scale)}
    attributes |= {} if offset is None else {"add_offset": np.float64(offset)}
    attributes |= {"_FillValue": dtype.type(first)} if fill else {}
    attributes |= {"missing_value": dtype.type(second)} if missing else {}
    attributes |= {"valid_range": np.array([5, 90], dtype)} if valid else {}
    dataset = cf_dataset().isel(time=[1])
    dataset["rate"] = (("time", "y", "x"), codes[None], attributes)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.nc")
        dataset.to_netcdf(path, engine="scipy")
        (frame,) = read_frames_in_process(path, FieldChoice())
    absent = ({first} if fill else set()) | ({second} if missing else set())
    for stored, value in zip(codes.ravel().tolist(), frame.values.ravel().tolist(), strict=True):
        if stored in absent or (valid and not 5 <= stored <= 90):
            assert np.isnan(value)
        else:
            assert value == np.float32(stored * (scale or 1.0) + (offset or 0.0))
    assert frame.time == TIME and frame.unit == "mm/h"
