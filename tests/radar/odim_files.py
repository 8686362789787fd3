"""ODIM composites of any legal layout, written with h5py for the tests of the reader."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyproj

from simcast_hpc.radar import RadarFrame
from tests.radar.radar_files import LAEA

LEFT, TOP = 2_640_000.0, -944_000.0
INTERVAL = {"startdate": "20241126", "starttime": "000000", "enddate": "20241126", "endtime": "010000"}


def corners(height: int, width: int, spacing: float = 1000.0, names: str = "UL UR LL LR") -> dict[str, float]:
    """Return the corners of a grid in degrees."""
    to_degrees, found = pyproj.Proj(LAEA), {}
    for name in names.split():
        x = LEFT + (width * spacing if name[1] == "R" else 0.0)
        y = TOP - (height * spacing if name[0] == "L" else 0.0)
        found[f"{name}_lon"], found[f"{name}_lat"] = to_degrees(x, y, inverse=True)
    return found


def layout(stored: Any, *, quantity: str = "DBZH", **attributes: Any) -> dict[str, Any]:
    """Return groups and attributes of a file with one field; ``attributes`` are those of dataset1/data1/what."""
    height, width = np.shape(stored)
    return {
        "what": {"object": "COMP", "date": "20241126", "time": "010000"},
        "where": {"projdef": LAEA, "xscale": 1000.0, "yscale": 1000.0, "xsize": width, "ysize": height}
        | corners(height, width),
        "dataset1/what": dict(INTERVAL),
        "dataset1/data1/what": {"quantity": quantity, **attributes},
        "dataset1/data1/data": np.asarray(stored),
    }


def polar_layout(
    *, elevations: tuple[float, ...] = (0.5,), rays: int = 360, gates: int = 32, version: str = "2.3", **where: Any
) -> dict[str, Any]:
    """Return groups and attributes of a volume at 55 N 10 E with gates of 1 km; ``where`` is that of the first sweep.

    The stored value is 1 + 32 ray + gate in steps of 0.005 dBZ, see :func:`gate_at`; 65535 is nodata, 0 undetect.
    """
    stored = (1 + 32 * np.arange(rays)[:, None] + np.arange(gates)).astype(np.uint16)
    groups: dict[str, Any] = {
        "what": {"object": "PVOL", "date": "20241126", "time": "010000", "version": f"H5rad {version}"},
        "where": {"lon": 10.0, "lat": 55.0, "height": 100.0},
    }
    for number, elevation in enumerate(elevations, 1):
        groups[f"dataset{number}/what"] = {"product": "SCAN", **INTERVAL}
        groups[f"dataset{number}/where"] = {
            "elangle": elevation, "nrays": rays, "nbins": gates, "rscale": 1000.0, "rstart": 0.0, "a1gate": 0,
        }  # fmt: skip
        groups[f"dataset{number}/data1/what"] = {
            "quantity": "DBZH", "gain": 0.005, "offset": 0.0, "nodata": 65535.0, "undetect": 0.0,
        }  # fmt: skip
        groups[f"dataset{number}/data1/data"] = stored
    groups["dataset1/where"] |= where
    return groups


def gate_at(frame: RadarFrame, x: float, y: float) -> tuple[int, int] | None:
    """Return (ray, gate) that a frame of :func:`polar_layout` has at a position in km, None if missing."""
    value = frame.values[round((frame.grid.top / 1000 - y) - 0.5), round((x - frame.grid.left / 1000) - 0.5)]
    return None if np.isnan(value) else divmod(round(float(value) / 0.005) - 1, 32)


def write_layout(
    path: Path, groups: dict[str, Any], *, encode: Any = np.bytes_, conventions: str = "ODIM_H5/V2_3"
) -> Path:
    """Write groups of attributes and arrays; ``encode`` gives the form of strings."""
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = encode(conventions)
        for name, content in groups.items():
            if isinstance(content, np.ndarray):
                file.create_dataset(name, data=content)
                continue
            group = file.require_group(name)
            for key, value in content.items():
                group.attrs[key] = encode(value) if isinstance(value, str) else value
    return path
