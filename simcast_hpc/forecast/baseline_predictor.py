"""Forecast from radar frames without a trained model: extrapolation, persistence and the methods of pysteps."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import torch

from simcast_hpc import __version__
from simcast_hpc.baselines import BASELINES, Baseline, PystepsBaseline, load_baseline
from simcast_hpc.config import ConfigError
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding
from simcast_hpc.storage.run_directory import versions

from .choose_frames import FrameRequest, FrameSet, choose_frames
from .forecast_fields import FALLBACK, MODEL, Forecast
from .inflow import InflowMode, mark_inflow
from .input_frames import stack_frames

# Input frames that a baseline uses at most, and at least. Persistence uses one; the others show the motion.
_FRAMES = {"persistence": (4, 1), "extrapolation": (4, 2), "pysteps-lk": (3, 2), "darts": (9, 5)}
_FRAMES_OF_PYSTEPS = (3, 3)


def frames_of_baseline(name: str, frames_in: int | None = None) -> tuple[int, int]:
    """Return the largest and the smallest number of input frames of a baseline.

    Args:
        name: of the baseline.
        frames_in: largest number instead of the default one.

    Raises:
        ConfigError: ``frames_in`` is below the smallest number.
    """
    most, fewest = _FRAMES.get(name, _FRAMES_OF_PYSTEPS)
    if frames_in is not None and frames_in < fewest:
        raise ConfigError(f"--frames-in {frames_in}: {name} needs at least {fewest} frames")
    return frames_in or most, fewest


@dataclass(frozen=True, eq=False)
class BaselinePredictor:
    """A baseline with the settings of its forecasts; it forecasts the whole domain, without tiles.

    Attributes:
        name: one of ``BASELINES``.
        code: encoding and cadence of the frames.
        wanted: input frames of a forecast.
        frames_out: number of lead times.
        keep_members: whether the members of an ensemble are kept.
        inflow: how pixels are treated that are not determined by observations.
        members: number of members of ``steps``; None for its default.
    """

    name: str
    code: ModelEncoding
    wanted: FrameRequest
    frames_out: int
    keep_members: bool = True
    inflow: InflowMode = "mark"
    members: int | None = None

    def __post_init__(self) -> None:
        """Load the baseline.

        Raises:
            ConfigError: unknown name, or the extra that the baseline needs is not installed.
        """
        if self.name not in BASELINES:
            raise ConfigError(f"unknown baseline {self.name!r}; choose one of {', '.join(BASELINES)}")
        assert self.baseline

    @cached_property
    def baseline(self) -> Baseline:
        """The method."""
        try:
            return load_baseline(
                self.name, self.code.spec.encoding, step_minutes=self.code.step_minutes,
                spacing_km=self.code.spacing_km, members=self.members,
            )  # fmt: skip
        except ImportError as error:
            raise ConfigError(str(error)) from error

    @property
    def is_ensemble(self) -> bool:
        """Whether the method forecasts several members."""
        return isinstance(self.baseline, PystepsBaseline) and self.baseline.members is not None

    def inputs(self, available: Sequence[datetime], issue: datetime) -> FrameSet:
        """Choose the input frames of a forecast issued at ``issue``.

        Raises:
            DataError: frames are missing.
        """
        return choose_frames(available, issue, self.wanted)

    def predict(self, frames: Mapping[datetime, EncodedFrame], issue: datetime) -> Forecast:
        """Return the forecast issued at ``issue`` from the frames by time.

        Pixels that are missing in the last frame are NaN.

        Raises:
            DataError: frames are missing, or they do not belong together.
        """
        inputs = stack_frames(frames, self.inputs(list(frames), issue), self.code, bridge=self.wanted.bridge)
        height, width = inputs.codes.shape[1:]
        with torch.no_grad():
            padded = torch.from_numpy(self.code.padded(inputs.codes))[None]
            units = self.baseline.forecast(padded, self.frames_out)[0].numpy()[..., :height, :width]
        values, mean, probability = self._physical(units, inputs.missing[-1])
        forecast = inputs.forecast(self.wanted.step_minutes, values, mean, probability, self._fixed)
        return mark_inflow(forecast, inputs, self.inflow)

    def _physical(
        self, units: np.ndarray, missing: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Return values ``[M, T', H, W]``, mean and probability of a forecast ``[T', H, W]`` or ``[M, T', H, W]``."""
        is_ensemble = units.ndim == 4
        members = units if is_ensemble else units[None]
        linear = np.empty(members.shape, np.float32)
        for member, own in zip(members, linear, strict=True):
            for k, field in enumerate(member):  # one field at a time: the conversion takes float64
                own[k] = self.code.linear_of_forecast(field)
        mean = probability = None
        if is_ensemble:
            levels = self.code.to_linear(np.array(self.code.thresholds()))
            probability = np.stack([(linear >= level).mean(axis=0, dtype=np.float32) for level in levels])
            probability[..., missing] = np.nan
            mean = linear.mean(axis=0, dtype=np.float32)
            self.code.make_physical(mean, missing)
        if is_ensemble and not self.keep_members:
            return None, mean, probability
        for one in linear:
            self.code.make_physical(one, missing)
        return linear, mean, probability

    @cached_property
    def _fixed(self) -> dict[str, str]:
        version = versions()
        provenance = {
            "simcast_version": __version__,
            "simcast_commit": version["commit"],
            "torch_version": version["torch"],
            MODEL: self.name,
            FALLBACK: "none",
            "simcast_run": self.name,
            "simcast_stage": "baseline",
            "simcast_weights_sha256": "none",
            "simcast_data_description": self.code.spec.name,
            "license": self.code.spec.license,
            "attribution": self.code.spec.credit,
            "simcast_postprocessing": "none",
        }
        if isinstance(self.baseline, PystepsBaseline) and self.baseline.members is not None:
            provenance["simcast_sampling"] = json.dumps({"members": self.baseline.members})
        if self.name not in ("persistence", "extrapolation"):
            provenance["pysteps_version"] = importlib.metadata.version("pysteps")
        return provenance

    @property
    def about(self) -> dict[str, str]:
        """Name of the baseline, for status files."""
        return {"run": self.name, "weights": "none"}

    @property
    def identity(self) -> str:
        """Everything that determines the forecasts except their inputs and the program's version."""
        code = [self.code.spec.model_dump_json(), repr(self.code.z_r), self.code.any_spacing, self.code.any_interval]
        wanted = [self.wanted.frames_in, self.wanted.step_minutes, self.wanted.bridge, self.wanted.fewest]
        settings = [self.code.dataset, self.code.rounded, self.frames_out, self.keep_members, self.inflow]
        own = [self.name, code, wanted, settings]
        return json.dumps(own if self.members is None else [*own, self.members])
