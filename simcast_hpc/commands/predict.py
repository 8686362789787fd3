"""``simcast predict``: forecast from radar files, once or for every new frame in a watched folder."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from simcast_hpc.config import ConfigError

from .options import Postprocess, Quiet, override_sampling
from .predict_options import (
    ZR,
    AnyInterval,
    AnySpacing,
    At,
    Batch,
    BlendBorder,
    Bridge,
    Description,
    Every,
    Fallback,
    FramePaths,
    FramesIn,
    FramesOut,
    Importer,
    Institution,
    Keep,
    Late,
    Like,
    MaskInflow,
    Minutes,
    NoMembers,
    NoValidity,
    OdimDataset,
    Out,
    Overlap,
    Pattern,
    Prometheus,
    Run,
    SamplingOverrides,
    Stale,
    Step,
    Tile,
    Watch,
    Write,
)
from .product_options import (
    Accumulate,
    AccumulationThreshold,
    DType,
    MatchedMean,
    Neighborhood,
    OverlayProjectionOption,
    Percentile,
    Points,
    PolygonPixels,
    Polygons,
    PolygonStatistic,
    Threshold,
    WindowOption,
    check_products,
    keeps_members,
    place_settings,
    product_settings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simcast_hpc.forecast.forecast_fields import ForecastMethod
    from simcast_hpc.forecast.forecast_files import Publisher

_WRITE = ("nc", "png")


def predict(
    run: Run,
    frames: FramePaths = None,
    out: Out = Path("forecasts"),
    write: Write = None,
    at: At = None,
    pattern: Pattern = "*",
    bridge: Bridge = 0,
    z_r: ZR = None,
    any_spacing: AnySpacing = False,
    any_interval: AnyInterval = False,
    dataset: OdimDataset = None,
    importer: Importer = None,
    like: Like = None,
    dataset_description: Description = None,
    step: Step = None,
    frames_in: FramesIn = None,
    frames_out: FramesOut = None,
    minutes: Minutes = None,
    fallback: Fallback = None,
    mask_inflow: MaskInflow = False,
    no_validity: NoValidity = False,
    blend_border: BlendBorder = 0.0,
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Batch = 4,
    no_members: NoMembers = False,
    changes: SamplingOverrides = None,
    postprocess: Postprocess = "none",
    accumulate: Accumulate = None,
    window: WindowOption = None,
    percentile: Percentile = None,
    threshold: Threshold = None,
    accumulation_threshold: AccumulationThreshold = None,
    matched_mean: MatchedMean = False,
    neighborhood: Neighborhood = 0.0,
    points: Points = None,
    polygons: Polygons = None,
    polygon_pixels: PolygonPixels = "coverage",
    polygon_statistic: PolygonStatistic = None,
    dtype: DType = "float32",
    overlay_crs: OverlayProjectionOption = "EPSG:3857",
    institution: Institution = "",
    watch: Watch = None,
    every: Every = 10.0,
    late: Late = 120.0,
    keep: Keep = None,
    stale: Stale = 3.0,
    prometheus: Prometheus = None,
    quiet: Quiet = False,
) -> None:
    """Forecast from the last radar frames and write CF netCDF or Zarr, and pictures.

    FRAMES are files or folders of ODIM, KNMI, RADOLAN, MRMS, GeoTIFF, CF netCDF, Zarr and other radar formats; see
    docs/reference/radar-formats.md. Most formats require the extra [io]. A domain larger than the training grid is
    divided into overlapping tiles.

    A baseline forecasts without a model: from the frames' own unit, pixels and time step, or those of --like or
    --dataset-description.

    With --watch the command runs until the signal TERM or USR2 or a file STOP in --out; see docs/guides/operate.md.

    Accumulations, percentiles, probabilities, GeoTIFF, overlays, ODIM files and time series: docs/guides/products.md.

    Example: simcast predict runs/mine radar/ --accumulate 15,60 --percentile 10,50,90 --write nc --write cog

    Example: simcast predict extrapolation radar/ --minutes 60 --out forecasts

    Example: simcast predict runs/sevir/student radar/ --out forecasts --write nc --write png

    Example: simcast predict runs/sevir/diffusion --watch /radar/incoming --out /products --fallback extrapolation
    """
    if bool(frames) == bool(watch):
        raise ConfigError("give either FRAMES (radar files or folders) or --watch FOLDER")
    from simcast_hpc.forecast.forecast_files import Publisher
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.report.forecast_pictures import animate_forecast, draw_forecast
    from simcast_hpc.report.map_overlay import write_overlays

    set_up_logging(0, quiet=quiet)
    # 1. Options that need no model
    products = product_settings(
        accumulate, window, percentile, threshold, accumulation_threshold, matched_mean=matched_mean,
        neighborhood_km=neighborhood, dtype=dtype, overlay_crs=overlay_crs, members=not no_members,
    )  # fmt: skip
    places = place_settings(points, polygons, polygon_pixels, polygon_statistic)
    kinds = tuple(write or _WRITE)
    _reject_absent(frames or [], watch, pattern)
    _check_prometheus(prometheus, out)
    # 2. Model or baseline, and output
    predictor = _load(
        run, [*(frames or []), *([watch] if watch else [])], pattern, fallback=fallback, z_r=z_r, changes=changes or [],
        without_model={
            "like": like, "description": dataset_description, "step_minutes": step, "frames_in": frames_in,
            "frames_out": frames_out, "minutes": minutes,
        },
        inflow=_inflow(mask=mask_inflow, omit=no_validity),
        reading={
            "any_spacing": any_spacing, "any_interval": any_interval, "dataset": dataset,
            "rate_thresholds": products.thresholds,
        },
        observed_frames=products.observed_frames, importer=importer, bridge=bridge, tile=tile,
        overlap=overlap, batch=batch, postprocess=postprocess,
        keep_members=keeps_members(products, places), blend_km=blend_border,
    )  # fmt: skip
    # After the checks of the options: a missing optional package is reported only if everything else is valid.
    check_products(predictor, products, kinds)
    publisher = Publisher(
        out, kinds, {"png": draw_forecast, "gif": animate_forecast}, institution=institution, products=products,
        places=places, draw_overlays=write_overlays,
    )  # fmt: skip
    # 3. Forecasts
    if watch is not None:
        _watch(
            predictor, publisher, watch, every_seconds=every, late_minutes=late, keep=keep, pattern=pattern,
            stale_steps=stale, prometheus=prometheus,
        )  # fmt: skip
        return
    for path in _forecast_once(predictor, publisher, frames or [], at=at, pattern=pattern):
        typer.echo(os.fsencode(path))  # bytes: the name of --out may be invalid UTF-8


def _reject_absent(frames: list[Path], watch: Path | None, pattern: str) -> None:
    from simcast_hpc.radar.frame_files import list_files
    from simcast_hpc.radar.zarr_store import is_zarr

    if Path(pattern).is_absolute() or not pattern:
        raise ConfigError(f"--pattern {pattern!r} must be a pattern of names in the folder, for example '*.h5'")
    if watch is not None and not watch.is_dir():
        raise ConfigError(f"--watch {watch} is not a folder")
    if watch is not None and is_zarr(watch):
        raise ConfigError(
            f"--watch {watch} is a Zarr store; give the folder that contains it: --watch {watch.resolve().parent} "
            f"--pattern {watch.resolve().name}"
        )
    list_files(frames, pattern)


def _check_prometheus(file: Path | None, out: Path) -> None:
    """Reject a file in a folder that does not exist, except ``out``, which is created."""
    if file is None:
        return
    if file.is_dir():
        raise ConfigError(f"--prometheus {file} is a folder; give a file in it, for example {file / 'simcast.prom'}")
    folder = file.absolute().parent
    if not folder.is_dir() and folder.resolve() != out.resolve():
        raise ConfigError(f"--prometheus {file}: the folder {file.parent} does not exist; create it, or choose --out")


def _inflow(*, mask: bool, omit: bool) -> str:
    if mask and omit:
        raise ConfigError("--mask-inflow and --no-validity are both given; give one of them")
    return "mask" if mask else "omit" if omit else "mark"


def _load(
    run: Path,
    places: list[Path],
    pattern: str,
    *,
    fallback: str | None,
    z_r: tuple[float, float] | None,
    changes: list[str],
    without_model: dict[str, Any],
    reading: dict[str, Any],
    importer: list[str] | None,
    **settings: Any,
) -> "ForecastMethod":
    from simcast_hpc.data.dataset_spec import ZRRelation
    from simcast_hpc.forecast.load_predictor import FramePlaces, PredictorSettings, WithoutModel, load_predictor
    from simcast_hpc.radar.importer_choice import parse_importer

    if z_r is not None and min(z_r) <= 0:
        raise ConfigError(f"--z-r {z_r[0]:g} {z_r[1]:g}: both must be above 0, for example 200 1.6 (Marshall-Palmer)")
    relation = ZRRelation(a=z_r[0], b=z_r[1]) if z_r else None
    chosen = PredictorSettings(
        **settings,
        change_sampling=(lambda own: override_sampling(own, changes)) if changes else None,
        reading={"z_r": relation, "importer": parse_importer(importer), **reading},
        without_model=WithoutModel(**without_model),
    )
    return load_predictor(run, chosen, FramePlaces(places, pattern), fallback=fallback)


def _forecast_once(
    predictor: "ForecastMethod", publisher: "Publisher", places: list[Path], *, at: str | None, pattern: str
) -> list[Path]:
    from simcast_hpc.config import DataError
    from simcast_hpc.radar.frame_files import index_times, list_files, read_encoded

    publisher.folder.mkdir(parents=True, exist_ok=True)  # an unwritable folder is an error before the forecast
    skip_unreadable = any(place.is_dir() for place in places)
    files = index_times(list_files(places, pattern), skip_unreadable=skip_unreadable, encoding=predictor.code)
    if not files:
        raise ConfigError(f"no readable radar frame in {', '.join(map(str, places))}")
    issue = _parse_time(at) if at else _newest(files)
    try:
        chosen = predictor.inputs(list(files), issue)
    except DataError:
        # A frame in another unit is reported before missing frames: more frames would not help.
        read_encoded(files, [max(files)], predictor.code)
        raise
    frames = read_encoded(files, [time for time in chosen.frames if time is not None], predictor.code)
    for _, time in reversed(chosen.earlier):
        try:
            frames |= read_encoded(files, [time], predictor.code)
        except DataError as error:  # a damaged frame that only accumulations use
            logging.getLogger(__name__).warning("accumulations begin later: %s", error)
            break
    forecast = predictor.predict(frames, issue)
    paths = list(publisher.publish(forecast).values())
    if forecast.fallback:
        typer.echo(f"simcast: this forecast is a fallback, not that of the model: {forecast.fallback}", err=True)
    return paths


def _newest(files: "Mapping[datetime, Path]") -> datetime:
    """Return the newest time that the clock has reached; the newest of all if there is none."""
    from simcast_hpc.forecast.watched_files import FUTURE_TOLERANCE

    newest, limit = max(files), datetime.now(UTC) + FUTURE_TOLERANCE
    reached = max((time for time in files if time <= limit), default=newest)
    if reached < newest:
        logging.getLogger(__name__).warning(
            "%s has the time %s UTC, which is in the future: the forecast is issued at %s (--at selects another time)",
            files[newest], f"{newest:%Y-%m-%d %H:%M}", f"{reached:%Y-%m-%d %H:%M}",
        )  # fmt: skip
    return reached


def _watch(predictor: "ForecastMethod", publisher: "Publisher", folder: Path, **settings: Any) -> None:
    from simcast_hpc.forecast.watch_folder import FolderWatcher, WatchSettings
    from simcast_hpc.monitoring.stop_request import StopRequest
    from simcast_hpc.storage.directory_lock import hold_directory
    from simcast_hpc.train.stop_errors import PausedError, reject_stop_file

    if folder.resolve() == publisher.folder.resolve():
        raise ConfigError(f"--watch {folder} equals --out; choose another folder, or forecasts would be read as frames")
    reject_stop_file([publisher.folder])
    chosen = WatchSettings(**settings)
    stop_request = StopRequest([publisher.folder], checks_files=True)
    with hold_directory(publisher.folder, "a watcher", field="--out") as lock, stop_request.handle_signals():
        FolderWatcher(predictor, publisher, folder, chosen, check_lock=lock.check).run(stop_request)
    if "USR2" in stop_request.cause:  # the batch system's notice before the time limit
        raise PausedError(f"{stop_request.cause}; run the same command to resume")


def _parse_time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--at {text!r} is not a time; expected UTC such as 2024-06-11T12:05") from error
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
