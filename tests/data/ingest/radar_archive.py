"""Writes small archives of ODIM composites, as of a radar network with rain on a few days and pixels never covered."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pyproj

LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
BEGIN = datetime(2023, 5, 1, tzinfo=UTC)
_CORNERS: dict[tuple[int, int], dict[str, float]] = {}


def write_frame(
    path: Path, codes: np.ndarray, time: datetime, *, quantity: str = "DBZH", gain: float = 0.5, minutes: int = 0
) -> Path:
    """Write uint8 ``codes`` ``[H, W]`` as an ODIM composite: 0 no echo, 255 missing, dBZ = gain code - 32."""
    height, width = codes.shape
    if (height, width) not in _CORNERS:
        to_degrees, left, top = pyproj.Proj(LAEA), 2_640_000.0, -944_000.0
        corners = _CORNERS[height, width] = {}
        for name, x, y in (("UL", 0, 0), ("UR", width, 0), ("LL", 0, height), ("LR", width, height)):
            corners[f"{name}_lon"], corners[f"{name}_lat"] = to_degrees(left + x * 2e3, top - y * 2e3, inverse=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    date, clock = np.bytes_(f"{time:%Y%m%d}"), np.bytes_(f"{time:%H%M%S}")
    begin = time - timedelta(minutes=minutes)
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        file.create_group("what").attrs.update({"object": np.bytes_("COMP"), "date": date, "time": clock})
        size = {"xsize": width, "ysize": height, "xscale": 2000.0, "yscale": 2000.0}
        file.create_group("where").attrs.update({"projdef": np.bytes_(LAEA), **size, **_CORNERS[height, width]})
        span = {"startdate": np.bytes_(f"{begin:%Y%m%d}"), "starttime": np.bytes_(f"{begin:%H%M%S}")}
        file.create_group("dataset1/what").attrs.update({**span, "enddate": date, "endtime": clock})
        file["dataset1/data1/data"] = codes
        packing = {"gain": gain, "offset": -32.0 if quantity == "DBZH" else 0.0, "nodata": 255.0, "undetect": 0.0}
        file.create_group("dataset1/data1/what").attrs.update({"quantity": np.bytes_(quantity), **packing})
    return path


def frame_codes(time: datetime, *, shape: tuple[int, int] = (24, 20), wet_hours: int = 6) -> np.ndarray:
    """Return a frame: 74 % of the pixels never covered; rain from 00:00 UTC on for ``wet_hours`` of every fifth day."""
    generator = np.random.default_rng(int(time.timestamp()))
    codes = np.zeros(shape, np.uint8)
    if (time - BEGIN).days % 5 == 0 and time.hour < wet_hours:
        codes[: shape[0] // 2] = generator.integers(80, 140, (shape[0] // 2, shape[1]))
    covered = np.zeros(shape, bool)
    covered[: shape[0] * 52 // 100, : shape[1] // 2] = True
    return np.where(covered, codes, 255).astype(np.uint8)


def write_archive(folder: Path, days: range, *, step: int = 30, **settings: int) -> list[Path]:
    """Write the frames of ``days`` after ``BEGIN`` as ``folder/%Y/%m/%d/radar_%Y%m%d%H%M.h5``."""
    written = []
    for day in days:
        for minute in range(0, 1440, step):
            time = BEGIN + timedelta(days=day, minutes=minute)
            path = folder / f"{time:%Y/%m/%d}/radar_{time:%Y%m%d%H%M}.h5"
            written.append(write_frame(path, frame_codes(time, **settings), time))
    return written
