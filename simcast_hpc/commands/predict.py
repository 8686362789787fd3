"""``simcast predict``: forecast from radar files, once or for every new frame in a watched folder."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcast_hpc.config import ConfigError

from .options import Postprocess, Quiet, override_sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simcast_hpc.forecast.forecast_files import Publisher
    from simcast_hpc.forecast.predictor import Predictor

_WRITE = ("nc", "png")


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run directory of a finished teacher, student, direct or diffusion stage.", show_default=False
        ),
    ],
    frames: Annotated[
        list[Path] | None, typer.Argument(help="Radar files, or folders of radar files.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Output folder. File names start with forecast_ and the issue time.")
    ] = Path("forecasts"),
    write: Annotated[
        list[str] | None,
        typer.Option(
            help="Format to write: nc, zarr, png or gif (repeatable; default: nc and png).", show_default=False
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Issue time in UTC, for example 2024-06-11T12:05 (default: the newest frame).", show_default=False
        ),
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="Read only files in folders whose names match, for example '*.h5'.")
    ] = "*",
    bridge: Annotated[
        int,
        typer.Option(
            help="Interpolate pixels, or complete frames, that are missing in up to this many consecutive frames; "
            "0 rejects missing frames.",
            min=0,
        ),
    ] = 0,
    z_r: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--z-r",
            help="A and B of the Z-R relation Z = A R^B, to convert between dBZ and mm/h, for example 200 1.6.",
            metavar="A B",
            show_default=False,
        ),
    ] = None,
    any_spacing: Annotated[
        bool, typer.Option("--any-spacing", help="Accept a pixel spacing other than that of the training data.")
    ] = False,
    any_interval: Annotated[
        bool,
        typer.Option(
            "--any-interval",
            help="Accept accumulations over more than 1.5 time steps of the model; the mean rate is used.",
        ),
    ] = False,
    dataset: Annotated[
        int | None,
        typer.Option(
            help="Number N of datasetN that is read from ODIM files (default: the lowest level, or the first).",
            min=1,
            show_default=False,
        ),
    ] = None,
    tile: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of tiles in pixels (default: the training grid).",
            metavar="HEIGHT WIDTH",
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Overlap of tiles in pixels (default: a quarter of a tile).", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Tiles that are forecast together; memory grows with it.", min=1)] = 4,
    no_members: Annotated[
        bool,
        typer.Option("--no-members", help="Write only the mean and the probabilities of an ensemble, not its members."),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Override a field of the section sampling of an ensemble, for example members=20 (repeatable).",
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    postprocess: Postprocess = "none",
    institution: Annotated[str, typer.Option(help="Issuing institution, stored in the attributes of the file.")] = "",
    watch: Annotated[
        Path | None,
        typer.Option(help="Folder to watch instead of FRAMES: forecast from every new frame.", show_default=False),
    ] = None,
    every: Annotated[float, typer.Option(help="With --watch, seconds between scans of the folder.", min=0.05)] = 10.0,
    late: Annotated[
        float,
        typer.Option(
            help="With --watch, issue or update forecasts up to this many minutes older than the newest frame.", min=0
        ),
    ] = 120.0,
    keep: Annotated[
        int | None,
        typer.Option(
            help="With --watch, number of newest issue times whose files are kept (default: all).",
            min=1,
            show_default=False,
        ),
    ] = None,
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
    from simcast_hpc.radar.read_frame import is_zarr

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
    from simcast_hpc.forecast.predictor import Predictor, reject_unfit_tile, training_grid
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
    shared = min(tile) // 4 if overlap is None else overlap
    return Predictor(model, code, request, tile, shared, batch=batch, keep_members=keep_members, postprocessing=change)


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
