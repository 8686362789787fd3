"""A forecast as a CF data set: map, times, units, members, probabilities and provenance."""

import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config.text_files import printable

from .forecast_fields import Forecast
from .products.product_fields import RATE_NAMES, ProductField

if TYPE_CHECKING:
    import xarray as xr

CONVENTIONS = "CF-1.8"
_EPOCH = "seconds since 1970-01-01 00:00:00 UTC"
# Standard name (VIL has none) and units in the spelling of CF.
_QUANTITY: dict[str, tuple[str | None, str, str]] = {
    "mm/h": ("rainfall_rate", "mm h-1", "rain rate"),
    "dBZ": ("equivalent_reflectivity_factor", "dBZ", "radar reflectivity factor"),
    "kg/m^2": (None, "kg m-2", "vertically integrated liquid"),
    "mm": ("thickness_of_rainfall_amount", "mm", "rainfall amount"),
}
_BOUNDS = "bounds"  # dimension of the bounds of time intervals
# Number of rows whose longitudes and latitudes are computed together.
_ROWS = 256


def as_dataset(forecast: Forecast, *, institution: str = "", comment: str = "", members: bool = True) -> "xr.Dataset":
    """Return a forecast as an ``xarray.Dataset``, with encodings (compression, fill values) set.

    Dimensions: ``time`` (valid), ``y`` and ``x``, ``latitude`` and ``longitude`` or, on a rotated pole, ``rlat`` and
    ``rlon``, and of ensembles ``realization`` and ``threshold``. ``forecast_reference_time`` is the issue time,
    ``forecast_period`` the lead time in minutes. Accumulations have their own time dimensions, such as ``time_60min``,
    with bounds; see docs/reference/file-formats.md.

    Args:
        forecast: with its products.
        institution: attribute of the file.
        comment: attribute of the file.
        members: whether the members of an ensemble are included.
    """
    import xarray as xr

    space, coords, mapping = _map(forecast)
    coords |= _times(forecast)
    variables: dict[str, Any] = {"crs": ((), np.int32(0), mapping)}
    variables |= _fields(forecast, space, coords, members=members)
    for field in forecast.products:
        variables |= _product(forecast, field, space, coords)
    if forecast.inputs is not None and forecast.inputs.are_means:
        valid = coords["time"][1]
        variables["time_bounds"] = (("time", _BOUNDS), np.stack([valid - 60.0 * forecast.step_minutes, valid], 1))
        coords["time"][2]["bounds"] = "time_bounds"
    dataset = xr.Dataset(variables, coords, forecast_attributes(forecast, institution=institution, comment=comment))
    for name, variable in dataset.variables.items():
        variable.encoding.update(_encoding(str(name), variable))
    return dataset


def _fields(forecast: Forecast, space: tuple[str, str], coords: dict[str, Any], *, members: bool) -> dict[str, Any]:
    name, words = RATE_NAMES[forecast.unit], _QUANTITY[forecast.unit][2]
    common = _quantity(forecast, forecast.unit)
    is_ensemble = forecast.is_ensemble
    fields: dict[str, Any] = {}
    if forecast.validity is not None:
        fields["validity"] = _validity(forecast.validity, space)
        common["ancillary_variables"] = "validity"
    if forecast.values is not None and (members or not is_ensemble):
        dims = ("realization",) if is_ensemble else ()
        what = f"forecast {words}"
        field = forecast.values if is_ensemble else forecast.values[0]
        about = {"long_name": what, **common, "cell_methods": _over_time(forecast)}
        fields[name] = ((*dims, "time", *space), field, about)
        if is_ensemble:
            numbers = np.arange(len(forecast.values), dtype=np.int32)
            about = {"standard_name": "realization", "long_name": "member of the ensemble", "units": "1"}
            coords["realization"] = ("realization", numbers, about)
    if forecast.mean is not None:
        about = {"long_name": f"ensemble mean of the forecast {words}", **common, "cell_methods": _over_time(forecast)}
        fields[f"{name}_mean"] = (("time", *space), forecast.mean, about)
    if forecast.probability is not None:
        _add_thresholds(forecast, forecast.unit, forecast.thresholds, coords)
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


def _product(forecast: Forecast, field: ProductField, space: tuple[str, str], coords: dict[str, Any]) -> dict[str, Any]:
    """Return the variable of a product and the bounds of its windows, and add its coordinates to ``coords``."""
    # 1. Time
    time, variables = "time", {}
    if field.windows:
        time = f"time_{field.group}"
        variables[f"{time}_bounds"] = _add_windows(forecast, field, coords)
    # 2. Percentiles or thresholds
    dims: tuple[str, ...] = (time, *space)
    if field.statistic == "percentile":
        about = {"long_name": "percentile of the members", "units": "%"}
        coords["percentile"] = ("percentile", np.array(field.levels, np.float64), about)
        dims = ("percentile", *dims)
    elif field.levels:
        dims = (_add_thresholds(forecast, field.quantity_unit, field.levels, coords), *dims)
    # 3. Attributes
    if field.is_probability:
        about = {"long_name": field.long_name, "units": "1", "grid_mapping": "crs"}
    else:
        over_time = f"{time}: sum" if field.windows else _over_time(forecast)
        about = {
            "long_name": field.long_name,
            **_quantity(forecast, field.quantity_unit),
            "cell_methods": over_time,
        }
    variables[field.name] = (dims, field.values, about)
    return variables


def _add_windows(forecast: Forecast, field: ProductField, coords: dict[str, Any]) -> tuple[Any, ...]:
    """Add the end and lead time of windows to ``coords``; return the variable of their bounds."""
    time, leads = f"time_{field.group}", np.array(field.windows, np.float64)
    moments = forecast.issue.timestamp() + 60.0 * leads
    about = {"units": _EPOCH, "calendar": "standard", "bounds": f"{time}_bounds", "axis": "T"}
    coords[time] = (time, moments[:, 1], {"standard_name": "time", "long_name": "end of the accumulation", **about})
    about = {"standard_name": "forecast_period", "long_name": "end of the accumulation after the issue"}
    coords[f"forecast_period_{field.group}"] = (time, leads[:, 1], {**about, "units": "minutes"})
    return (time, _BOUNDS), moments


def _add_thresholds(forecast: Forecast, unit: str, levels: tuple[float, ...], coords: dict[str, Any]) -> str:
    """Add the thresholds of a quantity to ``coords``; return their dimension."""
    name = "amount_threshold" if unit == "mm" else "threshold"
    standard, units, words = _QUANTITY[unit]
    about = {"long_name": f"threshold of the {words}", "units": units}
    values = np.array(levels, dtype=np.float64)
    coords[name] = (name, values, about | ({} if standard is None else {"standard_name": standard}))
    if unit == "dBZ" and forecast.z_r is not None:
        a, b = forecast.z_r.a, forecast.z_r.b
        about = {
            "long_name": f"rain rate of the threshold by Z = {a:g} R^{b:g}",
            "standard_name": "rainfall_rate",
            "units": "mm h-1",
        }
        coords["threshold_rate"] = (name, (10.0 ** (values / 10.0) / a) ** (1.0 / b), about)
    return name


def _quantity(forecast: Forecast, unit: str) -> dict[str, Any]:
    standard, units, _ = _QUANTITY[unit]
    common: dict[str, Any] = {"units": units, "grid_mapping": "crs"}
    if standard is not None:
        common["standard_name"] = standard
    if unit == "dBZ":
        common["comment"] = f"no echo is {forecast.no_echo_dbz:g} dBZ; averages are of the linear Z"
    if unit == "mm" and forecast.unit == "dBZ" and forecast.z_r is not None:
        common["comment"] = f"rain rates by Z = {forecast.z_r.a:g} R^{forecast.z_r.b:g}"
    return common


def _over_time(forecast: Forecast) -> str:
    return "time: mean" if forecast.inputs is not None and forecast.inputs.are_means else "time: point"


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


def forecast_attributes(forecast: Forecast, *, institution: str, comment: str = "") -> dict[str, str]:
    """Return the attributes of the files of a forecast: source, license, attribution, provenance."""
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
    if variable.dims[-1] == _BOUNDS:
        return {"_FillValue": None}
    rows, columns = variable.shape[-2:]
    chunks = (*(1 for _ in variable.shape[:-2]), min(rows, 512), min(columns, 512))
    has_no_fill = name in ("latitude", "longitude") or variable.dtype.kind != "f"
    filled = {"_FillValue": None if has_no_fill else np.float32(np.nan)}
    return {**filled, "chunksizes": chunks}
