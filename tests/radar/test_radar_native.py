"""Readers on real files of weather services, compared pixel by pixel with the same frames in the cropped archives."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataConfig
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.radar import RadarFrame, encode_frame, encoding_of_run, frame_times, read_frames
from tests.shared_data import shared

NATIVE = "data/radar/native"
# Folder, HDF5 dataset of the archive, file of the archive, dataset description of its encoding.
SERVICES = {
    "fmi": ("fmi_pgm", "dbz", "dbz/2016/DBZ_FMI_20160928.h5", "fmi"),
    "knmi": ("knmi_h5", "rr", "rr/2010/RR_KNMI_20100826.h5", "knmi"),
    "mch": ("mch_gif", "rr", "rr/2015/RR_MCH_20150515.h5", "mch"),
    "opera": ("opera_odim", "dbz", "dbz/2024/DBZ_OPERA_20241126.h5", "fmi"),
    "mrms": ("mrms_grib2", "rr", "rr/2019/RR_MRMS_20190610.h5", "mch"),
}
# Largest difference of an encoded value from the value of the file: half a step of the encoding.
HALF_STEP_DB, HALF_STEP_SHARE = 0.25, 0.018


@cache
def frames_of(service: str) -> list[RadarFrame]:
    prefer = "dBZ" if SERVICES[service][1] == "dbz" else "mm/h"
    paths = sorted(shared(f"{NATIVE}/{SERVICES[service][0]}").iterdir())
    # A frame of MRMS or OPERA takes a second or more to read.
    return [frame for path in (paths[:1] if service in ("mrms", "opera") else paths)
            for frame in read_frames(path, prefer=prefer)]  # fmt: skip


def crops_of(service: str, time: datetime):
    """Yield the encoded frames of the archive at one time, and their position in the grid of the service."""
    _, kind, archive, _ = SERVICES[service]
    with h5py.File(shared(f"data/radar/{archive}"), "r") as file:
        for codes, times, (top, left) in zip(file[kind][:], file["time"][:], file["crop_yx"][:], strict=True):
            for k in np.flatnonzero(times == int(time.timestamp())):
                yield codes[..., k], np.s_[top : top + codes.shape[0], left : left + codes.shape[1]]


@pytest.mark.parametrize(
    "service", [pytest.param(name, marks=pytest.mark.slow) if name == "mrms" else name for name in sorted(SERVICES)]
)
def test_encoded_real_frame_equals_the_archive(service):
    code = encoding_of_run(DataConfig(dataset=SERVICES[service][3]), any_spacing=True)
    compared = 0
    for frame in frames_of(service):
        for archive, crop in crops_of(service, frame.time):
            height, width = archive.shape
            grid = replace(frame.grid, height=height, width=width)
            encoded = encode_frame(replace(frame, values=frame.values[crop], grid=grid), code)
            np.testing.assert_array_equal(encoded.codes, archive)
            _assert_within_half_a_step(frame.values[crop], code.spec.encoding.decode(archive), archive, code.unit)
            compared += 1
    assert compared >= (3 if service in ("opera", "mrms") else 4)


def _assert_within_half_a_step(native: np.ndarray, decoded: np.ndarray, codes: np.ndarray, unit: str) -> None:
    """Compare archive and file: missing is nodata, no echo is undetect, other values within half a step."""
    np.testing.assert_array_equal(np.isnan(native), codes == MISSING_CODE)
    echo = ~np.isnan(native) & (codes > 0) & (codes < MISSING_CODE)
    if unit == "dBZ":
        assert (native[codes == 0] <= -31.75).all()
        assert np.abs(native[echo] - decoded[echo]).max() <= HALF_STEP_DB
    else:
        assert (native[codes == 0] < 0.1 * (1 + HALF_STEP_SHARE)).all()
        assert np.abs(decoded[echo] / native[echo] - 1).max() <= HALF_STEP_SHARE


def test_opera_undetect_is_no_echo_and_nodata_is_missing():
    path = next(shared(f"{NATIVE}/opera_odim").iterdir())
    (frame,) = frames_of("opera")
    with h5py.File(path, "r") as file:
        stored = file["dataset1/data1/data"][...]
    np.testing.assert_array_equal(np.isneginf(frame.values), stored == -8888000.0)
    np.testing.assert_array_equal(np.isnan(frame.values), stored == -9999000.0)
    assert (stored == -30.0).sum() == (frame.values == -30.0).sum() > 0
    assert frame.grid.shape == (4400, 3800) and frame.grid.spacing_km == pytest.approx(1.0)


def test_times_and_corners_of_real_files():
    def first(folder: str) -> Path:
        return sorted(shared(f"{NATIVE}/{folder}").iterdir())[0]

    expected = {
        "fmi_pgm": datetime(2016, 9, 28, 14, 45, tzinfo=UTC),
        "knmi_h5": datetime(2010, 8, 26, 0, 0, tzinfo=UTC),
        "mch_gif": datetime(2015, 5, 15, 15, 45, tzinfo=UTC),
        "mrms_grib2": datetime(2019, 6, 10, 0, 0, tzinfo=UTC),
        "opera_odim": datetime(2024, 11, 26, 1, 0, tzinfo=UTC),
    }
    assert {folder: frame_times(first(folder)) for folder in expected} == {k: [v] for k, v in expected.items()}
    # The corners in degrees that KNMI's file contains (geo_product_corners).
    import pyproj

    (frame,) = read_frames(first("knmi_h5"))
    grid = frame.grid
    with h5py.File(first("knmi_h5"), "r") as file:
        corners = file["geographic"].attrs["geo_product_corners"].reshape(4, 2)
    to_degrees = pyproj.Proj(grid.projection)
    right, bottom = grid.left + grid.width * grid.spacing_x, grid.top - grid.height * grid.spacing_y
    computed = [to_degrees(x, y, inverse=True) for x, y in
            ((grid.left, bottom), (grid.left, grid.top), (right, grid.top), (right, bottom))]  # fmt: skip
    np.testing.assert_allclose(computed, corners, atol=2e-3)
