"""What stands in a table: trained models, baselines, and forecasts that somebody else made and wrote to a file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch

from simcast_hpc.baselines import NOTES, load_baseline
from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.dataset_spec import Split, read_spec
from simcast_hpc.data.open_windows import step_minutes, target_spec
from simcast_hpc.data.window_source import WindowKey
from simcast_hpc.inference.ensemble import TrainedEnsemble
from simcast_hpc.inference.load import TrainedModel


class ForecastMethod(Protocol):
    """Anything that forecasts from frames: a trained model or a baseline."""

    def forecast(self, frames: torch.Tensor, /, *, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` or ``[B, M, frames_out, H, W]`` after codes ``[B, T, H, W]``."""
        ...


@dataclass(frozen=True)
class Entry:
    """One row of a table: a forecast, what it is called and what it cost."""

    name: str
    forecast: Any  # a ForecastMethod, or a ForecastFile
    kind: str
    note: str
    steps: int | None = None
    parameters: int | None = None

    @property
    def packed(self) -> bool:
        """Whether the forecast was packed into bytes, and so rounded, before it came here."""
        return isinstance(self.forecast, ForecastFile) and self.forecast.packed

    def of(self, keys: Sequence[WindowKey], frames: torch.Tensor, *, frames_out: int) -> torch.Tensor:
        """Return the forecast of some windows, of which ``frames`` are the inputs ``[B, T, H, W]``."""
        if isinstance(self.forecast, ForecastFile):
            return self.forecast.of(keys, frames_out=frames_out)
        return self.forecast.forecast(frames, frames_out=frames_out)


@dataclass(frozen=True)
class TestSet:
    """Windows that forecasts are held against."""

    __test__ = False  # not a pytest class

    name: str
    data: DataConfig
    split: Split


def run_entry(name: str, run: TrainedModel | TrainedEnsemble) -> Entry:
    """Return the table row of a finished run, whether it forecasts once or in members."""
    return ensemble_entry(name, run) if isinstance(run, TrainedEnsemble) else model_entry(name, run)


def model_entry(name: str, model: TrainedModel) -> Entry:
    """Return the table row of a trained model."""
    sequence, made = model.config.sequence, model.config.frames_out
    calls = math.ceil(sequence.frames_out / made)
    reach = "one pass" if calls == 1 else f"rolled out in {calls} calls"
    origin = model.config.stage if model.steps is not None else "published weights"
    note = f"{origin}, {reach}; {model.config.model.title}"
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return Entry(name, model, "model", note, steps=model.steps, parameters=parameters)


def ensemble_entry(name: str, ensemble: TrainedEnsemble) -> Entry:
    """Return the table row of a trained ensemble: its members are scored by the rule of each protocol."""
    chosen = ensemble.sampling
    guidance = f", guidance {chosen.guidance:g}" if chosen.guidance != 1 else ""
    note = f"{chosen.members} members of {ensemble.config.stage}, {chosen.sampler} in {chosen.steps} steps{guidance}"
    parameters = sum(parameter.numel() for parameter in ensemble.network.parameters())
    return Entry(name, ensemble, "model", note, steps=ensemble.steps, parameters=parameters)


def baseline_entry(name: str, data: DataConfig, *, cache: Path | None = None, row: str | None = None) -> Entry:
    """Return the table row of a baseline, bound to the code of a data set.

    Args:
        name: of ``BASELINES``.
        data: the data set.
        cache: folder in which its forecasts are kept between evaluations.
        row: what the row is called; by default the baseline's name.

    Raises:
        ConfigError: no such baseline, or it needs an extra that is not installed.
    """
    spec = target_spec(data)
    spacing = read_spec(data.dataset).grid.spacing_km * data.block_mean
    try:
        baseline = load_baseline(name, spec.encoding, step_minutes=step_minutes(data), spacing_km=spacing, cache=cache)
    except (KeyError, ImportError) as error:
        raise ConfigError(f"evaluation.baselines: {error.args[0]}") from error
    return Entry(row or name, _Positional(baseline), "baseline", NOTES.get(name, ""))


def file_entry(name: str, path: Path) -> Entry:
    """Return the table row of forecasts in a file.

    The file is ``.npz`` or HDF5 (``.h5``, ``.hdf5``) and holds ``forecast`` ``[N, T, H, W]`` or members
    ``[N, M, T, H, W]``, uint8 codes or floats in [0, 1], and beside it ``event`` ``[N]`` (text) and ``start`` ``[N]``:
    the first frame of each window in its event, as ``simcast data inspect`` and the windows' keys count it.

    Raises:
        DataError: the file cannot be read or lacks one of these; the message says which.
    """
    written = ForecastFile(path)
    rounding = ", packed into bytes" if written.packed else ""
    return Entry(name, written, "file", f"{path.name}, {len(written.rows)} windows{rounding}")


class ForecastFile:
    """Forecasts in a file, found by the key of their window."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.rows, self.shape, self.packed = self._read_keys()
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} holds no forecasts: {error}; see `simcast evaluate --help`") from error

    def of(self, keys: Sequence[WindowKey], *, frames_out: int) -> torch.Tensor:
        """Return the forecasts of some windows.

        Raises:
            DataError: a window has none, or they have another number of frames.
        """
        absent = [str(key) for key in keys if str(key) not in self.rows]
        if absent:
            raise DataError(
                f"{self.path} has no forecast of window {absent[0]} ({len(absent)} of this batch are absent)"
            )
        if self.shape[-3] != frames_out:
            raise DataError(f"{self.path} has forecasts of {self.shape[-3]} frames; {frames_out} are scored")
        rows = [self.rows[str(key)] for key in keys]
        return torch.from_numpy(np.stack([self._row(row) for row in rows]))

    def _read_keys(self) -> tuple[dict[str, int], tuple[int, ...], bool]:
        if self.path.suffix == ".npz":
            with np.load(self.path, allow_pickle=False) as arrays:
                events, starts = arrays["event"].astype(str), arrays["start"]
                self._arrays = arrays["forecast"]
            shape, dtype = self._arrays.shape, self._arrays.dtype
        else:
            with h5py.File(self.path) as file:
                events, starts = np.asarray(file["event"]).astype(str), np.asarray(file["start"])
                dataset: Any = file["forecast"]
                shape, dtype = dataset.shape, dataset.dtype
        if len(shape) not in (4, 5) or not len(shape) or len(events) != shape[0] or len(starts) != shape[0]:
            raise ValueError(
                f"forecast {shape} must be [N, T, H, W] or [N, M, T, H, W] with {shape[0]} of event and start, got "
                f"{len(events)} and {len(starts)}"
            )
        if dtype != np.uint8 and dtype.kind != "f":
            raise ValueError(f"forecast is {dtype}; it must be uint8 codes or floats in [0, 1]")
        keys = [str(WindowKey(event, int(start))) for event, start in zip(events, starts, strict=True)]
        if len(set(keys)) != len(keys):
            raise ValueError("two rows have one event and start")
        return {key: row for row, key in enumerate(keys)}, shape, dtype == np.uint8

    def _row(self, row: int) -> np.ndarray:
        if self.path.suffix == ".npz":
            return self._arrays[row]
        with h5py.File(self.path) as file:
            dataset: Any = file["forecast"]
            return np.asarray(dataset[row])


class _Positional:
    """A baseline in the form of a model's forecast."""

    def __init__(self, baseline: Any):
        self._baseline = baseline

    def forecast(self, frames: torch.Tensor, /, *, frames_out: int) -> torch.Tensor:
        return self._baseline.forecast(frames, frames_out)
