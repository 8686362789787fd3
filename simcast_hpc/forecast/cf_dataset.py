"""A forecast as a CF data set: map, times, units, members, probabilities and provenance."""

import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config.text_files import printable

from .predictor import Forecast

if TYPE_CHECKING:
    import xarray as xr

CONVENTIONS = "CF-1.8"
_EPOCH = "seconds since 1970-01-01 00:00:00 UTC"
# Name, standard name (VIL has none) and units in the spelling of CF.
_QUANTITY: dict[str, tuple[str, str | None, str, str]] = {
    "mm/h": ("rainfall_rate", "rainfall_rate", "mm h-1", "rain rate"),
    "dBZ": ("reflectivity", "equivalent_reflectivity_factor", "dBZ", "radar reflectivity factor"),
    "kg/m^2": ("vertically_integrated_liquid", None, "kg m-2", "vertically integrated liquid"),
}
# Number of rows whose longitudes and latitudes are computed together.
_ROWS = 256


def as_dataset(forecast: Forecast, *, institution: str = "", comment: str = "") -> "xr.Dataset":
    """Return a forecast as an ``xarray.Dataset``, with encodings (compression, fill values) set.

    Dimensions: ``time`` (valid), ``y`` and ``x``, ``latitude`` and ``longitude`` or, on a rotated pole, ``rlat`` and
    ``rlon``, and of ensembles ``realization`` and ``threshold``. ``forecast_reference_time`` is the issue time,
    ``forecast_period`` the lead time in minutes.
    """
    import xarray as xr

    space, coords, mapping = _map(forecast)
    coords |= _times(forecast)
    variables: dict[str, Any] = {"crs": ((), np.int32(0), mapping)}
    variables |= _fields(forecast, space, coords)
    dataset = xr.Dataset(variables, coords, _attributes(forecast, institution=institution, comment=comment))
    for name, variable in dataset.variables.items():
        variable.encoding.update(_encoding(str(name), variable))
    return dataset


def _fields(forecast: Forecast, space: tuple[str, str], coords: dict[str, Any]) -> dict[str, Any]:
    name, standard, units, words = _QUANTITY[forecast.unit]
    common: dict[str, Any] = {"units": units, "grid_mapping": "crs"}
    if standard is not None:
        common["standard_name"] = standard
    if forecast.unit == "dBZ":
        common["comment"] = f"no echo is {forecast.no_echo_dbz:g} dBZ; averages are of the linear Z"
    is_ensemble = forecast.mean is not None
    fields: dict[str, Any] = {}
    if forecast.validity is not None:
        fields["validity"] = _validity(forecast.validity, space)
        common["ancillary_variables"] = "validity"
    if forecast.values is not None:
        dims = ("realization",) if is_ensemble else ()
        what = f"forecast {words}"
        field = forecast.values if is_ensemble else forecast.values[0]
        fields[name] = ((*dims, "time", *space), field, {"long_name": what, **common})
        if is_ensemble:
            numbers = np.arange(len(forecast.values), dtype=np.int32)
            about = {"standard_name": "realization", "long_name": "member of the ensemble", "units": "1"}
            coords["realization"] = ("realization", numbers, about)
    if forecast.mean is not None:
        about = {"long_name": f"ensemble mean of the forecast {words}", **common}
        fields[f"{name}_mean"] = (("time", *space), forecast.mean, about)
    if forecast.probability is not None:
        about = {"long_name": f"threshold of the {words}", "units": units}
        if standard is not None:
            about["standard_name"] = standard
        coords["threshold"] = ("threshold", np.array(forecast.thresholds, dtype=np.float64), about)
        about = {
            "long_name": f"probability that the {words} reaches the threshold",
            "units": "1",
            "grid_mapping": "crs",
        }
        fields["probability_of_exceedance"] = (("threshold", "time", *space), forecast.probability, about)
    return fields


def _validity(validity: np.ndarray, space: tuple[str, str]) -> tuple[Any, ...]:
    about = {
        "long_name": "whether the back-trajectory of the pixel starts in the observed area",
        "standard_name": "quality_flag",
        "flag_values": np.array([0, 1], np.int8),
        "flag_meanings": "inflow_from_unobserved_area determined_by_observations",
        "grid_mapping": "crs",
    }
    return ("time", *space), validity.astype(np.int8), about


def _times(forecast: Forecast) -> dict[str, Any]:
    valid = np.array([moment.timestamp() for moment in forecast.valid])
    about = {"units": _EPOCH, "calendar": "standard"}
    return {
        "time": ("time", valid, {"standard_name": "time", "long_name": "valid time", "axis": "T", **about}),
        "forecast_reference_time": (
            (),
            np.float64(forecast.issue.timestamp()),
            {"standard_name": "forecast_reference_time", "long_name": "issue time", **about},
        ),
        "forecast_period": (
            "time",
            np.array(forecast.leads_minutes, dtype=np.float64),
            {"standard_name": "forecast_period", "long_name": "time after the issue", "units": "minutes"},
        ),
    }


def _map(forecast: Forecast) -> tuple[tuple[str, str], dict[str, Any], dict[str, Any]]:
    """Return the names of the map's dimensions, its coordinates and the attributes of the grid mapping."""
    import pyproj

    grid = forecast.grid
    crs = pyproj.CRS.from_user_input(grid.projection)
    mapping = _mapping(crs)
    if grid.projection.startswith("+"):
        mapping["proj4"] = grid.projection
    latitude = {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"}
    longitude = {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"}
    # 1. Axes of latitude and longitude
    is_rotated = crs.is_geographic and crs.is_derived
    if grid.unit == "degree" and not is_rotated:
        coords = {
            "latitude": ("latitude", grid.y, {**latitude, "axis": "Y"}),
            "longitude": ("longitude", grid.x, {**longitude, "axis": "X"}),
        }
        return ("latitude", "longitude"), coords, mapping
    # 2. Positions of every pixel
    base = crs.source_crs if is_rotated else crs.geodetic_crs  # that of a rotated pole is not rotated
    to_degrees = pyproj.Transformer.from_crs(crs, base or "EPSG:4326", always_xy=True)
    east = np.empty(grid.shape, np.float32)
    north = np.empty(grid.shape, np.float32)
    for begin in range(0, grid.height, _ROWS):
        rows = slice(begin, begin + _ROWS)
        x, y = np.meshgrid(grid.x, grid.y[rows])
        east[rows], north[rows] = to_degrees.transform(x, y)
    # 3. Axes of a rotated pole or of a map
    if is_rotated:
        about = {"units": "degrees", "long_name": "coordinate of the rotated pole"}
        return (
            ("rlat", "rlon"),
            {
                "rlat": ("rlat", grid.y, {"standard_name": "grid_latitude", "axis": "Y", **about}),
                "rlon": ("rlon", grid.x, {"standard_name": "grid_longitude", "axis": "X", **about}),
                "latitude": (("rlat", "rlon"), north, latitude),
                "longitude": (("rlat", "rlon"), east, longitude),
            },
            mapping,
        )
    words = "coordinate of projection"
    coords = {
        "y": ("y", grid.y, _length("projection_y_coordinate", f"y {words}", "Y")),
        "x": ("x", grid.x, _length("projection_x_coordinate", f"x {words}", "X")),
        "latitude": (("y", "x"), north, latitude),
        "longitude": (("y", "x"), east, longitude),
    }
    return ("y", "x"), coords, mapping


def _mapping(crs: Any) -> dict[str, Any]:
    """Return the attributes of a grid mapping by pyproj, completed for two projections."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what CF cannot express of a projection is in crs_wkt
        mapping = {key: value for key, value in crs.to_cf().items() if value is not None}
    if mapping.get("grid_mapping_name") == "polar_stereographic":
        # Appendix F requires the pole as well as the parallel of true scale.
        north = mapping.get("standard_parallel", 90.0) >= 0
        mapping.setdefault("latitude_of_projection_origin", 90.0 if north else -90.0)
    if mapping.get("grid_mapping_name") == "oblique_mercator":
        # The checker asks for this name, the convention for azimuth_of_central_line.
        mapping.setdefault("azimuth", mapping.get("azimuth_of_central_line", 90.0))
    return mapping


def _length(standard: str, words: str, axis: str) -> dict[str, str]:
    return {"standard_name": standard, "long_name": words, "units": "m", "axis": axis}


def _attributes(forecast: Forecast, *, institution: str, comment: str) -> dict[str, str]:
    provenance = forecast.provenance
    history = (
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: simcast predict {provenance.get('simcast_version', '')}".rstrip()
    )
    model = provenance.get("simcast_stage", "model")
    attributes = {
        "Conventions": CONVENTIONS,
        "title": f"Radar nowcast issued {forecast.issue:%Y-%m-%d %H:%M} UTC",
        "source": f"SimCast-HPC, {model} {provenance.get('simcast_run', '')}".rstrip(),
        "history": history,
        "references": "SimCast (arXiv 2510.07953); CasCast (Gong et al. 2024, ICML)",
        "institution": institution or "not given",
        **provenance,
    }
    attributes |= {"comment": comment} if comment else {}
    return {key: printable(text) for key, text in attributes.items()}  # netCDF rejects invalid UTF-8


def _encoding(name: str, variable: "xr.Variable") -> dict[str, Any]:
    if variable.ndim < 2:
        return {"_FillValue": None}
    rows, columns = variable.shape[-2:]
    chunks = (*(1 for _ in variable.shape[:-2]), min(rows, 512), min(columns, 512))
    has_no_fill = name in ("latitude", "longitude") or variable.dtype.kind != "f"
    filled = {"_FillValue": None if has_no_fill else np.float32(np.nan)}
    return {**filled, "chunksizes": chunks}
