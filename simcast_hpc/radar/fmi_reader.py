"""Reader of FMI's 8-bit PGM composites (Finnish Meteorological Institute), plain or gzipped, using pysteps."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from simcast_hpc.config import DataError

from .odim_grid import grid_of_pysteps
from .radar_frame import FieldChoice, RadarFrame

_NO_ECHO_DBZ = -32.0  # pixel 0
_HEADER_BYTES = 8192


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the observation time of the header."""
    text = _header(path).get("obstime", "")
    try:
        return [datetime.strptime(text, "%Y%m%d%H%M").replace(tzinfo=UTC)]
    except ValueError as error:
        raise DataError(f"{path}: obstime={text!r} in the header is not of the form YYYYmmddHHMM") from error


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the reflectivity: dBZ = pixel / 2 - 32, pixel 0 is no echo, 255 missing."""
    from pysteps.io.importers import import_fmi_pgm

    (time,) = times(path, _choice)
    header = _header(path)
    if "reflectivity" not in header.get("param", "").lower():
        raise DataError(f"{path}: param={header.get('param')!r} in the header is not a reflectivity")
    values, _, metadata = import_fmi_pgm(str(path), gzipped=_is_gzipped(path), dtype="float32")
    values[values <= _NO_ECHO_DBZ] = -np.inf
    grid = grid_of_pysteps(path, values, metadata)
    return [RadarFrame(values, "dBZ", time, grid, path, {"format": "FMI PGM", "quantity": header["param"]})]


def _header(path: Path) -> dict[str, str]:
    with gzip.open(path) if _is_gzipped(path) else path.open("rb") as file:
        lines = file.read(_HEADER_BYTES).split(b"\n")
    words = [line[1:].decode("ascii", "replace").split(maxsplit=1) for line in lines if line.startswith(b"#")]
    return {word[0]: word[1].strip() for word in words if len(word) == 2}


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
