"""Write a forecast as cloud-optimized GeoTIFFs: one file per product, level and time, for GIS and map servers."""

from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.forecast.cf_dataset import forecast_attributes
from simcast_hpc.forecast.forecast_fields import Forecast
from simcast_hpc.radar.radar_frame import RadarGrid

from .product_fields import ProductField, ProductLayer, fields_of, layers_of

_FLAGS = {"dtype": "uint8", "nodata": None, "predictor": 2}
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def write_geotiffs(forecast: Forecast, folder: Path, *, institution: str = "") -> None:
    """Write every layer of a forecast into an existing folder, such as ``rainfall_rate_005min.tif``.

    The files are float32 with NaN where missing, in the projection of the input, row 0 north. Tags contain the
    attributes of the netCDF file, the issue and valid time, and for accumulations the start. If the forecast has
    ``validity``, it is written as uint8 for every lead time, such as ``validity_005min.tif``: 0 where a pixel is not
    determined by observations, so that its value, mostly no echo, is not known.

    Raises:
        OSError: a file cannot be written.
        ValueError: GDAL cannot express the projection.
    """
    import rasterio

    shared = forecast_attributes(forecast, institution=institution)
    profile = raster_profile(forecast.grid)
    for field in fields_of(forecast):
        for layer in layers_of(forecast, field):
            with rasterio.open(folder / f"{layer.stem}.tif", "w", driver="COG", **profile) as file:
                file.write(layer.values.astype(np.float32, copy=False), 1)
                file.update_tags(**shared, **layer_tags(forecast, layer))
                file.set_band_description(1, layer.description)
                file.units = (layer.field.unit,)
    if forecast.validity is not None:
        _write_validity(forecast, forecast.validity, folder, {**profile, **_FLAGS}, shared)


def _write_validity(
    forecast: Forecast, validity: np.ndarray, folder: Path, profile: dict[str, Any], shared: dict[str, str]
) -> None:
    import rasterio

    field = ProductField("validity", "1", forecast.unit, "forecast", validity)
    description = "whether a pixel is determined by observations: 1 yes, 0 no"
    for layer in layers_of(forecast, field):
        with rasterio.open(folder / f"{layer.stem}.tif", "w", driver="COG", **profile) as file:
            file.write(layer.values.astype(np.uint8), 1)
            file.update_tags(**shared, **{**layer_tags(forecast, layer), "description": description})
            file.set_band_description(1, description)


def raster_profile(grid: RadarGrid) -> dict[str, Any]:
    """Return size, type, projection, transform and compression of the rasters of a grid.

    Raises:
        ValueError: GDAL cannot express the projection.
    """
    import rasterio
    from rasterio.errors import CRSError

    try:
        crs = rasterio.CRS.from_user_input(projection_wkt(grid))
    except CRSError as error:
        raise ValueError(f"GDAL cannot express the projection {grid.projection!r}: {error}") from error
    return {
        "height": grid.height,
        "width": grid.width,
        "count": 1,
        "dtype": "float32",
        "nodata": float("nan"),
        "crs": crs,
        "transform": rasterio.Affine(grid.spacing_x, 0.0, grid.left, 0.0, -grid.spacing_y, grid.top),
        "compress": "deflate",
        "predictor": 3,
    }


def projection_wkt(grid: RadarGrid) -> str:
    """Return the projection of a grid as WKT."""
    import pyproj

    return pyproj.CRS.from_user_input(grid.projection).to_wkt()


def layer_tags(forecast: Forecast, layer: ProductLayer) -> dict[str, str]:
    """Return the tags that distinguish the layers of a forecast."""
    tags = {
        "product": layer.name,
        "description": layer.description,
        "units": layer.field.unit,
        "issue_time": f"{forecast.issue:{_TIME}}",
        "valid_time": f"{layer.valid:{_TIME}}",
        "lead_minutes": f"{layer.lead_minutes:g}",
    }
    if layer.start is not None:
        tags["start_time"] = f"{layer.start:{_TIME}}"
    if layer.level is not None:
        percentile = layer.field.statistic == "percentile"
        tags["percentile" if percentile else "threshold"] = f"{layer.level:.10g}"
        tags |= {} if percentile else {"threshold_units": layer.field.quantity_unit}
    return tags
