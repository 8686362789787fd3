"""ODIM composites of any legal layout, written with h5py for the tests of the reader."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyproj

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


def write_layout(path: Path, groups: dict[str, Any], *, encode: Any = np.bytes_) -> Path:
    """Write groups of attributes and arrays; ``encode`` gives the form of strings."""
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = encode("ODIM_H5/V2_3")
        for name, content in groups.items():
            if isinstance(content, np.ndarray):
                file.create_dataset(name, data=content)
                continue
            group = file.require_group(name)
            for key, value in content.items():
                group.attrs[key] = encode(value) if isinstance(value, str) else value
    return path
