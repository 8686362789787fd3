"""Polar volumes and sweeps (ODIM HDF5): named, and refused with what is needed in their place."""

from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import h5py

from simcast_hpc.data.spec import DataError

from .frame import RadarFrame, Unit


def times(path: Path) -> list[datetime]:
    """Refuse a polar file.

    Raises:
        DataError: always; says which radar and how many sweeps.
    """
    _refuse(path)


def frames(path: Path, _prefer: Unit) -> list[RadarFrame]:
    """Refuse a polar file.

    Raises:
        DataError: always; says which radar and how many sweeps.
    """
    _refuse(path)


def _refuse(path: Path) -> NoReturn:
    with h5py.File(path, "r") as file:
        held: Any = file
        source = held["what"].attrs.get("source", b"an unnamed radar")
        sweeps = sum(str(name).startswith("dataset") for name in held)
    source = source.decode() if isinstance(source, bytes) else str(source)
    raise DataError(
        f"{path} is a polar file of one radar ({source}, {sweeps} sweeps); a forecast needs a Cartesian composite. "
        "Make one of the volumes (for example with wradlib or BALTRAD) and write it as ODIM COMP or CF netCDF"
    )
