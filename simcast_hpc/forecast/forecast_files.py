"""Write the files of one issue time: pictures first, then the data, whose presence marks a complete set."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from simcast_hpc.config import ConfigError
from simcast_hpc.storage.atomic_files import atomic_directory, atomic_file, remove

from .cf_dataset import as_dataset
from .predictor import Forecast

if TYPE_CHECKING:
    import xarray as xr

DATA = ("nc", "zarr")
PICTURES = ("png", "gif")
_NEEDS = {"nc": "h5netcdf", "zarr": "zarr"}
SIGNATURE = "simcast_signature"
Draw = Callable[[Forecast, Path], None]


def stem_of(issue: datetime) -> str:
    """Return the name of a forecast's files without the suffix: ``forecast_20240611T1205Z``."""
    return f"forecast_{issue:%Y%m%dT%H%MZ}"


@dataclass(frozen=True)
class Publisher:
    """Output folder and file kinds (``nc``, ``zarr``, ``png``, ``gif``) of forecasts; ``draw`` draws the pictures."""

    folder: Path
    kinds: tuple[str, ...]
    draw: Mapping[str, Draw] = field(default_factory=dict)
    institution: str = ""
    comment: str = ""

    def __post_init__(self) -> None:
        """Check that all kinds can be written.

        Raises:
            ConfigError: an unknown kind, only pictures, or a required package is not installed.
        """
        unknown = [kind for kind in self.kinds if kind not in DATA + PICTURES]
        if unknown or not set(self.kinds) & set(DATA):
            raise ConfigError(
                f"--write {' '.join(self.kinds) or '(nothing)'}: choose nc or zarr or both, and optionally png and gif"
            )
        for package in ("xarray", "pyproj", *(_NEEDS[kind] for kind in self.kinds if kind in _NEEDS)):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"writing forecasts needs {package}, which is not installed: "
                    "pip install -c constraints.txt -e '.[io]'"
                )

    def paths(self, issue: datetime) -> dict[str, Path]:
        """Return the files of an issue time by kind, in the order in which they are written."""
        order = [kind for kind in (*PICTURES, "zarr", "nc") if kind in self.kinds]
        return {kind: self.folder / f"{stem_of(issue)}.{kind}" for kind in order}

    def publish(self, forecast: Forecast) -> dict[str, Path]:
        """Write all files of a forecast atomically; return them by kind.

        Raises:
            OSError: one cannot be written.
        """
        dataset = as_dataset(forecast, institution=self.institution, comment=self.comment)
        paths = self.paths(forecast.issue)
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind, path in paths.items():
            if kind == "nc":
                write_netcdf(dataset, path)
            elif kind == "zarr":
                write_zarr(dataset, path)
            else:
                draw = self.draw[kind]
                with atomic_file(path) as temporary:
                    draw(forecast, temporary)
        return paths

    def signature(self, issue: datetime) -> str | None:
        """Return the signature stored in the data of an issue time; None if a file is absent or incomplete."""
        paths = self.paths(issue)
        try:
            if not all(path.exists() for path in paths.values()):
                return None
            signatures = {_signature(path) for kind, path in paths.items() if kind in DATA}
        except Exception:  # h5py does not document what it raises on a damaged file
            return None
        return signatures.pop() if len(signatures) == 1 else None

    def issues(self) -> list[datetime]:
        """Return the issue times that have files in the folder, ascending."""
        times = set()
        for path in self.folder.glob("forecast_*"):
            try:
                times.add(datetime.strptime(path.name.split(".")[0], "forecast_%Y%m%dT%H%MZ").replace(tzinfo=UTC))
            except ValueError:
                continue
        return sorted(times)

    def remove(self, issue: datetime) -> None:
        """Remove all files of an issue time, the data first."""
        for kind in (*DATA, *PICTURES):
            remove(self.folder / f"{stem_of(issue)}.{kind}")


def _signature(path: Path) -> str | None:
    """Return the signature in a netCDF file or a Zarr store; None if it is incomplete."""
    if path.suffix == ".zarr":  # its consolidated metadata is written last
        complete = (path / ".zmetadata").is_file()
        return json.loads((path / ".zattrs").read_text(encoding="utf-8")).get(SIGNATURE) if complete else None
    with h5py.File(path, "r") as file:
        return file.attrs.get(SIGNATURE) if "crs" in file else None


def write_netcdf(dataset: "xr.Dataset", path: Path) -> None:
    """Write a netCDF-4 file with lossless compression, atomically.

    Raises:
        OSError: it cannot be written; an older file keeps its content.
    """
    compressed = {"zlib": True, "complevel": 1, "shuffle": True}
    encoding = {
        name: {**variable.encoding, **(compressed if variable.ndim >= 2 else {})}
        for name, variable in dataset.variables.items()
    }
    with atomic_file(path) as temporary:
        dataset.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)


def write_zarr(dataset: "xr.Dataset", path: Path) -> None:
    """Write a Zarr store (format 2 with consolidated metadata, which all readers support), atomically.

    An older store of the name is renamed first: for a moment there is none.

    Raises:
        OSError: it cannot be written; an older store keeps its content.
    """
    encoding: dict[Any, Any] = {}
    for name, variable in dataset.variables.items():
        given = dict(variable.encoding)
        chunks = given.pop("chunksizes", None)
        encoding[name] = {**given, **({"chunks": chunks} if chunks else {})}
    plain = dataset.copy(deep=False)
    for variable in plain.variables.values():
        variable.encoding = {}
    with atomic_directory(path, replace=True) as temporary:
        plain.to_zarr(temporary, mode="w", zarr_format=2, consolidated=True, encoding=encoding)
