"""Load what ``simcast predict`` forecasts with: a run, a baseline, or a run with a baseline as its fallback."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from simcast_hpc.baselines import BASELINES
from simcast_hpc.config import ConfigError, DataError, SamplingConfig
from simcast_hpc.inference.ensemble import Ensemble
from simcast_hpc.inference.postprocessing import check_postprocessing, load_postprocessing
from simcast_hpc.inference.tiles import Shape
from simcast_hpc.inference.trained_ensemble import load_run
from simcast_hpc.inference.trained_model import config_of_run, forecast_device
from simcast_hpc.radar import encoding_of_run
from simcast_hpc.radar.frame_description import encoding_of_description, encoding_of_frames, infer_step_minutes
from simcast_hpc.radar.frame_encoding import ModelEncoding
from simcast_hpc.radar.frame_files import list_files, without_quantity
from simcast_hpc.radar.importer_choice import ImporterChoice
from simcast_hpc.radar.radar_frame import QuantityError, RadarFrame
from simcast_hpc.radar.read_frame import frame_times, read_frames

from .baseline_predictor import BaselinePredictor, frames_of_baseline
from .choose_frames import FrameRequest
from .fallback_predictor import FallbackPredictor, OptionError, describe
from .inflow import InflowMode
from .predictor import Predictor, reject_unfit_tile, tile_margin, training_grid

logger = logging.getLogger(__name__)
FALLBACKS = ("extrapolation", "persistence")
ENSEMBLES = ("steps",)  # baselines with members
_MINUTES = 120.0
# Files from whose times the cadence is inferred, the last ones by name.
_SAMPLED_FILES = 24


@dataclass(frozen=True)
class WithoutModel:
    """Settings of a forecast without a model; None where not given.

    Attributes:
        like: run directory whose encoding, pixels, cadence and numbers of frames are used.
        description: name or file of a data set description, whose encoding, pixels and cadence are used.
        step_minutes: minutes between frames.
        frames_in: largest number of input frames.
        frames_out: number of lead times.
        minutes: last lead time, instead of ``frames_out``.
    """

    like: Path | None = None
    description: str | None = None
    step_minutes: float | None = None
    frames_in: int | None = None
    frames_out: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: one is out of range, or two contradict each other.
        """
        given = self.given()
        for one, other in (("--like", "--dataset-description"), ("--frames-out", "--minutes"), ("--like", "--step")):
            if one in given and other in given:
                raise ConfigError(f"{one} and {other} are both given; give one of them")
        for option in ("--step", "--minutes"):
            if option in given and not 0 < given[option] < float("inf"):
                raise ConfigError(f"{option} {given[option]} must be above 0 minutes")

    def given(self) -> dict[str, Any]:
        """Return the settings that are given, by option."""
        options = {
            "--like": self.like, "--dataset-description": self.description, "--step": self.step_minutes,
            "--frames-in": self.frames_in, "--frames-out": self.frames_out, "--minutes": self.minutes,
        }  # fmt: skip
        return {option: value for option, value in options.items() if value is not None}

    def lead_times(self, step_minutes: float) -> int:
        """Return the number of lead times.

        Raises:
            ConfigError: ``minutes`` is below one step.
        """
        if self.frames_out is not None:
            return self.frames_out
        minutes = _MINUTES if self.minutes is None else self.minutes
        count = int(minutes / step_minutes + 1e-6)
        if count < 1:
            raise ConfigError(f"--minutes {minutes:g} is below the time step of {step_minutes:g} minutes")
        return count


@dataclass(frozen=True)
class PredictorSettings:
    """Settings of :func:`load_predictor`.

    Attributes:
        bridge: see :class:`.FrameRequest`.
        tile: height and width of tiles; None for the training grid.
        overlap: of tiles in pixels; None for a quarter of a tile.
        batch: tiles per batch.
        keep_members: see :class:`.Predictor`.
        postprocess: name of the post-processing.
        inflow: see :func:`.mark_inflow`.
        blend_km: see :class:`.Predictor`.
        change_sampling: overrides sampling settings of an ensemble; None if nothing is overridden.
        observed_frames: function from the time step in minutes to the number of observed frames that products need;
            None if they need no others than those of the forecast.
        reading: fields of :class:`.ModelEncoding`: such as ``z_r`` and ``dataset``.
        without_model: of baselines and fallbacks.
    """

    bridge: int = 0
    tile: Shape | None = None
    overlap: int | None = None
    batch: int = 4
    keep_members: bool = True
    postprocess: str = "none"
    inflow: InflowMode = "mark"
    blend_km: float = 0.0
    change_sampling: Callable[[SamplingConfig], SamplingConfig] | None = None
    observed_frames: Callable[[float], int] | None = None
    reading: dict[str, Any] = field(default_factory=dict)
    without_model: WithoutModel = WithoutModel()

    def request(self, frames_in: int, step_minutes: float, fewest: int | None = None) -> FrameRequest:
        """Return the frames of a method with these numbers of input frames, and those that products need."""
        history = 0 if self.observed_frames is None else self.observed_frames(step_minutes)
        return FrameRequest(frames_in, step_minutes, self.bridge, fewest, history)


@dataclass(frozen=True)
class FramePlaces:
    """Files and folders with the frames of a forecast, from which unit, grid and cadence are taken if needed."""

    places: Sequence[Path]
    pattern: str = "*"

    def sample(self, *, dataset: int | None, importer: ImporterChoice | None) -> tuple[list[datetime], RadarFrame]:
        """Return the times in the last files by name, and the newest frame in them.

        Files with other quantities are not counted.

        Raises:
            ConfigError: no file can be read.
        """
        times: dict[datetime, Path] = {}
        problem, tried = "", 0
        others: list[QuantityError] = []
        for path in sorted(list_files(self.places, self.pattern), reverse=True):
            if tried == _SAMPLED_FILES:
                break
            try:
                own = dict.fromkeys(frame_times(path, dataset=dataset, importer=importer), path)
                times = own | times
            except QuantityError as error:
                others.append(error)
                continue
            except DataError as error:
                problem = problem or f": {error}"
            tried += 1
        if others and not tried:
            problem = f": {without_quantity(others[::-1])}"
        for time in sorted(times, reverse=True):
            try:
                return list(times), read_frames(times[time], dataset=dataset, importer=importer, times=[time])[0]
            except (DataError, IndexError) as error:
                problem = f": {error}"
        raise ConfigError(
            f"no readable radar frame in {', '.join(map(str, self.places))}, from which unit and time step could be "
            f"taken; --dataset-description defines both{problem}"
        )


def baseline_name(run: Path) -> str | None:
    """Return the baseline that the first argument of ``simcast predict`` names; None if it is a run directory.

    A folder of that name takes precedence.

    Raises:
        ConfigError: nothing of this name exists, and it resembles a baseline.
    """
    name = str(run)
    if name in BASELINES and run.exists():
        logger.info("%s is a folder here, which is used as run directory instead of the baseline", name)
        return None
    if name in BASELINES:
        return name
    near = difflib.get_close_matches(name.lower(), BASELINES, n=1, cutoff=0.7)
    if near and not run.exists():
        raise ConfigError(
            f"{name} is neither a run directory nor a baseline; did you mean {near[0]}? The baselines are "
            f"{', '.join(BASELINES)}"
        )
    return None


def load_predictor(
    run: Path, settings: PredictorSettings, places: FramePlaces, *, fallback: str | None = None
) -> Predictor | BaselinePredictor | FallbackPredictor:
    """Return what forecasts with a run directory or a baseline.

    Args:
        run: run directory, or name of a baseline.
        settings: of the forecast.
        places: frames, read only if a baseline needs their unit or cadence.
        fallback: baseline that forecasts when the model cannot; None raises the error of the model.

    Raises:
        ConfigError: the run or an option is invalid.
    """
    check_postprocessing(settings.postprocess)
    if fallback is not None and fallback not in FALLBACKS:
        near = difflib.get_close_matches(fallback, FALLBACKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--fallback {fallback!r} is not a fallback; {hint}choose {' or '.join(FALLBACKS)}")
    name = baseline_name(run)
    if name is not None:
        _reject_model_options(name, settings, fallback)
        return load_baseline_predictor(name, settings, places)
    given = settings.without_model.given()
    if fallback is None:
        if given:
            raise ConfigError(
                f"{', '.join(given)}: only for a baseline or with --fallback; {run} is a run directory, whose "
                "configuration defines this"
            )
        return load_model(run, settings)
    try:
        config = config_of_run(run)
        code = encoding_of_run(config.data, **settings.reading)
    except (ConfigError, OSError) as error:
        logger.warning("the configuration of %s cannot be read: %s", run, describe(error))
        baseline = load_baseline_predictor(fallback, settings, places)
    else:
        baseline = _like(fallback, code, config.sequence.frames_in, config.sequence.frames_out, settings)
    return FallbackPredictor(str(run), lambda: load_model(run, settings), baseline)


def load_model(run: Path, settings: PredictorSettings) -> Predictor:
    """Return the predictor of a finished run.

    Raises:
        OptionError: an option is invalid for this run.
        ConfigError: the run is unfinished or damaged.
    """

    def change(own: SamplingConfig) -> SamplingConfig:
        try:
            return settings.change_sampling(own) if settings.change_sampling else own
        except ConfigError as error:
            raise OptionError(str(error)) from error

    # The settings are applied as the weights are loaded, because they include the precision of the weights.
    model = load_run(run, device=forecast_device(), change_sampling=change)
    try:
        if settings.change_sampling is not None and not isinstance(model, Ensemble):
            raise ConfigError(
                f"--set overrides the sampling of an ensemble, but {run} is deterministic; give a run of stage "
                "diffusion, or of a network with noise channels"
            )
        postprocessing = load_postprocessing(settings.postprocess, run, model)
        code = encoding_of_run(model.config.data, **settings.reading)
        if settings.tile is not None:
            reject_unfit_tile(model, settings.tile)
        tile = settings.tile or training_grid(model)
        request = settings.request(model.config.sequence.frames_in, code.step_minutes)
        margin = tile_margin(model)
        shared = max(min(tile) // 4, 2 * margin) if settings.overlap is None else settings.overlap
        return Predictor(
            model, code, request, tile, shared, batch=settings.batch, keep_members=settings.keep_members, margin=margin,
            postprocessing=postprocessing, inflow=settings.inflow, blend_km=settings.blend_km,
        )  # fmt: skip
    except ConfigError as error:
        raise OptionError(str(error)) from error


def load_baseline_predictor(name: str, settings: PredictorSettings, places: FramePlaces) -> BaselinePredictor:
    """Return the predictor of a baseline, with the encoding of ``--like``, of a description, or of the frames.

    Raises:
        ConfigError: a setting is invalid, or no frame can be read.
    """
    given, reading = settings.without_model, settings.reading
    if given.like is not None:
        config = config_of_run(given.like)
        code = encoding_of_run(config.data, **reading)
        return _like(name, code, config.sequence.frames_in, config.sequence.frames_out, settings)
    if given.description is not None:
        code = encoding_of_description(given.description, step_minutes=given.step_minutes, **reading)
    else:
        times, newest = places.sample(dataset=reading.get("dataset"), importer=reading.get("importer"))
        step = given.step_minutes or infer_step_minutes(times)
        code = encoding_of_frames(newest.unit, newest.grid, step_minutes=step, **reading)
        how = "given" if given.step_minutes else f"inferred from {len(times)} frames"
        logger.info("%s of frames in %s, time step %g minutes (%s)", name, newest.unit, step, how)
    most, fewest = frames_of_baseline(name, given.frames_in)
    return BaselinePredictor(
        name, code, settings.request(most, code.step_minutes, fewest), given.lead_times(code.step_minutes),
        keep_members=settings.keep_members, inflow=settings.inflow, members=_members(name, settings),
    )  # fmt: skip


def _like(
    name: str, code: ModelEncoding, frames_in: int, frames_out: int, settings: PredictorSettings
) -> BaselinePredictor:
    """Return a baseline that receives and forecasts the frames of a model."""
    given = settings.without_model
    default, fewest = frames_of_baseline(name, given.frames_in)
    most = default if given.frames_in else max(frames_in, fewest)
    leads = frames_out if given.frames_out is None and given.minutes is None else given.lead_times(code.step_minutes)
    return BaselinePredictor(
        name, code, settings.request(most, code.step_minutes, fewest), leads,
        keep_members=settings.keep_members, inflow=settings.inflow, members=_members(name, settings),
    )  # fmt: skip


def _reject_model_options(name: str, settings: PredictorSettings, fallback: str | None) -> None:
    given = {
        "--fallback": fallback, "--blend-border": settings.blend_km or None, "--tile": settings.tile,
        "--overlap": settings.overlap,
        "--set": None if name in ENSEMBLES else settings.change_sampling,
        "--postprocess": None if settings.postprocess == "none" else settings.postprocess,
    }  # fmt: skip
    wrong = [option for option, value in given.items() if value is not None]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: only for a trained model; {name} forecasts the whole domain without one"
            + (f" (the baseline with members is {' and '.join(ENSEMBLES)})" if "--set" in wrong else "")
        )


def _members(name: str, settings: PredictorSettings) -> int | None:
    """Return the number of members of a baseline that ``--set members=N`` gives; None for the default.

    Raises:
        ConfigError: another field is set.
    """
    if settings.change_sampling is None or name not in ENSEMBLES:
        return None
    changed = settings.change_sampling(SamplingConfig())
    others = sorted(set(changed.given()) - {"members"})
    if others:
        raise ConfigError(f"--set {others[0]}: only for a trained model; {name} has only members, such as members=20")
    return changed.members
