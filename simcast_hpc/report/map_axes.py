"""Axes of a radar map: a grid of latitude and longitude, or pixel numbers if the projection is unknown."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from simcast_hpc.radar.radar_frame import RadarGrid

_SPACINGS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_MOST_LINES = 5
_NODES = 61  # points per side at which longitude and latitude are computed
# Matplotlib draws negative levels dashed by default, which would mark western longitudes.
_LINE: dict[str, Any] = {"colors": "#7d7d7d", "linewidths": 0.5, "alpha": 0.8, "linestyles": "solid"}


@dataclass(frozen=True)
class MapAxes:
    """The latitude/longitude grid of a radar grid.

    Attributes:
        grid: its ``projection`` is a PROJ string or WKT; an empty one has no map, so axes are in pixels.
    """

    grid: RadarGrid

    @cached_property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top in units of the projection, or in pixels without map."""
        grid = self.grid
        if self._degrees is None:
            return 0.0, float(grid.width), float(grid.height), 0.0
        return grid.left, grid.left + grid.spacing_x * grid.width, grid.top - grid.spacing_y * grid.height, grid.top

    @cached_property
    def spacings(self) -> tuple[float, float] | None:
        """Distances of the lines of longitude and of latitude in degrees; None without map."""
        if self._degrees is None:
            return None
        longitude, latitude = self._degrees
        middle = _NODES // 2  # longitudes of a corner near a pole would give too few lines
        spans = (float(np.ptp(longitude[middle])), float(np.ptp(latitude[:, middle])))
        across, up = (next((step for step in _SPACINGS if span / step <= _MOST_LINES), _SPACINGS[-1]) for span in spans)
        return across, up

    @property
    def height_by_width(self) -> float:
        """Height of the drawn map divided by its width."""
        grid = self.grid
        ratio = grid.height * grid.spacing_y / (grid.width * grid.spacing_x)
        if self._degrees is None:
            return grid.height / grid.width
        return ratio * self._stretch

    @property
    def _stretch(self) -> float:
        """Factor by which a degree of latitude is drawn longer than a degree of longitude; 1 for projections."""
        if self.grid.unit != "degree":
            return 1.0
        middle = self.grid.top - self.grid.spacing_y * self.grid.height / 2
        return 1 / max(0.1, float(np.cos(np.deg2rad(middle))))

    def draw(self, axes: Axes, *, is_left: bool = True, is_bottom: bool = True) -> None:
        """Draw the lines over an image with :attr:`extent`, and label them at the left and lower edge.

        Args:
            axes: axes of the image.
            is_left: whether latitudes are labeled.
            is_bottom: whether longitudes are labeled.
        """
        left, right, bottom, top = self.extent
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.tick_params(labelsize=6.5, length=2, width=0.5, pad=1.5)
        if self._degrees is None:
            axes.tick_params(labelleft=is_left, labelbottom=is_bottom)
            if is_bottom:
                axes.set_xlabel("pixel", fontsize=6.5, labelpad=1)
            return
        x, y = np.linspace(left, right, _NODES), np.linspace(top, bottom, _NODES)
        longitude, latitude = self._degrees
        assert self.spacings is not None
        across, up = self.spacings
        for degrees, spacing in ((longitude, across), (latitude, up)):
            if lines := _lines(degrees, spacing):
                axes.contour(x, y, degrees, levels=lines, **_LINE)
        axes.set_xticks(*_ticks(longitude[-1], x, across, "EW") if is_bottom else ([], []))
        axes.set_yticks(*_ticks(latitude[::-1, 0], y[::-1], up, "NS") if is_left else ([], []))
        axes.set_aspect(self._stretch)

    @cached_property
    def _degrees(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Longitude and latitude ``[61, 61]`` from north to south, without jumps; None if they are unknown."""
        grid = self.grid
        x = np.linspace(grid.left, grid.left + grid.spacing_x * grid.width, _NODES)
        y = np.linspace(grid.top, grid.top - grid.spacing_y * grid.height, _NODES)
        east, north = np.meshgrid(x, y)
        if grid.unit != "degree" or "+proj=ob_tran" in grid.projection:
            if not grid.projection:
                return None
            try:
                import pyproj

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    crs = pyproj.CRS.from_user_input(grid.projection)
                    base = crs.source_crs if grid.unit == "degree" else crs.geodetic_crs
                    transformer = pyproj.Transformer.from_crs(crs, base or "EPSG:4326", always_xy=True)
                    east, north = transformer.transform(east, north)
            except (ImportError, ValueError, RuntimeError):  # pyproj's errors are RuntimeErrors
                return None
        if not (np.isfinite(east).all() and np.isfinite(north).all()):
            return None
        middle = east[_NODES // 2, _NODES // 2]  # a map that crosses 180 degrees has no jump
        return (east - middle + 180) % 360 - 180 + middle, north


def _lines(degrees: np.ndarray, spacing: float) -> list[float]:
    first, last = np.ceil(degrees.min() / spacing), np.floor(degrees.max() / spacing)
    return [float(k) * spacing for k in np.arange(first, last + 1)]


def _ticks(edge: np.ndarray, places: np.ndarray, spacing: float, signs: str) -> tuple[list[float], list[str]]:
    """Return where the lines cross an edge, and their labels; no labels if the coordinate is not increasing."""
    if not (np.diff(edge) > 0).all():
        return [], []
    lines = [line for line in _lines(edge, spacing) if edge[0] <= line <= edge[-1]]
    return [float(np.interp(line, edge, places)) for line in lines], [_label(line, signs) for line in lines]


def _label(degrees: float, signs: str) -> str:
    degrees = round((degrees + 180) % 360 - 180, 6)
    return f"{abs(degrees):g}°{'' if degrees == 0 else signs[degrees < 0]}"
