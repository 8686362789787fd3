"""``simcast predict``: forecasts from radar files, once or for every new frame of a watched folder."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcast_hpc.config import ConfigError

from .options import sampling_change

if TYPE_CHECKING:
    from simcast_hpc.forecast.forecast_files import Publisher
    from simcast_hpc.forecast.predict_files import Predictor

PREDICT_HELP = """Forecast from the last radar frames: CF netCDF or Zarr, and pictures beside it.

FRAMES are files or folders: ODIM HDF5 composites, KNMI HDF5, MRMS GRIB2, FMI PGM,
MeteoSwiss GIF, CF netCDF. A domain larger than the training grid is cut into tiles.

With --watch every new frame of a folder gives a forecast, until TERM, USR2 or a file
STOP in --out. docs/own_radar.md says the rest.

Example: simcast predict runs/sevir/student radar/ --out forecasts --write nc --write png

Example: simcast predict runs/sevir/diffusion --watch /radar/incoming --out /products --keep 288 --bridge 1
"""
_WRITE = ("nc", "png")


def predict(
    run: Annotated[
        Path, typer.Argument(help="A finished run: teacher, student, direct or diffusion.", show_default=False)
    ],
    frames: Annotated[
        list[Path] | None, typer.Argument(help="Radar files, or folders of them.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of forecast_<issue time>.* files.")] = Path("forecasts"),
    write: Annotated[
        list[str] | None,
        typer.Option(help="nc, zarr, png or gif, repeated; by default nc and png.", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Issue time, UTC: 2024-06-11T12:05. By default the newest frame's.", show_default=False),
    ] = None,
    pattern: Annotated[str, typer.Option(help="File names in folders: '*.h5'.")] = "*",
    bridge: Annotated[int, typer.Option(help="Frames in a row that may be missing; interpolated in time.", min=0)] = 0,
    z_r: Annotated[
        tuple[float, float] | None,
        typer.Option("--z-r", help="A B of Z = A R^B, between dBZ and mm/h.", show_default=False),
    ] = None,
    any_spacing: Annotated[
        bool, typer.Option("--any-spacing", help="Take pixels as they are, whatever the model was trained on.")
    ] = False,
    tile: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of tiles; by default those of training.", show_default=False),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Pixels that tiles share; by default a quarter of a tile.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="Tiles that are forecast together; memory grows with it.", min=1)] = 4,
    no_members: Annotated[
        bool, typer.Option("--no-members", help="Of an ensemble, write mean and probabilities alone.")
    ] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Of an ensemble's sampling: --set members=20", show_default=False)
    ] = None,
    institution: Annotated[str, typer.Option(help="Who issues the forecast, for the file's attributes.")] = "",
    watch: Annotated[
        Path | None, typer.Option(help="A folder whose new frames are forecast from.", show_default=False)
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between looks at the watched folder.", min=0.05)] = 10.0,
    late: Annotated[
        float,
        typer.Option(help="Minutes before the newest frame up to which forecasts are still made or redone.", min=0),
    ] = 120.0,
    keep: Annotated[
        int | None, typer.Option(help="Keep the newest so many issue times; by default all.", min=1, show_default=False)
    ] = None,
) -> None:
    """Forecast from radar files, once or for every new frame of a watched folder; see ``PREDICT_HELP``."""
    from simcast_hpc.forecast.forecast_files import Publisher
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.report.forecast_pictures import animate_forecast, draw_forecast

    set_up_logging(0)
    if bool(frames) == bool(watch):
        raise ConfigError(
            f"FRAMES {'and' if frames else 'or'} --watch: name radar files or folders, or --watch a folder"
        )
    _reject_absent(frames or [], watch, pattern)
    predictor = _predictor(
        run, bridge=bridge, z_r=z_r, any_spacing=any_spacing, tile=tile, overlap=overlap, batch=batch,
        keep_members=not no_members, changes=changes or [],
    )  # fmt: skip
    # After what is wrong with the words above: a package that writes is worth installing only for a forecast to be.
    publisher = Publisher(
        out, tuple(write or _WRITE), {"png": draw_forecast, "gif": animate_forecast}, institution=institution
    )
    if watch is not None:
        _watch(predictor, publisher, watch, every_seconds=every, late_minutes=late, keep=keep, pattern=pattern)
        return
    paths = _once(predictor, publisher, frames or [], at=at, pattern=pattern)
    for path in paths:
        print(path)


def _reject_absent(frames: list[Path], watch: Path | None, pattern: str) -> None:
    from simcast_hpc.radar.frame_files import list_files

    if watch is not None and not watch.is_dir():
        raise ConfigError(f"--watch {watch} is no folder")
    list_files(frames, pattern)


def _predictor(
    run: Path,
    *,
    bridge: int,
    z_r: tuple[float, float] | None,
    any_spacing: bool,
    tile: tuple[int, int] | None,
    overlap: int | None,
    batch: int,
    keep_members: bool,
    changes: list[str],
) -> "Predictor":
    from simcast_hpc.data.dataset_spec import ZRRelation
    from simcast_hpc.forecast.frame_sequence import FrameRequest
    from simcast_hpc.forecast.predict_files import Predictor, reject_unfit_tile, training_grid
    from simcast_hpc.inference.ensemble import TrainedEnsemble, load_run
    from simcast_hpc.inference.load import forecast_device
    from simcast_hpc.radar import encoding_of_run

    if z_r is not None and min(z_r) <= 0:
        raise ConfigError(f"--z-r {z_r[0]:g} {z_r[1]:g}: both must be above 0; Marshall and Palmer's are 200 1.6")
    model = load_run(run, device=forecast_device())
    if isinstance(model, TrainedEnsemble):
        model = _sampled(model, changes)
    elif changes:
        raise ConfigError(f"--set changes how members are sampled, and {run} is one model; name a run of diffusion")
    relation = ZRRelation(a=z_r[0], b=z_r[1]) if z_r else None
    code = encoding_of_run(model.config.data, z_r=relation, any_spacing=any_spacing)
    if tile is not None:
        reject_unfit_tile(model, tile)
    tile = tile or training_grid(model)
    wanted = FrameRequest(model.config.sequence.frames_in, code.step_minutes, bridge)
    shared = min(tile) // 4 if overlap is None else overlap
    return Predictor(model, code, wanted, tile, shared, batch=batch, keep_members=keep_members)


def _sampled(ensemble: Any, changes: list[str]) -> Any:
    from simcast_hpc.config import SamplingConfig, from_mapping

    given = dict(sampling_change(word) for word in changes)
    values = {**ensemble.sampling.model_dump(mode="json"), **given}
    return ensemble.sampled_by(from_mapping(SamplingConfig, values, where="--set"))


def _once(
    predictor: "Predictor", publisher: "Publisher", places: list[Path], *, at: str | None, pattern: str
) -> list[Path]:
    from simcast_hpc.config import DataError
    from simcast_hpc.radar.frame_files import index_times, list_files, read_encoded

    publisher.folder.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the forecast
    held = index_times(list_files(places, pattern), skip_unreadable=any(place.is_dir() for place in places))
    if not held:
        raise ConfigError(f"none of {', '.join(map(str, places))} holds a radar frame that can be read")
    issue = _moment(at) if at else max(held)
    try:
        chosen = predictor.inputs(list(held), issue)
    except DataError:
        # More frames would not help a model of another unit, so that is said first.
        read_encoded(held, [max(held)], predictor.code)
        raise
    frames = read_encoded(held, [time for time in chosen.frames if time is not None], predictor.code)
    return list(publisher.publish(predictor.predict(frames, issue)).values())


def _watch(predictor: "Predictor", publisher: "Publisher", folder: Path, **settings: Any) -> None:
    from simcast_hpc.forecast.watch_folder import Watch, WatchSettings
    from simcast_hpc.monitoring.stop_request import StopRequest
    from simcast_hpc.train.preemption import PausedError, reject_stop_file

    if folder.resolve() == publisher.folder.resolve():
        raise ConfigError(f"--watch {folder} is --out as well; forecasts must not be taken for frames")
    reject_stop_file([publisher.folder])
    with StopRequest([publisher.folder], checks_files=True).handle_signals() as asked:
        Watch(predictor, publisher, folder, WatchSettings(**settings)).run(asked)
    if "USR2" in asked.cause:  # the batch system's notice: as every run, it asks to be started again
        raise PausedError(f"{asked.cause}; started again, it goes on")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--at {text!r} is no time; 2024-06-11T12:05 (UTC) is one") from error
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
