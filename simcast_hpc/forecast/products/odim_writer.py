"""Write a forecast as ODIM HDF5 composites (OPERA data information model 2.4): one file per quantity and time.

Rates are written as RATE, reflectivity as DBZH, accumulations as ACRR with the start and end of their window. The
nominal time of a file is the valid time; ``how/simcast_issue_time`` is the issue time. Values are float32, so that a
reader gets exactly those of the netCDF file. ODIM has no quantity for probabilities and vertically integrated liquid,
which are not written.
"""

import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc import __version__
from simcast_hpc.config import ConfigError
from simcast_hpc.forecast.cf_dataset import forecast_attributes
from simcast_hpc.forecast.forecast_fields import Forecast
from simcast_hpc.radar.radar_frame import RadarGrid
from simcast_hpc.storage.hdf5_target import hdf5_target

from .geotiff import layer_tags
from .product_fields import ProductLayer, fields_of, layers_of

_QUANTITIES = {"mm/h": "RATE", "dBZ": "DBZH", "mm": "ACRR"}
NODATA, UNDETECT = -9999000.0, -8888000.0
_ORIGIN = "ORG:0"  # no originating center of WMO is known


def check_odim(unit: str) -> None:
    """Check that forecasts in a unit can be written.

    Raises:
        ConfigError: they cannot.
    """
    if unit not in _QUANTITIES:
        raise ConfigError(f"--write odim requires a model in mm/h or dBZ; ODIM has no quantity in {unit}")


def write_odim_files(forecast: Forecast, folder: Path, *, institution: str = "") -> None:
    """Write the layers of a forecast that ODIM can express into a folder, such as ``rainfall_rate_005min.h5``.

    Raises:
        ConfigError: the unit or the projection cannot be expressed.
        OSError: a file cannot be written.
    """
    check_odim(forecast.unit)
    where = grid_attributes(forecast.grid)
    attributes = forecast_attributes(forecast, institution=institution)
    are_means = forecast.inputs is not None and forecast.inputs.are_means
    for field in fields_of(forecast):
        if field.unit not in _QUANTITIES:
            continue
        for layer in layers_of(forecast, field):
            how = {**attributes, **{f"simcast_{key}": text for key, text in layer_tags(forecast, layer).items()}}
            write_odim_file(folder / f"{layer.stem}.h5", _groups(forecast, layer, where, how, are_means=are_means))


def write_odim_file(path: Path, groups: dict[str, dict[str, Any] | np.ndarray]) -> None:
    """Write groups of attributes, and data, to an HDF5 file with the attribute ``Conventions``."""
    with hdf5_target(path) as target, h5py.File(target, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        for name, content in groups.items():
            if isinstance(content, np.ndarray):
                data = file.create_dataset(name, data=content, compression="gzip", compression_opts=6, shuffle=True)
                data.attrs["CLASS"], data.attrs["IMAGE_VERSION"] = np.bytes_("IMAGE"), np.bytes_("1.2")
                continue
            group = file.require_group(name)
            for key, value in content.items():
                group.attrs[key] = np.bytes_(value.encode("utf-8")) if isinstance(value, str) else value


def _groups(
    forecast: Forecast, layer: ProductLayer, where: dict[str, Any], how: dict[str, str], *, are_means: bool
) -> dict[str, Any]:
    field, end = layer.field, layer.valid
    start = _start_of(forecast, layer, are_means=are_means)
    quantity = _QUANTITIES[field.unit]
    no_echo = layer.values <= np.float32(forecast.no_echo_dbz) if quantity == "DBZH" else layer.values == 0
    stored = np.where(np.isnan(layer.values), np.float32(NODATA), layer.values).astype(np.float32)
    stored[no_echo] = np.float32(UNDETECT)
    # RR is an accumulation, or a mean rate over an interval; SURF and COMP are fields at a time.
    product = "RR" if start < end else "SURF" if quantity == "RATE" else "COMP"
    return {
        "what": {"object": "COMP", "version": "H5rad 2.4", **_moment("", end), "source": _source(how)},
        "where": where,
        "how": {**how, "software": "SimCast-HPC", "sw_version": __version__},
        "dataset1/what": {"product": product, **_moment("start", start), **_moment("end", end)},
        "dataset1/data1/what": {
            "quantity": quantity,
            "gain": 1.0,
            "offset": 0.0,
            "nodata": NODATA,
            "undetect": UNDETECT,
        },
        "dataset1/data1/data": stored,
    }


def _start_of(forecast: Forecast, layer: ProductLayer, *, are_means: bool) -> datetime:
    """Return the start of the window or of the mean rate of a layer; the valid time of an instantaneous field."""
    if layer.start is not None:
        return layer.start
    is_rate = layer.field.unit == "mm/h" and are_means
    return layer.valid - timedelta(minutes=forecast.step_minutes) if is_rate else layer.valid


def _moment(prefix: str, moment: datetime) -> dict[str, str]:
    return {f"{prefix}date": f"{moment:%Y%m%d}", f"{prefix}time": f"{moment:%H%M%S}"}


def _source(how: dict[str, str]) -> str:
    institution = how["institution"].replace(",", " ")
    return f"{_ORIGIN},CMT:{institution}"


def grid_attributes(grid: RadarGrid) -> dict[str, Any]:
    """Return the attributes of ``where``: projection, pixels, and the outer corners in degrees.

    Raises:
        ConfigError: the projection has no PROJ string, or is a rotated pole.
    """
    import pyproj

    definition = grid.projection if grid.projection.startswith("+") else _proj_string(grid.projection)
    crs = pyproj.CRS.from_user_input(definition)
    if "+proj=ob_tran" in definition or (crs.is_geographic and crs.is_derived):
        raise ConfigError("--write odim: ODIM has no composites on a rotated pole; write nc")
    to_map = pyproj.Proj(definition)
    where = {
        "projdef": definition,
        "xsize": grid.width,
        "ysize": grid.height,
        "xscale": float(grid.spacing_x),
        "yscale": float(grid.spacing_y),
    }
    right, bottom = grid.left + grid.spacing_x * grid.width, grid.top - grid.spacing_y * grid.height
    corners = {"UL": (grid.left, grid.top), "UR": (right, grid.top), "LL": (grid.left, bottom), "LR": (right, bottom)}
    for name, (x, y) in corners.items():
        longitude, latitude = (x, y) if crs.is_geographic else to_map(x, y, inverse=True)
        where[f"{name}_lon"], where[f"{name}_lat"] = float(longitude), float(latitude)
    return where


def _proj_string(projection: str) -> str:
    """Return a projection as a PROJ string.

    Raises:
        ConfigError: a PROJ string cannot express it.
    """
    import pyproj
    from pyproj.exceptions import CRSError

    crs = pyproj.CRS.from_user_input(projection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is lost is checked below
        definition = crs.to_proj4()
    try:
        same = bool(definition) and pyproj.CRS.from_user_input(definition).equals(crs, ignore_axis_order=True)
        same = same or _agree(crs, pyproj.CRS.from_user_input(definition))
    except CRSError:
        same = False
    if not same:
        raise ConfigError(f"--write odim: a PROJ string cannot express the projection {projection!r}; write nc")
    return definition


def _agree(first: Any, second: Any) -> bool:
    """Return whether two projections map points around the earth to the same place within a meter."""
    import pyproj

    longitude, latitude = np.meshgrid(np.linspace(-170, 170, 18), np.linspace(-60, 80, 15))
    places = [pyproj.Proj(crs)(longitude, latitude) for crs in (first, second)]
    distance = np.abs(np.asarray(places[0]) - np.asarray(places[1]))
    finite = np.isfinite(distance)
    return bool(finite.any() and distance[finite].max() < 1.0)
