"""Options of ``simcast predict`` for products: accumulations, probabilities, percentiles, places and storage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcast_hpc.config import ConfigError

if TYPE_CHECKING:
    from simcast_hpc.forecast.forecast_fields import ForecastMethod
    from simcast_hpc.forecast.products.place_series import PlaceSettings
    from simcast_hpc.forecast.products.product_settings import ProductSettings


Accumulate = Annotated[
    list[str] | None,
    typer.Option(
        help="Length in minutes of rainfall amounts that end at each lead time, from observed frames and the forecast; "
        "several lengths repeated or as 15,60.",
        metavar="MINUTES",
        show_default=False,
    ),
]
WindowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--window",
        help="Start and end in minutes after the issue time of a rainfall amount, for example 30:90 or -30:30, which "
        "begins with observed frames (repeatable).",
        metavar="START:END",
        show_default=False,
    ),
]
Percentile = Annotated[
    list[str] | None,
    typer.Option(
        help="Percentile of an ensemble's members per pixel; several repeated or as 10,50,90.",
        metavar="PERCENT",
        show_default=False,
    ),
]
Threshold = Annotated[
    list[str] | None,
    typer.Option(
        help="Threshold of exceedance probabilities of the rain rate in mm/h, also for a model in dBZ (or of VIL in "
        "kg/m2), for an ensemble or with --neighborhood; several repeated or as 5,20 (default: the thresholds of the "
        "data description).",
        metavar="MM/H",
        show_default=False,
    ),
]
AccumulationThreshold = Annotated[
    list[str] | None,
    typer.Option(
        help="Threshold of exceedance probabilities of the rainfall amounts in mm, for an ensemble or with "
        "--neighborhood; several repeated or as 5,20.",
        metavar="MM",
        show_default=False,
    ),
]
MatchedMean = Annotated[
    bool, typer.Option("--matched-mean", help="Add the probability-matched mean of an ensemble (Ebert 2001).")
]
Neighborhood = Annotated[
    float,
    typer.Option(
        help="Add neighborhood probabilities: means over squares of this many km in each direction; 0 for none. "
        "Also for a deterministic model.",
        metavar="KM",
        min=0,
    ),
]
Points = Annotated[
    Path | None,
    typer.Option(
        help="Points of time series (--write csv, geojson): CSV with name, lon and lat, or GeoJSON.", show_default=False
    ),
]
Polygons = Annotated[
    Path | None,
    typer.Option(help="Polygons of time series (--write csv, geojson): GeoJSON with names.", show_default=False),
]
PolygonPixels = Annotated[
    str,
    typer.Option(
        help="Pixels of a polygon: coverage (those it overlaps, weighted by area) or center (whose center it contains)."
    ),
]
PolygonStatistic = Annotated[
    list[str] | None,
    typer.Option(
        help="Statistic of the pixels of a polygon: mean, max, or p90 for a percentile; several repeated or as "
        "mean,p90 (default: mean and max).",
        show_default=False,
    ),
]
DType = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Type of the fields in netCDF and Zarr, float32 or int16 (packed, with an error of at "
        "most 0.005 mm/h, mm or dBZ).",
    ),
]
OverlayProjectionOption = Annotated[
    str, typer.Option("--overlay-crs", help="Projection of the overlays: EPSG:3857 or EPSG:4326.")
]


def product_settings(
    accumulate: list[str] | None,
    window: list[str] | None,
    percentile: list[str] | None,
    threshold: list[str] | None,
    accumulation_threshold: list[str] | None,
    *,
    matched_mean: bool,
    neighborhood_km: float,
    dtype: str,
    overlay_crs: str,
    members: bool,
) -> "ProductSettings":
    """Return the products that the options choose.

    Raises:
        ConfigError: a value is not a number, or outside its valid range.
    """
    from simcast_hpc.forecast.products.product_settings import ProductSettings

    return ProductSettings(
        numbers(accumulate, "--accumulate"), windows(window), numbers(percentile, "--percentile"),
        numbers(threshold, "--threshold"), numbers(accumulation_threshold, "--accumulation-threshold"),
        matched_mean=matched_mean, neighborhood_km=neighborhood_km, dtype=dtype,
        overlay_projection=overlay_crs, members=members,
    )  # fmt: skip


def keeps_members(products: "ProductSettings", places: "PlaceSettings") -> bool:
    """Return whether the members of an ensemble are written, or needed for products or series."""
    return products.members or products.need_members or bool(places.places)


def check_products(method: "ForecastMethod", products: "ProductSettings", kinds: tuple[str, ...]) -> None:
    """Check products against a model before the first forecast, as far as its settings show.

    Raises:
        ConfigError: a product cannot be computed or written.
    """
    from simcast_hpc.forecast.baseline_predictor import BaselinePredictor
    from simcast_hpc.forecast.fallback_predictor import FallbackPredictor
    from simcast_hpc.forecast.predictor import Predictor
    from simcast_hpc.forecast.products.accumulation import TimeAxis
    from simcast_hpc.forecast.products.odim_writer import check_odim
    from simcast_hpc.inference.ensemble import Ensemble

    code = method.code
    products.check_unit(code.unit, code.rate_relation)
    if "odim" in kinds:
        check_odim(code.unit)
    # The products of a fallback need not be complete; a model that cannot be loaded yet is checked by its forecast.
    own = method.model if isinstance(method, FallbackPredictor) else method
    if isinstance(own, Predictor | BaselinePredictor):
        is_model = isinstance(own, Predictor)
        leads = own.model.config.sequence.frames_out if is_model else own.frames_out
        # Whether the frames are mean rates, which begin one step earlier, is known when they are read.
        observed = max(own.wanted.frames_in, own.wanted.history)
        axis = TimeAxis(code.step_minutes, observed, leads, are_means=True)
        is_ensemble = isinstance(own.model, Ensemble) if is_model else own.is_ensemble
        products.check(code.unit, code.rate_relation, axis, is_ensemble=is_ensemble)


def numbers(texts: list[str] | None, option: str) -> tuple[float, ...]:
    """Return the numbers of a repeatable option, of which each may be a list separated by commas.

    Raises:
        ConfigError: a part is not a number.
    """
    found = []
    for part in _parts(texts):
        try:
            found.append(float(part))
        except ValueError as error:
            raise ConfigError(f"{option} {part!r} is not a number") from error
    return tuple(found)


def windows(texts: list[str] | None) -> tuple[tuple[float, float], ...]:
    """Return the windows of ``--window START:END``.

    Raises:
        ConfigError: one is not of this form.
    """
    found = []
    for part in _parts(texts):
        begin, colon, end = part.partition(":")
        try:
            if not colon:
                raise ValueError("no colon")
            found.append((float(begin), float(end)))
        except ValueError as error:
            raise ConfigError(f"--window {part!r} must be START:END in minutes, for example 30:90") from error
    return tuple(found)


def place_settings(
    points: Path | None, polygons: Path | None, pixels: str, statistics: list[str] | None
) -> "PlaceSettings":
    """Return the places of time series.

    Raises:
        ConfigError: a file or a statistic is invalid, or a name occurs in both files.
    """
    from simcast_hpc.forecast.products.place_series import PlaceSettings
    from simcast_hpc.forecast.products.places import read_places

    chosen = tuple(_parts(statistics)) or ("mean", "max")
    if statistics and polygons is None:
        raise ConfigError("--polygon-statistic requires --polygons")
    found = () if points is None else read_places(points, option="--points", kinds=("Point",))
    if polygons is not None:
        areas = read_places(polygons, option="--polygons", kinds=("Polygon", "MultiPolygon"))
        if both := {place.name for place in found} & {place.name for place in areas}:
            raise ConfigError(f"--points {points} and --polygons {polygons} both contain the name {min(both)!r}")
        found += areas
    return PlaceSettings(found, pixels, chosen)


def _parts(texts: list[str] | None) -> list[str]:
    return [part.strip() for text in texts or [] for part in text.split(",") if part.strip()]
