"""Transparent map overlays of a forecast for web maps: PNG files in EPSG:3857 or EPSG:4326 with their bounds."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import printable
from simcast_hpc.forecast.cf_dataset import forecast_attributes
from simcast_hpc.forecast.forecast_fields import Forecast
from simcast_hpc.forecast.products.geotiff import layer_tags, raster_profile
from simcast_hpc.forecast.products.product_fields import ProductField, fields_of, layers_of
from simcast_hpc.radar.radar_frame import RadarGrid

from .colors import MISSING_FACE, Steps, font, map_steps, probability_steps

_OUTSIDE, _MISSING, _FIRST = 0, 1, 2  # palette: outside of the domain, missing, steps of the color scale
_MISSING_ALPHA = 128
_SWATCH, _TEXT = 22, 13  # pixels
_MOST_PIXELS = 8192  # per side


def write_overlays(forecast: Forecast, folder: Path, *, projection: str = "EPSG:3857", institution: str = "") -> None:
    """Write one PNG with a world file per product, level and time, legends, and ``overlay.json`` into a folder.

    Values below the lowest level of the color scale are transparent, missing pixels gray and half transparent. Pixels
    are those of the nearest pixel of the forecast. ``overlay.json`` contains the bounds in degrees and in meters, and
    the times, unit, level and legend of every file.

    Raises:
        ConfigError: the projection of the forecast cannot be converted.
        OSError: a file cannot be written.
    """
    index, transform = _warped_index(forecast.grid, projection)
    bounds = _bounds(index.shape, transform, projection)
    entries, legends = [], {}
    for field in fields_of(forecast):
        steps = _steps(forecast, field)
        name = "probability" if field.is_probability else re.sub(r"\W+", "_", field.unit)
        legends.setdefault(name, (steps, "probability" if field.is_probability else field.unit))
        palette = _palette(steps)
        for layer in layers_of(forecast, field):
            image = Image.fromarray(_indices(layer.values, steps, index), mode="P")
            image.putpalette(palette.ravel().tolist(), "RGBA")
            image.save(folder / f"{layer.stem}.png", format="PNG", optimize=False)
            (folder / f"{layer.stem}.pgw").write_text(_world_file(transform), encoding="ascii")
            entries.append({
                "file": f"{layer.stem}.png", "legend": f"legend_{name}.png", **layer_tags(forecast, layer)
            })  # fmt: skip
    for name, (steps, unit) in legends.items():
        _legend(steps, unit).save(folder / f"legend_{name}.png", format="PNG")
    content = {"projection": projection, **bounds, "layers": entries}
    content["attributes"] = forecast_attributes(forecast, institution=institution)
    (folder / "overlay.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _warped_index(grid: RadarGrid, projection: str) -> tuple[np.ndarray, Any]:
    """Return the flat index of the forecast's pixel for every pixel of the overlay, -1 outside, and its transform."""
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    profile = raster_profile(grid)
    left, top = grid.left, grid.top
    right, bottom = left + grid.spacing_x * grid.width, top - grid.spacing_y * grid.height
    source = np.arange(grid.height * grid.width, dtype=np.int32).reshape(grid.shape)
    try:
        transform, width, height = calculate_default_transform(
            profile["crs"], projection, grid.width, grid.height, left, bottom, right, top
        )
        assert width is not None and height is not None
        if not 0 < max(width, height) <= _MOST_PIXELS:
            raise ConfigError(f"--write overlay: {height} x {width} pixels are more than {_MOST_PIXELS} per side")
        index = np.full((height, width), -1, np.int32)
        reproject(
            source, index, src_transform=profile["transform"], src_crs=profile["crs"], src_nodata=-1,
            dst_transform=transform, dst_crs=rasterio.CRS.from_user_input(projection), dst_nodata=-1,
            resampling=Resampling.nearest,
        )  # fmt: skip
    except RasterioError as error:
        raise ConfigError(
            f"--write overlay: {grid.projection!r} cannot be converted to {projection}: {error}"
        ) from error
    return index, transform


def _indices(values: np.ndarray, steps: Steps, index: np.ndarray) -> np.ndarray:
    missing = np.isnan(values)
    own = np.searchsorted(steps.levels, np.where(missing, -np.inf, values), side="right") + _FIRST
    own = np.where(missing, _MISSING, own).astype(np.uint8).ravel()
    return np.where(index < 0, np.uint8(_OUTSIDE), own[np.maximum(index, 0)])


def _palette(steps: Steps) -> np.ndarray:
    """Return RGBA, uint8 ``[colors, 4]``: transparent outside and below the lowest level."""
    palette = np.zeros((_FIRST + len(steps.colors), 4), np.uint8)
    palette[_MISSING] = (*_rgb(MISSING_FACE), _MISSING_ALPHA)
    for number, color in enumerate(steps.colors):
        palette[_FIRST + number] = (*_rgb(color), 0 if number == 0 else 255)
    return palette


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _steps(forecast: Forecast, field: ProductField) -> Steps:
    if field.is_probability:
        scale = probability_steps()
        return Steps(tuple(level / 255 for level in scale.levels), scale.colors, scale.labels)
    lowest = min(forecast.thresholds, default=np.inf) if field.unit == forecast.unit else np.inf
    return map_steps(field.unit, lowest_threshold=lowest)


def _world_file(transform: Any) -> str:
    """Return the lines of a world file: pixel sizes, rotations, and the center of the upper left pixel."""
    x, y = _place(transform, 0.5, 0.5)
    return "".join(f"{value:.10f}\n" for value in (transform.a, transform.d, transform.b, transform.e, x, y))


def _place(transform: Any, column: float, row: float) -> tuple[float, float]:
    """Return the coordinates of a position in pixels from the upper left corner."""
    return (
        transform.c + transform.a * column + transform.b * row,
        transform.f + transform.d * column + transform.e * row,
    )


def _bounds(shape: tuple[int, ...], transform: Any, projection: str) -> dict[str, Any]:
    """Return west, south, east and north of an overlay in degrees and in the coordinates of its projection."""
    import pyproj

    left, top = _place(transform, 0, 0)
    right, bottom = _place(transform, shape[1], shape[0])
    to_degrees = pyproj.Transformer.from_crs(projection, "EPSG:4326", always_xy=True)
    (west, east), (south, north) = to_degrees.transform([left, right], [bottom, top])
    return {
        "bounds_degrees": {"west": west, "south": south, "east": east, "north": north},
        "bounds_projected": {"left": left, "bottom": bottom, "right": right, "top": top},
        "pixels": {"width": shape[1], "height": shape[0]},
    }


def _legend(steps: Steps, unit: str) -> Image.Image:
    """Return a legend: one row per color from the highest level to the lowest, and missing."""
    rows = [(color, f"≥ {label}") for color, label in zip(steps.colors[1:], steps.labels, strict=True)][::-1]
    rows.append((MISSING_FACE, "missing"))
    text = font(_TEXT)
    title = printable("" if unit == "probability" else unit.replace("^2", "²"))
    width = _SWATCH + 16 + int(max(text.getlength(label) for _, label in [*rows, ("", title)]))
    image = Image.new("RGB", (width, _SWATCH * (len(rows) + bool(title)) + 8), "white")
    draw = ImageDraw.Draw(image)
    if title:
        draw.text((4, 6), title, fill="black", font=text)
    for number, (color, label) in enumerate(rows):
        top = 4 + _SWATCH * (number + bool(title))
        draw.rectangle((4, top, 4 + _SWATCH, top + _SWATCH), fill=color, outline="#555555")
        draw.text((12 + _SWATCH, top + 3), label, fill="black", font=text)
    return image
