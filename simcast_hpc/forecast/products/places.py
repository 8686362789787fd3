"""Places of time series: points and polygons from CSV and GeoJSON files, and their pixels on a map grid.

Coordinates are longitude and latitude in degrees (WGS 84), as GeoJSON (RFC 7946) requires. The edges of a polygon are
straight in longitude and latitude.
"""

import csv
import io
import json
import logging
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import printable
from simcast_hpc.radar.radar_frame import RadarGrid

logger = logging.getLogger(__name__)
PIXEL_RULES = ("coverage", "center")
_LONGITUDES, _LATITUDES = ("lon", "longitude", "lng", "x"), ("lat", "latitude", "y")
_NAMES = ("name", "id", "station", "title")
_LONGEST_EDGE = 0.01  # degrees; longer edges are divided before they are projected
_EDGE = 1e-6  # pixels; rounding of projected coordinates
_WHOLE = 1 - 1e-4  # share of the area of a place that counts as all of it
_LISTED = 10  # places in a warning
_BOXES = 1 << 18  # pixels whose intersections are computed at once


@dataclass(frozen=True)
class Place:
    """A point or polygon.

    Attributes:
        name: unique in its file.
        geometry: GeoJSON geometry.
        properties: of the GeoJSON feature.
    """

    name: str
    geometry: dict[str, Any]
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def is_point(self) -> bool:
        """Whether the place is a point."""
        return self.geometry["type"] == "Point"


@dataclass(frozen=True, eq=False)
class PlacePixels:
    """The pixels of one place.

    Attributes:
        rows: int ``[N]``, empty outside the grid.
        columns: int ``[N]``.
        weights: float64 ``[N]``, area of each pixel within the place, relative to each other.
        area_share: share of the area of the place that is on the grid.
    """

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    area_share: float


def read_places(path: Path, *, option: str, kinds: tuple[str, ...]) -> tuple[Place, ...]:
    """Read points from a CSV file (columns name, lon, lat) or places from a GeoJSON FeatureCollection.

    Args:
        path: of the file.
        option: named in errors.
        kinds: types of GeoJSON geometries that are valid.

    Raises:
        ConfigError: the file cannot be read, or a place has no name, a name occurs twice, or a geometry is invalid.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path} cannot be read: {error}") from error
    is_csv = not text.lstrip().startswith(("{", "["))
    if is_csv and "Point" not in kinds:
        raise ConfigError(f"{option} {path} is not GeoJSON; it must be a FeatureCollection of {' and '.join(kinds)}")
    places = _from_csv(text, f"{option} {path}") if is_csv else _from_geojson(text, f"{option} {path}", kinds)
    if not places:
        raise ConfigError(f"{option} {path} contains no places")
    names = [place.name for place in places]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{option} {path} contains the name {min(twice)!r} more than once")
    return tuple(places)


def _from_csv(text: str, source: str) -> list[Place]:
    # Not splitlines: a quoted name may contain a line break, or any other character that it divides at.
    heading = text.lstrip("\r\n").partition("\n")[0]
    separator = ";" if heading.count(";") > heading.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    found = [next((columns[key] for key in keys if key in columns), None) for keys in (_LONGITUDES, _LATITUDES)]
    named = next((columns[key] for key in _NAMES if key in columns), None)
    if None in found or named is None:
        raise ConfigError(f"{source} has the columns {list(columns)}; it must have name, lon and lat, in degrees")
    places = []
    for number, row in enumerate(reader, 2):
        try:
            longitude, latitude = (float(row[cast(str, name)]) for name in found)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{source}, line {number}: lon and lat must be numbers ({error})") from error
        name = " ".join((row[named] or "").split())
        if not name:
            raise ConfigError(f"{source}, line {number} has no name")
        _check_degrees(longitude, latitude, f"{source}, line {number}")
        places.append(Place(name, {"type": "Point", "coordinates": [longitude, latitude]}))
    return places


def _from_geojson(text: str, source: str, kinds: tuple[str, ...]) -> list[Place]:
    import shapely
    import shapely.geometry

    # 1. Features
    try:
        content = json.loads(text)
        features = content["features"] if content["type"] == "FeatureCollection" else [content]
        if "crs" in content and "CRS84" not in str(content["crs"]) and "4326" not in str(content["crs"]):
            raise ConfigError(f"{source} has the crs {content['crs']}; coordinates must be longitude and latitude")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{source} is not a GeoJSON FeatureCollection ({error!r})") from error
    places = []
    for number, feature in enumerate(features, 1):
        # 2. Name and geometry of each
        about = f"{source}, feature {number}"
        properties = feature.get("properties") or {} if isinstance(feature, dict) else {}
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        if geometry is None or kind not in kinds:
            raise ConfigError(f"{about} has the geometry {kind}; it must be {' or '.join(kinds)}")
        given = [properties.get(key) for key in _NAMES] + [feature.get("id")]
        name = next((str(value).strip() for value in given if value not in (None, "")), "")
        if not name:
            raise ConfigError(f"{about} has no name; give the property name")
        try:
            shape = shapely.geometry.shape(geometry)
            coordinates = shapely.get_coordinates(shape)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
            raise ConfigError(f"{about}: the coordinates of {name!r} are invalid ({error})") from error
        if shape.is_empty or not shape.is_valid:
            reason = "empty" if shape.is_empty else shapely.is_valid_reason(shape)
            raise ConfigError(f"{about}: the geometry of {name!r} is invalid: {reason}")
        for longitude, latitude in coordinates:
            _check_degrees(longitude, latitude, f"{about} ({name})")
        places.append(Place(name, geometry, properties))
    return places


def _check_degrees(longitude: float, latitude: float, source: str) -> None:
    if not (-180 <= longitude <= 360 and -90 <= latitude <= 90):
        raise ConfigError(f"{source}: longitude {longitude:g} and latitude {latitude:g} must be degrees (WGS 84)")


def pixels_of(places: tuple[Place, ...], grid: RadarGrid, rule: str) -> list[PlacePixels]:
    """Return the pixels of places.

    A point has the pixel that contains it. A polygon has, by ``coverage``, every pixel that it overlaps, weighted by
    the area of the overlap; by ``center``, every pixel whose center it contains.
    """
    geometries = tuple(json.dumps(place.geometry) for place in places)
    found = _pixels_of(geometries, grid, rule)
    _warn_of_outside(tuple(place.name for place in places), geometries, grid, rule)
    return found


@lru_cache(maxsize=4)
def _warn_of_outside(names: tuple[str, ...], geometries: tuple[str, ...], grid: RadarGrid, rule: str) -> None:
    """Log the places without a pixel, and those of which a part is outside the grid, once for each grid."""
    found = _pixels_of(geometries, grid, rule)
    outside = [name for name, one in zip(names, found, strict=True) if one.area_share == 0]
    small = [name for name, one in zip(names, found, strict=True) if one.area_share > 0 and not len(one.rows)]
    partly = [
        f"{name} ({100 * one.area_share:.3g} % inside)"
        for name, one in zip(names, found, strict=True)
        if 0 < one.area_share < _WHOLE and len(one.rows)
    ]
    for listed, problem in (
        (outside, "outside the grid, their series are empty"),
        (small, "without the center of a pixel, their series are empty (--polygon-pixels coverage)"),
        (partly, "partly outside the grid, their series are those of the part inside"),
    ):
        if listed:
            more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            shown = ", ".join(printable(name) for name in listed[:_LISTED])
            logger.warning("%d of %d places %s: %s%s", len(listed), len(names), problem, shown, more)


@lru_cache(maxsize=4)
def _pixels_of(geometries: tuple[str, ...], grid: RadarGrid, rule: str) -> list[PlacePixels]:
    import pyproj
    import shapely
    import shapely.geometry

    crs = pyproj.CRS.from_user_input(grid.projection)
    transformer = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)

    def project(coordinates: np.ndarray) -> np.ndarray:
        x, y = transformer.transform(coordinates[:, 0], coordinates[:, 1])
        if grid.unit == "degree":  # within half a turn of the grid's center, also for vertices to the west of the grid
            west = grid.left + grid.width * grid.spacing_x / 2 - 180.0
            x = (np.asarray(x) - west) % 360.0 + west
        columns = (np.asarray(x) - grid.left) / grid.spacing_x
        return np.stack([columns, (grid.top - np.asarray(y)) / grid.spacing_y], axis=1)

    pixels = []
    for text in geometries:
        shape = shapely.geometry.shape(json.loads(text))
        if shape.geom_type != "Point":
            shape = shapely.segmentize(shape, _LONGEST_EDGE)
        placed = shapely.transform(shape, project)
        pixels.append(_pixels_of_shape(placed, grid, rule))
    return pixels


def _pixels_of_shape(shape: Any, grid: RadarGrid, rule: str) -> PlacePixels:
    """Return the pixels of a shape whose coordinates are columns and rows of the grid, from its upper left corner."""
    import shapely

    # 1. Rows and columns that the shape may overlap
    nowhere = PlacePixels(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 0.0)
    bounds = np.array(shape.bounds)
    if not np.isfinite(bounds).all():
        return nowhere
    if shape.geom_type == "Point":
        # A point on the edge is in the pixel there, whatever the rounding of its projection.
        limits = (grid.width, grid.height)
        inside = all(-_EDGE <= value <= limit + _EDGE for value, limit in zip(bounds[:2], limits, strict=True))
        column, row = (
            min(max(int(np.floor(value)), 0), limit - 1) for value, limit in zip(bounds[:2], limits, strict=True)
        )
        return PlacePixels(np.array([row]), np.array([column]), np.ones(1), 1.0) if inside else nowhere
    left, top, right, bottom = bounds
    first, last = max(int(np.floor(left)), 0), min(int(np.ceil(right)), grid.width)
    above, below = max(int(np.floor(top)), 0), min(int(np.ceil(bottom)), grid.height)
    if first >= last or above >= below:
        return nowhere
    if not shape.is_valid:  # projected edges may touch by rounding
        shape = shape.buffer(0)
    shapely.prepare(shape)
    # 2. Share of each pixel, by blocks of rows
    shares = np.zeros((below - above, last - first))
    block = max(1, _BOXES // (last - first))
    for begin in range(above, below, block):
        row, column = np.mgrid[begin : min(begin + block, below), first:last]
        target = shares[begin - above : begin - above + len(row)]
        if rule == "center":
            target[...] = shapely.contains_xy(shape, column + 0.5, row + 0.5)
            continue
        boxes = shapely.box(column, row, column + 1, row + 1)
        inside = shapely.contains_properly(shape, boxes)
        edge = shapely.intersects(shape, boxes) & ~inside
        target[inside] = 1.0
        target[edge] = shapely.area(shapely.intersection(shape, boxes[edge]))
    rows, columns = np.nonzero(shares > 1e-9)
    weights = shares[rows, columns]
    on_grid = (
        weights.sum() if rule == "coverage" else shape.intersection(shapely.box(0, 0, grid.width, grid.height)).area
    )
    area = on_grid / shape.area
    if grid.unit == "degree":  # pixels are narrower toward the poles
        weights = weights * np.cos(np.deg2rad(grid.y[rows + above]))
    return PlacePixels(rows + above, columns + first, weights, float(min(area, 1.0)))
