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
    Bridge,
    Every,
    FramePaths,
    Institution,
    Keep,
    Late,
    NoMembers,
    OdimDataset,
    Out,
    Overlap,
    Pattern,
    Run,
    SamplingOverrides,
    Tile,
    Watch,
    Write,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simcast_hpc.forecast.forecast_files import Publisher
    from simcast_hpc.forecast.predictor import Predictor

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
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Batch = 4,
    no_members: NoMembers = False,
    changes: SamplingOverrides = None,
    postprocess: Postprocess = "none",
    institution: Institution = "",
    watch: Watch = None,
    every: Every = 10.0,
    late: Late = 120.0,
    keep: Keep = None,
    quiet: Quiet = False,
) -> None:
    """Forecast from the last radar frames and write CF netCDF or Zarr, and pictures.

    FRAMES are files or folders of ODIM HDF5 composites, KNMI HDF5, MRMS GRIB2, FMI PGM, MeteoSwiss GIF, CF netCDF
    or CF Zarr. Most formats require the extra [io]. A domain larger than the training grid is divided into overlapping
    tiles.

    With --watch the command runs until the signal TERM or USR2 or a file STOP in --out; see docs/guides/own-radar.md.

    Example: simcast predict runs/sevir/student radar/ --out forecasts --write nc --write png

    Example: simcast predict runs/sevir/diffusion --watch /radar/incoming --out /products --keep 288 --bridge 1
    """
    if bool(frames) == bool(watch):
        raise ConfigError("give either FRAMES (radar files or folders) or --watch FOLDER")
    from simcast_hpc.forecast.forecast_files import Publisher
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.report.forecast_pictures import animate_forecast, draw_forecast

    set_up_logging(0, quiet=quiet)
    _reject_absent(frames or [], watch, pattern)
    predictor = _predictor(
        run, bridge=bridge, z_r=z_r, tile=tile, overlap=overlap, batch=batch, keep_members=not no_members,
        changes=changes or [], postprocess=postprocess, any_spacing=any_spacing, any_interval=any_interval,
        dataset=dataset,
    )  # fmt: skip
    # After the checks of the options: a missing optional package is reported only if everything else is valid.
    publisher = Publisher(
        out, tuple(write or _WRITE), {"png": draw_forecast, "gif": animate_forecast}, institution=institution
    )
    if watch is not None:
        _watch(predictor, publisher, watch, every_seconds=every, late_minutes=late, keep=keep, pattern=pattern)
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


def _predictor(
    run: Path,
    *,
    bridge: int,
    z_r: tuple[float, float] | None,
    tile: tuple[int, int] | None,
    overlap: int | None,
    batch: int,
    keep_members: bool,
    changes: list[str],
    postprocess: str = "none",
    **reading: Any,
) -> "Predictor":
    from simcast_hpc.data.dataset_spec import ZRRelation
    from simcast_hpc.forecast.choose_frames import FrameRequest
    from simcast_hpc.forecast.predictor import Predictor, reject_unfit_tile, tile_margin, training_grid
    from simcast_hpc.inference.ensemble import Ensemble
    from simcast_hpc.inference.postprocessing import check_postprocessing, load_postprocessing
    from simcast_hpc.inference.trained_ensemble import load_run
    from simcast_hpc.inference.trained_model import forecast_device
    from simcast_hpc.radar import encoding_of_run

    check_postprocessing(postprocess)
    if z_r is not None and min(z_r) <= 0:
        raise ConfigError(f"--z-r {z_r[0]:g} {z_r[1]:g}: both must be above 0, for example 200 1.6 (Marshall-Palmer)")
    # The settings are applied as the weights are loaded, because they include the precision of the weights.
    model = load_run(run, device=forecast_device(), change_sampling=lambda own: override_sampling(own, changes))
    if changes and not isinstance(model, Ensemble):
        raise ConfigError(
            f"--set overrides the sampling of an ensemble, but {run} is deterministic; give a run of stage diffusion, "
            "or of a network with noise channels"
        )
    change = load_postprocessing(postprocess, run, model)
    relation = ZRRelation(a=z_r[0], b=z_r[1]) if z_r else None
    code = encoding_of_run(model.config.data, z_r=relation, **reading)
    if tile is not None:
        reject_unfit_tile(model, tile)
    tile = tile or training_grid(model)
    request = FrameRequest(model.config.sequence.frames_in, code.step_minutes, bridge)
    margin = tile_margin(model)
    shared = max(min(tile) // 4, 2 * margin) if overlap is None else overlap
    return Predictor(
        model, code, request, tile, shared,
        batch=batch, keep_members=keep_members, margin=margin, postprocessing=change,
    )  # fmt: skip


def _forecast_once(
    predictor: "Predictor", publisher: "Publisher", places: list[Path], *, at: str | None, pattern: str
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
    return list(publisher.publish(predictor.predict(frames, issue)).values())


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


def _watch(predictor: "Predictor", publisher: "Publisher", folder: Path, **settings: Any) -> None:
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
