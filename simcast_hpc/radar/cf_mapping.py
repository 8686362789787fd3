"""Grid mappings of CF files: the attributes of the conventions, and projection strings and WKT in addition to them."""

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError

from .projection_text import check_projection

if TYPE_CHECKING:
    import pyproj
    import xarray as xr

logger = logging.getLogger(__name__)
_TEXTS = ("proj4", "proj4_params", "proj4text", "crs_wkt", "spatial_ref")
_PARAMETER = re.compile(
    r"(grid_north_pole|north_pole_grid|latitude_of|longitude_of|standard_parallel|scale_factor_at|false_|azimuth_of|"
    r"straight_vertical|perspective_point).*"
)
_ELLIPSOID = {"earth_radius", "semi_major_axis", "semi_minor_axis", "inverse_flattening"}
# Attributes of which one replaces the others.
_ALTERNATIVES = (
    {"straight_vertical_longitude_from_pole", "longitude_of_projection_origin", "longitude_of_central_meridian"},
    {"standard_parallel", "scale_factor_at_projection_origin", "scale_factor_at_central_meridian"},
    _ELLIPSOID,
)
_LONGITUDE, _CENTRAL = "longitude_of_projection_origin", "longitude_of_central_meridian"
_ORIGIN = f"latitude_of_projection_origin {_LONGITUDE}"
_PARALLEL_OR_SCALE = "standard_parallel|scale_factor_at_projection_origin"
_CONIC = f"standard_parallel {_CENTRAL} latitude_of_projection_origin"
# pyproj takes 0 for a missing origin. A false origin may be absent; that of a polar projection is a pole.
_REQUIRED = {
    "albers_conical_equal_area": _CONIC,
    "azimuthal_equidistant": _ORIGIN,
    "geostationary": f"{_LONGITUDE} perspective_point_height",
    "lambert_azimuthal_equal_area": _ORIGIN,
    "lambert_conformal_conic": _CONIC,
    "lambert_cylindrical_equal_area": f"{_CENTRAL} {_PARALLEL_OR_SCALE}",
    "mercator": f"{_LONGITUDE} {_PARALLEL_OR_SCALE}",
    "oblique_mercator": f"azimuth_of_central_line {_ORIGIN} scale_factor_at_projection_origin",
    "orthographic": _ORIGIN,
    "polar_stereographic": f"straight_vertical_longitude_from_pole|{_LONGITUDE} {_PARALLEL_OR_SCALE}",
    "rotated_latitude_longitude": "grid_north_pole_latitude grid_north_pole_longitude",
    "sinusoidal": f"{_LONGITUDE}|{_CENTRAL}",
    "stereographic": f"{_ORIGIN} scale_factor_at_projection_origin",
    "transverse_mercator": f"{_CENTRAL} latitude_of_projection_origin scale_factor_at_central_meridian",
    "vertical_perspective": f"{_ORIGIN} perspective_point_height",
}
_HEIGHTS = {"geoid_name", "geopotential_datum_name", "geoid_model"}  # name a grid of the geoid, a file
_TOLERANCE = 0.01  # of a pixel
_METERS_PER_DEGREE = 111_195.0
# CRS, text and contradicted attribute by the digest of grid mapping and axes.
_known: "dict[bytes, tuple[pyproj.CRS, str, str]]" = {}
_MAX_KNOWN = 16


def read_mapping(
    dataset: "xr.Dataset", field: "xr.DataArray", axes: tuple[str, str], scale: float, path: Path
) -> "tuple[pyproj.CRS | None, str]":
    """Return the CRS of the grid mapping and its PROJ string or WKT; None and an empty string without one.

    If the attributes of CF contradict a PROJ string or WKT, they have priority, as CF defines, with a warning.

    Args:
        dataset: the file.
        field: with ``grid_mapping``.
        axes: the dimensions of rows and columns.
        scale: meters per unit of the axes; 1 for degrees.
        path: named in messages.

    Raises:
        DataError: the grid mapping is absent, unknown or incomplete.
    """
    # 1. Attributes
    stated = str(field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping") or "")
    if not stated.strip():
        return None, ""
    name = (mapping_name(stated, axes) or "").rpartition("/")[2]  # a path, if variables are in groups
    if name not in dataset.variables:
        raise DataError(f"{path}: the grid_mapping {stated!r} of {field.name} names no variable of the file for {axes}")
    attributes = {key: value for key, value in dataset[name].attrs.items() if key not in _HEIGHTS}
    y, x = (np.asarray(dataset.coords[axis].values, np.float64).ravel() * scale for axis in axes)
    # 2. Projection; the files of an archive have the same, and PROJ needs milliseconds for each
    content = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in attributes.items()}
    key = hashlib.sha256(repr((sorted(content.items(), key=str), scale)).encode() + y.tobytes() + b":" + x.tobytes())
    if (known := _known.get(key.digest())) is None:
        known = _projection(attributes, y, x, scale, name, path)
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[key.digest()] = known
    crs, projection, contradicted = known
    if contradicted:
        logger.warning(
            "%s: %s contradicts the attributes of %s, which are used, as CF defines", path, contradicted, name
        )
    return crs, projection


def _projection(
    attributes: dict[str, Any], y: np.ndarray, x: np.ndarray, scale: float, name: str, path: Path
) -> "tuple[pyproj.CRS, str, str]":
    """Return the CRS, its text, and the attribute with a PROJ string or WKT that those of CF contradict, or empty."""
    import pyproj

    # 1. Attributes; those of a false origin are in the unit of the axes, and pyproj reads them in meters
    single = {key: value for key, value in attributes.items() if key not in _TEXTS}
    texts = {key: str(attributes[key]) for key in _TEXTS if str(attributes.get(key, "")).strip()}
    for key, projection in texts.items():
        check_projection(projection, path, field=f"{name}:{key}")
    text = next(iter(texts), None)
    _check_parameters(single, f"{path}: {name}", is_complete=not texts)
    try:
        for key in {"false_easting", "false_northing"} & set(single):
            single[key] = float(np.asarray(single[key]).item()) * scale
        if text is None:
            crs = pyproj.CRS.from_cf(single)
            return crs, crs.to_wkt(), ""
        crs = pyproj.CRS.from_user_input(texts[text])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        what = f"{text} of the grid_mapping {name}" if text else f"grid_mapping {name}"
        raise DataError(
            f"{path}: the {what} is not supported or not complete ({type(error).__name__}: {error}); the attributes of "
            "a grid_mapping_name of CF, or crs_wkt, are valid"
        ) from error
    projection = texts[text] if text.startswith("proj4") else crs.to_wkt()
    # 2. Comparison with PROJ string or WKT
    own = _of_attributes(single, crs)
    if own is not None and not _agree(own, pyproj.CRS.from_user_input(in_meters(crs, projection)), y, x):
        return own, own.to_wkt(), text
    return crs, projection, ""


def _check_parameters(single: dict[str, Any], where: str, *, is_complete: bool) -> None:
    """Check that the parameters of a mapping are numbers, and that those of Appendix F of CF exist.

    Raises:
        DataError: one is not a number, or is absent although there is no PROJ string or WKT.
    """
    for key, value in single.items():
        numbers = np.asarray(value)
        is_number = numbers.dtype.kind in "iuf" and numbers.size and np.isfinite(numbers).all()
        if (_PARAMETER.fullmatch(key) or key in _ELLIPSOID) and not is_number:
            raise DataError(f"{where}: {key} is {value!r}; it must be a number")
    mapping = str(single.get("grid_mapping_name", ""))
    required = _REQUIRED.get(mapping, "").split() if is_complete else []
    absent = [words.replace("|", " or ") for words in required if not set(words.split("|")) & set(single)]
    if absent:
        raise DataError(f"{where}: the grid_mapping_name {mapping} needs {', '.join(absent)}")


def mapping_name(text: str, axes: tuple[str, str]) -> str | None:
    """Return the grid mapping for ``axes`` from ``crs`` or the extended form ``crs: x y other: lat lon``."""
    if ":" not in text:
        return text.strip()
    parts = re.findall(r"(\S+?)\s*:((?:\s+[^\s:]+(?!\S*\s*:))*)", text)
    matching = [name for name, coordinates in parts if set(axes) <= set(coordinates.split())]
    # Names without coordinates apply to all.
    return next(iter(matching or [name for name, coordinates in parts if not coordinates.split()]), None)


def in_meters(crs: "pyproj.CRS", projection: str) -> str:
    """Return a projection with coordinates in meters. The false origin of PROJ strings is in meters for any unit."""
    import pyproj

    if not crs.is_projected or all(axis.unit_conversion_factor == 1.0 for axis in crs.axis_info[:2]):
        return projection
    if "+proj=" in projection:
        return re.sub(r"\+(units|to_meter)=\S+", "", projection).strip() + " +units=m"
    content = crs.to_json_dict()
    for axis in content["coordinate_system"]["axis"]:
        axis["unit"] = "metre"
    content.pop("id", None)
    return pyproj.CRS.from_json_dict(content).to_wkt()


def _of_attributes(single: dict[str, Any], crs: "pyproj.CRS") -> "pyproj.CRS | None":
    """Return the CRS of the attributes, completed by that of the text; None if they define none."""
    import pyproj

    if not any(_PARAMETER.fullmatch(key) or key in _ELLIPSOID for key in single) or "grid_mapping_name" not in single:
        return None
    try:
        known = crs.to_cf()
        is_same = known.get("grid_mapping_name") == single["grid_mapping_name"]
        to_meters = crs.axis_info[0].unit_conversion_factor if crs.is_projected else 1.0
        completed = {
            key: value for key, value in single.items() if _PARAMETER.fullmatch(key) or not isinstance(value, str)
        }
        completed["grid_mapping_name"] = single["grid_mapping_name"]
        for key, value in known.items():
            given = next((group for group in _ALTERNATIVES if key in group), {key}) & set(single)
            is_flattening = key == "inverse_flattening" and given == {"semi_major_axis"}
            if (not given or is_flattening) and (key in _ELLIPSOID or (is_same and _PARAMETER.fullmatch(key))):
                completed[key] = value * to_meters if key.startswith("false_") else value
        return pyproj.CRS.from_cf(completed)
    except (RuntimeError, KeyError, TypeError, ValueError):
        return None


def _agree(own: "pyproj.CRS", other: "pyproj.CRS", y: np.ndarray, x: np.ndarray) -> bool:
    """Return whether two CRS place the corners of the grid within a hundredth of a pixel of each other."""
    import pyproj

    if own.is_projected != other.is_projected:
        return False
    if not own.is_projected and not own.is_derived and not other.is_derived:
        numbers = [
            (one.ellipsoid.semi_major_metre, one.ellipsoid.semi_minor_metre, one.prime_meridian.longitude)
            for one in (own, other)
            if one.ellipsoid is not None and one.prime_meridian is not None
        ]
        return len(numbers) < 2 or bool(np.allclose(*numbers, rtol=0, atol=0.5))
    if not x.size or not y.size:
        return True
    columns, rows = np.meshgrid(x[[0, x.size // 2, -1]], y[[0, y.size // 2, -1]])
    first, second = (
        np.array(pyproj.Transformer.from_crs(one, one.geodetic_crs, always_xy=True).transform(columns, rows))
        for one in (own, other)
    )
    pixel = max(np.ptp(x) / max(1, x.size - 1), np.ptp(y) / max(1, y.size - 1))
    allowed = _TOLERANCE * (pixel / _METERS_PER_DEGREE if own.is_projected else pixel)
    difference = np.abs(first - second)
    east = np.minimum(difference[0] % 360.0, 360.0 - difference[0] % 360.0) * np.cos(np.deg2rad(first[1]))
    same = (np.abs(east) <= allowed) & (difference[1] <= allowed)
    return bool((same | (np.isinf(first) & np.isinf(second)).all(axis=0)).all())
