"""A forecast as the files of one issue time: data, and pictures beside them; the data come last and mark the rest."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import h5py

from simcast_hpc.config import ConfigError
from simcast_hpc.storage.hidden_files import is_whole, remove, stem_of, write_by, write_netcdf, write_zarr

from .cf_dataset import as_dataset
from .predict_files import Forecast

DATA = ("nc", "zarr")
PICTURES = ("png", "gif")
_NEEDS = {"nc": "h5netcdf", "zarr": "zarr"}
SIGNATURE = "simcast_signature"
Draw = Callable[[Forecast, Path], None]


@dataclass(frozen=True)
class Publisher:
    """Where forecasts go and as what: ``kinds`` of ``nc``, ``zarr``, ``png``, ``gif``; ``draw`` makes the pictures."""

    folder: Path
    kinds: tuple[str, ...]
    draw: Mapping[str, Draw] = field(default_factory=dict)
    institution: str = ""
    comment: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be written.

        Raises:
            ConfigError: an unknown kind, pictures alone, or a package that writes them is not installed.
        """
        unknown = [kind for kind in self.kinds if kind not in DATA + PICTURES]
        if unknown or not set(self.kinds) & set(DATA):
            raise ConfigError(
                f"--write {' '.join(self.kinds) or '(nothing)'}: nc or zarr, and if wanted png and gif, are written"
            )
        for package in ("xarray", "pyproj", *(_NEEDS[kind] for kind in self.kinds if kind in _NEEDS)):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"forecasts are written by {package}, which is absent: pip install -c constraints.txt -e '.[io]'"
                )

    def paths(self, issue: datetime) -> dict[str, Path]:
        """Return the files of an issue time by kind, in the order in which they are written."""
        order = [kind for kind in (*PICTURES, "zarr", "nc") if kind in self.kinds]
        return {kind: self.folder / f"{stem_of(issue)}.{kind}" for kind in order}

    def publish(self, forecast: Forecast) -> dict[str, Path]:
        """Write all files of a forecast, each whole by a rename; return them by kind.

        Raises:
            OSError: one cannot be written.
        """
        dataset = as_dataset(forecast, institution=self.institution, comment=self.comment)
        paths = self.paths(forecast.issue)
        for kind, path in paths.items():
            if kind == "nc":
                write_netcdf(dataset, path)
            elif kind == "zarr":
                write_zarr(dataset, path)
            else:
                draw = self.draw[kind]
                write_by(path, lambda partial, draw=draw: draw(forecast, partial))
        return paths

    def signature(self, issue: datetime) -> str | None:
        """Return what the data of an issue time say they were made from; None where a file is absent or not whole."""
        paths = self.paths(issue)
        if not all(path.exists() for path in paths.values()):
            return None
        found = {_signature(path) for kind, path in paths.items() if kind in DATA and is_whole(path)}
        return found.pop() if len(found) == 1 else None

    def issues(self) -> list[datetime]:
        """Return the issue times of which files stand in the folder, ascending."""
        found = set()
        for path in self.folder.glob("forecast_*"):
            try:
                found.add(datetime.strptime(path.name.split(".")[0], "forecast_%Y%m%dT%H%MZ").replace(tzinfo=UTC))
            except ValueError:
                continue
        return sorted(found)

    def remove(self, issue: datetime) -> None:
        """Remove all files of an issue time, of whatever kind; the data first."""
        for kind in (*DATA, *PICTURES):
            remove(self.folder / f"{stem_of(issue)}.{kind}")


def _signature(path: Path) -> str | None:
    if path.suffix == ".zarr":
        return json.loads((path / ".zattrs").read_text(encoding="utf-8")).get(SIGNATURE)
    with h5py.File(path, "r") as file:
        return file.attrs.get(SIGNATURE)
