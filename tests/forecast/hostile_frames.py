"""Damaged and hostile files that claim the time of a radar frame, each written by an independent writer or as bytes.

Every function takes the folder, the number of the frame and a folder for files outside, and writes one entry.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np

from tests.forecast.watch_runs import write_frame
from tests.radar.odim_files import layout, write_layout
from tests.radar.radar_files import moment, storm, write_cf, write_odim
from tests.radar.test_knmi_reading import write_knmi

Writer = Callable[[Path, int, Path], None]
_HUGE = 1 << 20


def _name(folder: Path, number: int, suffix: str = "nc") -> Path:
    return folder / f"hostile{number:02d}.{suffix}"


def _odim(folder: Path, number: int) -> Path:
    return write_odim(_name(folder, number, "h5"), storm(number), moment(number))


def _layout(number: int) -> dict:
    groups = layout(np.full((40, 52), 7, np.uint8), gain=0.5, offset=-32.0, nodata=255.0, undetect=0.0)
    time = moment(number)
    groups["what"] |= {"date": f"{time:%Y%m%d}", "time": f"{time:%H%M%S}"}
    groups["dataset1/what"] |= {"startdate": f"{time:%Y%m%d}", "enddate": f"{time:%Y%m%d}"}
    groups["dataset1/what"] |= {"starttime": f"{time - timedelta(minutes=5):%H%M%S}", "endtime": f"{time:%H%M%S}"}
    return groups


# 1. Damage
def truncated(folder: Path, number: int, _outside: Path) -> None:
    path = write_frame(_name(folder, number), number)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_tail(folder: Path, number: int, _outside: Path) -> None:
    path = write_frame(_name(folder, number), number)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))


def zero_tail_odim(folder: Path, number: int, _outside: Path) -> None:
    path = _odim(folder, number)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))


def flipped_header(folder: Path, number: int, _outside: Path) -> None:
    path = write_frame(_name(folder, number), number)
    content = bytearray(path.read_bytes())
    content[8:400] = bytes(byte ^ 0xFF for byte in content[8:400])
    path.write_bytes(content)


def flipped_field(folder: Path, number: int, _outside: Path) -> None:
    """Times are readable, the compressed field is not."""
    path = _odim(folder, number)
    with h5py.File(path) as file:
        chunk = file["dataset1/data1/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 8] = b"\xff" * 8
    path.write_bytes(content)


def empty(folder: Path, number: int, _outside: Path) -> None:
    _name(folder, number).touch()


def text(folder: Path, number: int, _outside: Path) -> None:
    _name(folder, number).write_text("\x1b]0;owned\x07<html>503 Service Unavailable</html>\n")


def all_missing(folder: Path, number: int, _outside: Path) -> None:
    write_frame(_name(folder, number), number, np.full((40, 52), np.nan))


# 2. Declared sizes and expansion
def huge_odim(folder: Path, number: int, _outside: Path) -> None:
    groups = _layout(number)
    del groups["dataset1/data1/data"]
    groups["where"] |= {"xsize": _HUGE, "ysize": _HUGE}
    path = write_layout(_name(folder, number, "h5"), groups)
    with h5py.File(path, "r+") as file:
        file["dataset1/data1"].create_dataset("data", (_HUGE, _HUGE), np.uint8, chunks=(1024, 1024), compression="gzip")


def huge_dimensions(folder: Path, number: int, _outside: Path) -> None:
    path = write_frame(_name(folder, number), number)
    with h5py.File(path, "r+") as file:
        attributes = dict(file["field"].attrs)
        for name in ("field", "x", "y"):
            del file[name]
        for name in ("y", "x"):
            axis = file.create_dataset(name, (_HUGE,), np.float64, chunks=(1024,))
            axis.make_scale(name)
            axis.attrs.update({"standard_name": f"projection_{name}_coordinate", "units": "m"})
        field = file.create_dataset("field", (1, _HUGE, _HUGE), np.float32, chunks=(1, 1024, 1024))
        for position, name in enumerate(("time", "y", "x")):
            field.dims[position].attach_scale(file[name])
        kept = ("units", "standard_name", "grid_mapping")
        field.attrs.update({key: attributes[key] for key in kept})


def gzip_bomb(folder: Path, number: int, _outside: Path) -> None:
    """A GRIB head and 3 GiB of zeros in 3 MB."""
    member = gzip.compress(bytes(64 << 20), 9)
    with _name(folder, number, "grib2.gz").open("wb") as file:
        file.write(gzip.compress(b"GRIB" + bytes(12)))
        for _ in range(48):
            file.write(member)


def huge_pgm(folder: Path, number: int, _outside: Path) -> None:
    _name(folder, number, "pgm").write_bytes(
        f"P5\n# obstime {moment(number):%Y%m%d%H%M}\n1048576 1048576\n255\n".encode() + bytes(100)
    )


def huge_gif(folder: Path, number: int, _outside: Path) -> None:
    screen = struct.pack("<HHBBB", 0xFFFF, 0xFFFF, 0xF7, 0, 0) + bytes(768)
    image = b"," + struct.pack("<HHHHB", 0, 0, 0xFFFF, 0xFFFF, 0) + b"\x08\x01\x00\x00;"
    _name(folder, number, "gif").write_bytes(b"GIF89a" + screen + image)


def huge_classic_netcdf(folder: Path, number: int, _outside: Path) -> None:
    dimension = struct.pack(">II4sI", 10, 1, b"\x00\x00\x00\x01", 0) + b"x\x00\x00\x00" + struct.pack(">I", 0x7FFFFFFF)
    _name(folder, number).write_bytes(b"CDF\x02" + bytes(4) + dimension + b"\xff" * 64)


def blanks(folder: Path, number: int, _outside: Path) -> None:
    path = write_knmi(_name(folder, number, "h5"), calibration_formulas=np.bytes_("GEO=0.01*PV"))
    with h5py.File(path, "r+") as file:
        for name, time in (("start", moment(number - 1)), ("end", moment(number))):
            file["overview"].attrs[f"product_datetime_{name}"] = np.bytes_(f"{time:%d-%b-%Y;%H:%M:%S}.000".upper())
        group = file["image1/calibration"]
        del group.attrs["calibration_formulas"]
    with h5py.File(path, "r+", libver="latest") as file:  # attributes above 64 KiB need the dense storage
        calibration = file["image1/calibration"]
        del file["image1/calibration"]
        dense = file.create_group("image1/calibration")
        dense.attrs.update(dict(calibration.attrs))
        dense.attrs["calibration_formulas"] = np.bytes_(b"GEO" + b" " * 1_000_000 + b"PV")


# 3. Contents that contradict the format
def corners_not_finite(folder: Path, number: int, _outside: Path) -> None:
    groups = _layout(number)
    groups["where"] |= {"LL_lon": np.nan, "UR_lat": np.nan}
    write_layout(_name(folder, number, "h5"), groups)


def attributes_not_numeric(folder: Path, number: int, _outside: Path) -> None:
    groups = _layout(number)
    groups["dataset1/data1/what"] |= {"gain": "one", "nodata": "none"}
    write_layout(_name(folder, number, "h5"), groups)


def sizes_negative(folder: Path, number: int, _outside: Path) -> None:
    groups = _layout(number)
    groups["where"] |= {"xsize": -1, "ysize": 0}
    write_layout(_name(folder, number, "h5"), groups)


def without_what(folder: Path, number: int, _outside: Path) -> None:
    groups = {key: value for key, value in _layout(number).items() if "what" not in key}
    write_layout(_name(folder, number, "h5"), groups)


def cycle_of_groups(folder: Path, number: int, _outside: Path) -> None:
    with h5py.File(_odim(folder, number), "r+") as file:
        del file["dataset1/data1"]
        file["dataset1/data1"] = file["dataset1"]


def impossible_values(folder: Path, number: int, _outside: Path) -> None:
    field = storm(number)
    field[10] = 1e30  # a single impossible pixel would be missing
    write_frame(_name(folder, number), number, field)


def wrong_grid(folder: Path, number: int, _outside: Path) -> None:
    write_frame(_name(folder, number), number, storm(number, shape=(38, 52)))


def wrong_unit(folder: Path, number: int, _outside: Path) -> None:
    liquid = np.ones((1, 40, 52), np.float32)
    name = "atmosphere_mass_content_of_cloud_liquid_water"
    write_cf(_name(folder, number), liquid, [moment(number)], name=name, units="kg m-2", long_name="vil")


def wrong_section_lengths(folder: Path, number: int, _outside: Path) -> None:
    """GRIB2 whose first section claims 2 GiB and whose second one claims 3 bytes."""
    sections = struct.pack(">IB", 0x7FFFFFFF, 1) + bytes(16) + struct.pack(">IB", 3, 3) + bytes(67) + b"7777"
    head = b"GRIB\x00\x00\xd1\x02" + struct.pack(">Q", 16 + len(sections))
    _name(folder, number, "grib2").write_bytes(head + sections)


# 4. Times
def year_1(folder: Path, number: int, _outside: Path) -> None:
    groups = _layout(number)
    groups["what"] |= {"date": "00010101"}
    groups["dataset1/what"] |= {"startdate": "00010101", "enddate": "00010101"}
    write_layout(_name(folder, number, "h5"), groups)


def future(folder: Path, number: int, _outside: Path) -> None:
    ahead = (datetime.now(UTC) + timedelta(minutes=70) - moment(0)) / timedelta(minutes=5)
    write_frame(_name(folder, number), round(ahead), storm(number))


def far_future(folder: Path, number: int, _outside: Path) -> None:
    groups = _layout(number)
    groups["what"] |= {"date": "99991231"}
    groups["dataset1/what"] |= {"startdate": "99991231", "enddate": "99991231"}
    write_layout(_name(folder, number, "h5"), groups)


# 5. Links and special files
def fifo(folder: Path, number: int, _outside: Path) -> None:
    os.mkfifo(_name(folder, number))


def zero_device(folder: Path, number: int, _outside: Path) -> None:
    _name(folder, number).symlink_to("/dev/zero")


def link_to_secret(folder: Path, number: int, outside: Path) -> None:
    (outside / "secret").write_text("hunter2:password")
    _name(folder, number).symlink_to(outside / "secret")


def external_link(folder: Path, number: int, outside: Path) -> None:
    other = write_frame(outside / "other.nc", number)
    with h5py.File(write_frame(_name(folder, number), number), "r+") as file:
        del file["field"]
        file["field"] = h5py.ExternalLink(str(other), "/field")


def external_storage(folder: Path, number: int, outside: Path) -> None:
    (outside / "bytes").write_bytes(b"hunter2:password" * 130)
    with h5py.File(_odim(folder, number), "r+") as file:
        del file["dataset1/data1/data"]
        stored = [(str(outside / "bytes"), 0, 40 * 52)]
        file["dataset1/data1"].create_dataset("data", (40, 52), np.uint8, external=stored)


def odd_name(folder: Path, number: int, _outside: Path) -> None:
    name = os.fsdecode(b"\x1b[2J\n12:00:00 forecast of [red]\xff<script>.nc")
    (folder / name).write_bytes(zlib.compress(b"\x00" * 1000))


WRITERS: tuple[Writer, ...] = (
    truncated, zero_tail, zero_tail_odim, flipped_header, flipped_field, empty, text, all_missing, huge_odim,
    huge_dimensions, gzip_bomb, huge_pgm, huge_gif, huge_classic_netcdf, blanks, corners_not_finite,
    attributes_not_numeric, sizes_negative, without_what, cycle_of_groups, impossible_values, wrong_grid, wrong_unit,
    wrong_section_lengths, year_1, future, far_future, fifo, zero_device, link_to_secret, external_link,
    external_storage, odd_name,
)  # fmt: skip
