"""The forecasts that an evaluation compares: trained models, baselines, and forecasts in files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from simcast_hpc.baselines import NOTES, load_baseline
from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.dataset_spec import Split
from simcast_hpc.data.encoding import MISSING_CODE, code_to_unit
from simcast_hpc.data.hdf5_guard import HDF5_ERRORS, check_hdf5, read_column, read_texts
from simcast_hpc.data.open_windows import pixel_spacing_km, step_minutes, target_spec
from simcast_hpc.data.window_source import WindowKey
from simcast_hpc.inference.calibration import ForecastMethod
from simcast_hpc.inference.ensemble import Ensemble
from simcast_hpc.inference.postprocessing import (
    Postprocessing,
    check_postprocessing,
    load_quantile_mapping,
    no_echo_limit,
)
from simcast_hpc.inference.probability_matching import ProbabilityMatching
from simcast_hpc.inference.quantile_mapping import QuantileMapping
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.storage.npz_files import load_npz

from .unit_fields import UnitFields


@dataclass(frozen=True)
class Entry:
    """One compared forecast: its name, description and cost; ``postprocessing`` changes its values."""

    name: str
    forecast: Any  # ForecastMethod | ForecastFile
    kind: str
    note: str
    steps: int | None = None
    parameters: int | None = None
    postprocessing: Postprocessing | None = None

    @property
    def packed(self) -> bool:
        """Whether the forecast is stored as uint8, and so was rounded."""
        return isinstance(self.forecast, ForecastFile) and self.forecast.packed

    def forecast_windows(self, keys: Sequence[WindowKey], frames: torch.Tensor, *, frames_out: int) -> torch.Tensor:
        """Return the forecasts of windows with inputs ``frames`` ``[B, T, H, W]``."""
        return self.postprocessed(self.raw_windows(keys, frames, frames_out=frames_out), frames)

    def raw_windows(self, keys: Sequence[WindowKey], frames: torch.Tensor, *, frames_out: int) -> torch.Tensor:
        """Return the forecasts of windows before post-processing."""
        if isinstance(self.forecast, ForecastFile):
            return self.forecast.read(keys, frames_out=frames_out)
        return self.forecast.forecast(frames, frames_out=frames_out)

    def postprocessed(self, forecast: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return forecasts of :meth:`raw_windows` with inputs ``frames`` after post-processing."""
        if self.postprocessing is None:
            return forecast
        values = forecast if forecast.is_floating_point() else code_to_unit(forecast)
        return self.postprocessing.apply(values, frames)

    def as_issued(self, forecast: torch.Tensor, frames: torch.Tensor, written: UnitFields) -> torch.Tensor:
        """Return forecasts ``[B, (M,) T', H, W]`` as ``simcast score-issued`` reads those of ``simcast predict``.

        They are missing where predict writes none: where any of the input frames ``[B, T, H, W]`` of a model is
        missing, and where the last one of a baseline is. The others are those that ``written`` finds for the float32
        value of the file. Forecasts in files are returned unchanged.
        """
        if self.kind == "file":
            return forecast
        missing = (frames == MISSING_CODE).to(forecast.device)
        hidden = missing[:, -1] if self.kind == "baseline" else missing.any(1)
        hidden = hidden.view(len(hidden), *[1] * (forecast.dim() - 3), *hidden.shape[1:])
        values = forecast if forecast.is_floating_point() else code_to_unit(forecast)
        issued = torch.from_numpy(written.issued(values.float().cpu().numpy())).to(forecast.device)
        return issued.masked_fill(hidden, torch.nan)

    def with_postprocessing(self, postprocessing: Postprocessing) -> "Entry":
        """Return the entry of the same forecast with post-processing, named ``<name>+<post-processing>``."""
        note = "; ".join(filter(None, (self.note, postprocessing.note)))
        return replace(self, name=f"{self.name}+{postprocessing.name}", note=note, postprocessing=postprocessing)

    def metadata(self) -> dict[str, Any]:
        """Return the fields for the score file."""
        return {
            "name": self.name,
            "kind": self.kind,
            "note": self.note,
            "steps": self.steps,
            "parameters": self.parameters,
            "postprocessing": None if self.postprocessing is None else self.postprocessing.name,
        }


@dataclass(frozen=True)
class TestSet:
    """The windows on which forecasts are evaluated."""

    __test__ = False  # not a pytest class

    name: str
    data: DataConfig
    split: Split


def run_entry(name: str, run: TrainedModel | Ensemble) -> Entry:
    """Return the entry of a finished run, a deterministic model or an ensemble."""
    return ensemble_entry(name, run) if isinstance(run, Ensemble) else model_entry(name, run)


def model_entry(name: str, model: TrainedModel) -> Entry:
    """Return the entry of a trained deterministic model."""
    calls = math.ceil(model.config.sequence.frames_out / model.config.frames_out)
    rollout = "one pass" if calls == 1 else f"rolled out in {calls} calls"
    origin = model.config.stage if model.steps is not None else "published weights"
    note = f"{origin}, {rollout}; {model.config.model.title}"
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return Entry(name, model, "model", note, steps=model.steps, parameters=parameters)


def ensemble_entry(name: str, ensemble: Ensemble) -> Entry:
    """Return the entry of a trained ensemble."""
    parameters = sum(parameter.numel() for parameter in ensemble.network.parameters())
    return Entry(name, ensemble, "model", ensemble.note, steps=ensemble.steps, parameters=parameters)


def baseline_entry(name: str, data: DataConfig, *, cache: Path | None = None, row: str | None = None) -> Entry:
    """Return the entry of a baseline for the encoding of a data set.

    Args:
        name: a name in ``BASELINES``.
        data: the data set.
        cache: folder in which forecasts of the baseline are stored for later evaluations.
        row: name of the entry; by default the name of the baseline.

    Raises:
        ConfigError: unknown baseline, or it requires an extra that is not installed.
    """
    spec = target_spec(data)
    spacing = pixel_spacing_km(data)
    try:
        baseline = load_baseline(name, spec.encoding, step_minutes=step_minutes(data), spacing_km=spacing, cache=cache)
    except (KeyError, ImportError) as error:
        raise ConfigError(f"evaluation.baselines: {error.args[0]}") from error
    return Entry(row or name, _BaselineMethod(baseline), "baseline", NOTES.get(name, ""))


def with_postprocessing(
    entry: Entry,
    names: Sequence[str],
    data: DataConfig,
    *,
    run: tuple[Path, TrainedModel | Ensemble] | None = None,
    fit: Callable[[ForecastMethod], QuantileMapping] | None = None,
) -> list[Entry]:
    """Return the entry, and after it the entry with each post-processing that applies to it.

    Args:
        entry: the forecast.
        names: names of post-processing. A quantile mapping applies to runs, and to baselines with ``fit``.
        data: the data set, whose encoding defines no echo.
        run: run directory and model of a run, whose quantile mapping is read.
        fit: fits the quantile mapping of a baseline.

    Raises:
        ConfigError: unknown name, or the run has no quantile mapping of its weights.
    """
    made: list[Postprocessing] = []
    for name in dict.fromkeys(names):
        check_postprocessing(name)
        if name == "probability-matching":
            made.append(ProbabilityMatching(no_echo_limit(target_spec(data).encoding)))
        elif name == "quantile-mapping" and run is not None:
            made.append(load_quantile_mapping(*run))
        elif name == "quantile-mapping" and fit is not None:
            made.append(fit(entry.forecast))
    return [entry, *(entry.with_postprocessing(one) for one in made)]


def file_entry(name: str, path: Path) -> Entry:
    """Return the entry of forecasts in a file.

    The file is ``.npz`` or HDF5 (``.h5``, ``.hdf5``) with ``forecast`` ``[N, T, H, W]`` or members
    ``[N, M, T, H, W]``, uint8 pixel values or floats in [0, 1]; ``event`` ``[N]`` (text); and ``start`` ``[N]``, the
    index of the first frame of each window in its event, as in ``simcast data inspect`` and in window keys.

    Raises:
        DataError: the file cannot be read, or one of these arrays is missing or invalid.
    """
    file = ForecastFile(path)
    rounding = ", stored as uint8" if file.packed else ""
    return Entry(name, file, "file", f"{path.name}, {len(file.rows)} windows{rounding}")


class ForecastFile:
    """Forecasts in a file, addressed by window key."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.rows, self.shape, self.packed = self._read_keys()
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise DataError(f"{path} does not contain forecasts: {error}; see `simcast evaluate --help`") from error

    def read(self, keys: Sequence[WindowKey], *, frames_out: int) -> torch.Tensor:
        """Return the forecasts of these windows.

        Raises:
            DataError: a window has no forecast, or the forecasts have another number of frames.
        """
        missing = [str(key) for key in keys if str(key) not in self.rows]
        if missing:
            raise DataError(
                f"{self.path} has no forecast of window {missing[0]} ({len(missing)} of this batch are missing)"
            )
        if self.shape[-3] != frames_out:
            raise DataError(
                f"{self.path} has forecasts of {self.shape[-3]} frames; the evaluation requires {frames_out}"
            )
        rows = [self.rows[str(key)] for key in keys]
        return torch.from_numpy(np.stack([self._row(row) for row in rows]))

    def _read_keys(self) -> tuple[dict[str, int], tuple[int, ...], bool]:
        if self.path.suffix == ".npz":
            arrays = load_npz(self.path, error=DataError, what="the forecasts")
            events, starts = arrays["event"].astype(str), arrays["start"]
            self._arrays = arrays["forecast"]
            shape, dtype = self._arrays.shape, self._arrays.dtype
        else:
            with h5py.File(self.path) as file:
                check_hdf5(file, self.path)
                columns: Any = file
                events, starts = read_texts(columns["event"]), read_column(columns["start"])
                dataset: Any = file["forecast"]
                shape, dtype = dataset.shape, dataset.dtype
        if len(shape) not in (4, 5) or not len(shape) or len(events) != shape[0] or len(starts) != shape[0]:
            raise ValueError(
                f"forecast {shape} must be [N, T, H, W] or [N, M, T, H, W] with event [N] and start [N], got "
                f"{len(events)} events and {len(starts)} starts"
            )
        if dtype != np.uint8 and dtype.kind != "f":
            raise ValueError(f"forecast must be uint8 pixel values or floats in [0, 1], got {dtype}")
        keys = [str(WindowKey(event, int(start))) for event, start in zip(events, starts, strict=True)]
        if len(set(keys)) != len(keys):
            raise ValueError("two rows have the same event and start")
        return {key: row for row, key in enumerate(keys)}, shape, dtype == np.uint8

    def _row(self, row: int) -> np.ndarray:
        if self.path.suffix == ".npz":
            return self._arrays[row]
        try:
            with h5py.File(self.path) as file:
                dataset: Any = file["forecast"]
                return np.asarray(dataset[row])
        except HDF5_ERRORS as error:
            raise DataError(f"{self.path}: forecast {row} cannot be read: {error}") from error


class _BaselineMethod:
    """Adapter from a baseline to :class:`ForecastMethod`."""

    def __init__(self, baseline: Any):
        self._baseline = baseline
        self.min_frames = getattr(baseline, "min_frames", 1)

    def forecast(self, frames: torch.Tensor, /, *, frames_out: int) -> torch.Tensor:
        return self._baseline.forecast(frames, frames_out)
