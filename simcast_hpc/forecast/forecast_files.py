"""Write the files of one issue time: maps and series first, then the data, whose presence marks a complete set."""

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from simcast_hpc.config import ConfigError
from simcast_hpc.storage.atomic_files import atomic_directory, atomic_file, remove
from simcast_hpc.storage.hdf5_target import hdf5_target

from .cf_dataset import as_dataset
from .forecast_fields import Forecast
from .products.derived_fields import derive_fields, omitted_products
from .products.geotiff import write_geotiffs
from .products.odim_writer import write_odim_files
from .products.packing import packed
from .products.place_series import PlaceSettings, series_of, write_series_csv, write_series_geojson
from .products.product_settings import ProductSettings

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)
DATA = ("nc", "zarr")
PICTURES = ("png", "gif")
FOLDERS = ("cog", "overlay", "odim")  # one file per product and time
SERIES = ("csv", "geojson")
KINDS = (*PICTURES, *FOLDERS, *SERIES, "zarr", "nc")  # in the order in which they are written
_NEEDS = {
    "nc": "h5netcdf",
    "zarr": "zarr",
    "cog": "rasterio",
    "overlay": "rasterio",
    "csv": "shapely",
    "geojson": "shapely",
}
SIGNATURE = "simcast_signature"
Draw = Callable[[Forecast, Path], None]


def stem_of(issue: datetime) -> str:
    """Return the name of a forecast's files without the suffix: ``forecast_20240611T1205Z``."""
    return f"forecast_{issue:%Y%m%dT%H%MZ}"


@dataclass(frozen=True)
class Publisher:
    """Output folder, file kinds and products of forecasts.

    Attributes:
        folder: of the files.
        kinds: of ``KINDS``; at least ``nc`` or ``zarr``.
        draw: functions that write the kinds ``png`` and ``gif``.
        institution: attribute of the files.
        comment: attribute of the files.
        products: that are derived from every forecast.
        places: points and polygons of the series.
        draw_overlays: function that writes the kind ``overlay`` into a folder, that of ``report.map_overlay``.
    """

    folder: Path
    kinds: tuple[str, ...]
    draw: Mapping[str, Draw] = field(default_factory=dict)
    institution: str = ""
    comment: str = ""
    products: ProductSettings = field(default_factory=ProductSettings)
    places: PlaceSettings = field(default_factory=PlaceSettings)
    draw_overlays: Callable[..., None] | None = None

    def __post_init__(self) -> None:
        """Check that all kinds can be written.

        Raises:
            ConfigError: an unknown kind, neither nc nor zarr, series without places or places without series, or a
                required package is not installed.
        """
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not set(self.kinds) & set(DATA):
            others = ", ".join(kind for kind in KINDS if kind not in DATA)
            raise ConfigError(
                f"--write {' '.join(self.kinds) or '(nothing)'}: choose nc or zarr or both, and optionally {others}"
            )
        series = [kind for kind in SERIES if kind in self.kinds]
        if series and not self.places.places:
            raise ConfigError(f"--write {' '.join(series)} requires places: --points FILE or --polygons FILE")
        if self.places.places and not series:
            raise ConfigError("--points and --polygons require --write csv or --write geojson")
        for package in ("xarray", "pyproj", *(_NEEDS[kind] for kind in self.kinds if kind in _NEEDS)):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"writing forecasts needs {package}, which is not installed: "
                    "pip install -c constraints.txt -e '.[io]'"
                )

    def paths(self, issue: datetime) -> dict[str, Path]:
        """Return the files of an issue time by kind, in the order in which they are written."""
        return {kind: self.folder / f"{stem_of(issue)}.{kind}" for kind in KINDS if kind in self.kinds}

    @property
    def identity(self) -> str:
        """Settings that change the files, as text; empty for the default products and no places."""
        return self.products.identity + self.places.identity

    def publish(self, forecast: Forecast) -> dict[str, Path]:
        """Derive the products of a forecast and write all its files, each atomically; return them by kind.

        Raises:
            DataError: a product cannot be derived.
            OSError: a file cannot be written.
        """
        forecast = self.derive(forecast)
        dataset = as_dataset(
            forecast, institution=self.institution, comment=self.comment, members=self.products.members
        )
        dataset = packed(dataset) if self.products.dtype == "int16" else dataset
        paths = self.paths(forecast.issue)
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind, path in paths.items():
            if kind == "nc":
                write_netcdf(dataset, path)
            elif kind == "zarr":
                write_zarr(dataset, path)
            elif kind in FOLDERS:
                with atomic_directory(path, replace=True) as temporary:
                    self._write_folder(kind, forecast, temporary)
            elif kind in SERIES:
                with atomic_file(path) as temporary:
                    self._write_series(kind, forecast, temporary)
            else:
                with atomic_file(path) as temporary:
                    self.draw[kind](forecast, temporary)
        return paths

    def derive(self, forecast: Forecast) -> Forecast:
        """Return a forecast with its products; the attributes of a fallback name those that it cannot have.

        Raises:
            ConfigError: a product cannot be computed from forecasts of this model.
        """
        omitted = omitted_products(forecast, self.products)
        if omitted and not forecast.fallback:
            logger.warning("%s omitted: observed frames before the forecast are missing", omitted)
        provenance = {**forecast.provenance, **({"simcast_products_omitted": omitted} if omitted else {})}
        return replace(forecast, products=derive_fields(forecast, self.products), provenance=provenance)

    def _write_folder(self, kind: str, forecast: Forecast, folder: Path) -> None:
        if kind == "cog":
            write_geotiffs(forecast, folder, institution=self.institution)
        elif kind == "odim":
            write_odim_files(forecast, folder, institution=self.institution)
        else:
            assert self.draw_overlays is not None
            self.draw_overlays(
                forecast, folder, projection=self.products.overlay_projection, institution=self.institution
            )

    def _write_series(self, kind: str, forecast: Forecast, path: Path) -> None:
        rows = list(series_of(forecast, self.products, self.places))
        if kind == "csv":
            write_series_csv(path, rows)
        else:
            write_series_geojson(path, rows, forecast, self.places, institution=self.institution)

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
        for kind in reversed(KINDS):
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
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    with atomic_file(path) as temporary, hdf5_target(temporary) as target, h5netcdf.File(target, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file), encoding=encoding)


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
