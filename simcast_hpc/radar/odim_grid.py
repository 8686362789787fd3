"""Map grid of ODIM composites, from the corners or from one corner and the pixel size."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import DataError

from .odim_attributes import number, text
from .projection_text import check_projection
from .radar_frame import RadarGrid

logger = logging.getLogger(__name__)
_SMALLEST_PIXEL = 10.0  # meters; a smaller number is in km
_TOLERANCE = 0.01  # of the pixel size, which writers round
_CENTERED = 1e-4  # of the extent


def odim_grid(where: dict[str, Any], shape: tuple[int, ...], path: Path) -> RadarGrid:
    """Return the grid from the corners, or from one corner and the pixel size.

    Raises:
        DataError: projection or corners are absent, or contradict the pixel size.
    """
    # Projection in meters or degrees; coordinates of other units are converted.
    import pyproj
    from pyproj.exceptions import CRSError

    if not text(where.get("projdef", "")):
        raise DataError(f"{path} contains no where/projdef; a forecast needs the projection")
    projection = check_projection(text(where["projdef"]), path, field="where/projdef")
    try:
        crs, to_map, scale = pyproj.CRS.from_user_input(projection), pyproj.Proj(projection), 1.0
    except CRSError as error:
        raise DataError(f"{path}: where/projdef {projection!r} is not a valid projection ({error})") from error
    if not crs.is_geographic:
        scale = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
        if scale != 1.0:
            projection = re.sub(r"\+(units|to_meter)=\S+", "", projection) + " +units=m"

    corners = {}
    for name in ("LL", "UR", "LR", "UL"):
        longitude, latitude = number(where, f"{name}_lon", path), number(where, f"{name}_lat", path)
        if longitude is not None and latitude is not None:
            corners[name] = tuple(scale * coordinate for coordinate in to_map(longitude, latitude))
    if crs.is_geographic:
        corners = _across_the_date_line(corners)
    height, width = shape
    stated = (number(where, "ysize", path, height), number(where, "xsize", path, width))
    if stated != shape:
        sizes = ", ".join(f"{size:g}" for size in stated if size is not None)
        raise DataError(f"{path}: where/ysize and where/xsize are ({sizes}), but the field has shape {shape}")
    pixel = {"x": number(where, "xscale", path), "y": number(where, "yscale", path)}
    if not crs.is_geographic:
        pixel = {axis: _in_meters(size, axis, path) for axis, size in pixel.items()}
    edges = _edges(corners, pixel, (height, width), path)
    if _is_centered(corners, edges):
        pixel = _of_corners(pixel, edges, (height, width), path)
    metadata = {"projection": projection, "xpixelsize": pixel["x"], "ypixelsize": pixel["y"], **edges}
    return grid_of_pysteps(path, np.empty(shape, bool), metadata)


def _across_the_date_line(corners: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """Return corners in degrees in which the right ones are east of the left ones."""
    left = [x for name, (x, _) in corners.items() if name.endswith("L")]
    if not left:
        return corners
    return {name: (x + 360.0 if name.endswith("R") and x <= max(left) else x, y) for name, (x, y) in corners.items()}


def _in_meters(size: float | None, axis: str, path: Path) -> float | None:
    """Return a pixel size in meters; a size below 10 is in km, which some services write."""
    if size is None or not 0 < size < _SMALLEST_PIXEL:
        return size
    logger.info("%s: where/%sscale %g is taken as km", path, axis, size)
    return size * 1000.0


def _edges(
    corners: dict[str, tuple[float, ...]], pixel: dict[str, float | None], shape: tuple[int, int], path: Path
) -> dict[str, float]:
    """Return the outer edges x1, x2, y1 and y2 from opposite corners, or from one corner and the pixel size.

    Raises:
        DataError: the attributes do not determine the edges, or contradict each other.
    """
    height, width = shape
    if {"LL", "UR"} <= set(corners) or {"UL", "LR"} <= set(corners):
        sides: dict[str, list[float]] = {"L": [], "R": [], "U": [], "D": []}
        for name, (x, y) in corners.items():
            sides[name[1]].append(x)
            sides["U" if name[0] == "U" else "D"].append(y)
        edges = {key: float(np.mean(sides[side])) for key, side in zip(("x1", "x2", "y1", "y2"), "LRDU", strict=True)}
        _reject_skew(sides, edges, shape, path)
    elif corners and pixel["x"] and pixel["y"]:
        name, (x0, y0) = next(iter(corners.items()))
        left = x0 - (width * pixel["x"] if name.endswith("R") else 0.0)
        top = y0 + (height * pixel["y"] if name.startswith("L") else 0.0)
        edges = {"x1": left, "x2": left + width * pixel["x"], "y1": top - height * pixel["y"], "y2": top}
    else:
        raise DataError(
            f"{path} contains the corners {sorted(corners)} in where; it must contain LL and UR, UL and LR, "
            "or one corner with xscale and yscale"
        )
    if not np.isfinite(list(edges.values())).all() or edges["x1"] >= edges["x2"] or edges["y1"] >= edges["y2"]:
        raise DataError(
            f"{path}: the corners in where give the edges {edges}; they must be finite and in order, row 0 north"
        )
    return edges


def _reject_skew(sides: dict[str, list[float]], edges: dict[str, float], shape: tuple[int, int], path: Path) -> None:
    """Check that the corners are those of a rectangle in the projection, within a pixel."""
    height, width = shape
    for axis, names, pixels in (("x", "LR", width), ("y", "DU", height)):
        spacing = abs(edges[f"{axis}2"] - edges[f"{axis}1"]) / pixels
        skew = max(np.ptp(sides[name]) for name in names)
        if not skew <= spacing:
            raise DataError(
                f"{path}: the corners in where differ by {skew:g} along {axis} on one side, more than a pixel "
                f"({spacing:g}); where/projdef does not belong to them"
            )


def _is_centered(corners: dict[str, tuple[float, ...]], edges: dict[str, float]) -> bool:
    """Return whether four corners are those of a grid around the origin of the projection, that is around a radar."""
    x, y = (max(abs(edges[f"{axis}1"]), abs(edges[f"{axis}2"])) for axis in "xy")
    offset = max(abs(edges["x1"] + edges["x2"]) / x, abs(edges["y1"] + edges["y2"]) / y)
    return len(corners) == 4 and offset < _CENTERED


def _of_corners(
    pixel: dict[str, float | None], edges: dict[str, float], shape: tuple[int, int], path: Path
) -> dict[str, float | None]:
    """Return the pixel size by the corners, with a warning if the file contains another.

    Vaisala IRIS writes a wrong pixel size to images of one radar; four corners around the radar contradict it.
    """
    sizes: dict[str, float | None] = {}
    for axis, pixels in (("x", shape[1]), ("y", shape[0])):
        size, stated = (edges[f"{axis}2"] - edges[f"{axis}1"]) / pixels, pixel[axis]
        sizes[axis] = stated
        if stated is not None and abs(stated - size) > _TOLERANCE * size:
            logger.warning(
                "%s: where/%sscale is %g, but %g by four corners around the radar, which are used",
                path, axis, stated, size,
            )  # fmt: skip
            sizes[axis] = size
    return sizes


def grid_of_pysteps(path: Path, values: np.ndarray, metadata: dict[str, Any]) -> RadarGrid:
    """Return the grid from the metadata of a pysteps importer.

    Raises:
        DataError: there is no projection, or the corners contradict the number of pixels and the pixel size.
    """
    if "projection" not in metadata or metadata.get("x1") is None:
        raise DataError(f"{path} contains no projection; a forecast needs one")
    projection, left, right = metadata["projection"], float(metadata["x1"]), float(metadata["x2"])
    bottom, top = sorted((float(metadata["y1"]), float(metadata["y2"])))
    height, width = values.shape
    spacing_x, spacing_y = (right - left) / width, (top - bottom) / height
    for axis, spacing, stated in (("x", spacing_x, metadata["xpixelsize"]), ("y", spacing_y, metadata["ypixelsize"])):
        if stated is not None and abs(float(stated) - spacing) > _TOLERANCE * spacing:
            raise DataError(
                f"{path}: the pixel size along {axis} is {float(stated):g} in the file, but {spacing:g} by its corners "
                f"and {height} x {width} pixels"
            )
    return make_grid(projection, left, top, spacing_x, spacing_y, (height, width))


def make_grid(
    projection: str, left: float, top: float, spacing_x: float, spacing_y: float, shape: tuple[int, int]
) -> RadarGrid:
    """Return a grid with a normalized PROJ string, in degrees if the CRS is geographic."""
    import pyproj

    crs = pyproj.CRS.from_user_input(" ".join(projection.split()))
    unit = "degree" if crs.is_geographic else "m"
    return RadarGrid(" ".join(projection.split()), left, top, spacing_x, spacing_y, *shape, unit)
