"""Public Python API behind ``import simcast_hpc``: trained models and baselines as forecasters of arrays.

Fields are encoded values: uint8 (255 missing), or floats in [0, 1], which are encoded values / 255 (NaN missing).
:meth:`Forecaster.to_physical` and :meth:`Forecaster.from_physical` convert between these and physical units.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.baselines import BASELINES, Baseline, load_baseline
from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.open_windows import step_minutes, target_spec
from simcast_hpc.inference.trained_ensemble import TrainedEnsemble, load_run
from simcast_hpc.inference.trained_model import TrainedModel, forecast_device

if TYPE_CHECKING:
    import xarray

__all__ = ["Forecaster", "load"]

_AXES = "[T, H, W] or [B, T, H, W]"
_TIME_NAMES = ("time", "valid_time", "t")
_CADENCE_TOLERANCE_SECONDS = 1.0


def load(
    run_or_name: str | Path, *, dataset: str | None = None, device: torch.device | str | None = None
) -> "Forecaster":
    """Load a finished training run, or a baseline by name, as a forecaster.

    Args:
        run_or_name: run directory of a stage that forecasts (``teacher``, ``direct``, ``student``, ``diffusion``), or
            the name of a baseline (``persistence``, ``extrapolation``, ``steps``, ...). An existing directory wins.
        dataset: for baselines only: the data set whose encoding the fields have, a name or a YAML file.
        device: where the network runs; the first CUDA device where there is one, else the CPU.

    Raises:
        ConfigError: no such run or baseline, an unfinished or damaged run, or ``dataset`` does not apply.
        ImportError: the baseline needs an extra that is not installed.
    """
    path = Path(run_or_name)
    if path.is_dir():
        if dataset is not None:
            raise ConfigError(f"dataset={dataset!r} is for baselines; the run {path} has its own data set")
        chosen = forecast_device() if device is None else torch.device(device)
        return Forecaster.of_run(load_run(path, device=chosen), device=chosen)
    name = str(run_or_name)
    if name not in BASELINES:
        near = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name!r} is neither a run directory nor a baseline ({', '.join(BASELINES)}){hint}")
    if dataset is None:
        raise ConfigError(f"the baseline {name} needs dataset=, the data set whose encoding the fields have")
    return Forecaster.of_baseline(name, read_spec(dataset))


class Forecaster:
    """A trained model, ensemble or baseline that forecasts arrays.

    Attributes:
        name: of the run or the baseline.
        frames_in: number of past frames that :meth:`forecast` needs (T); of a baseline the smallest number.
        frames_out: number of lead times in one pass; None for a baseline, which has no horizon of its own.
        step_minutes: minutes between two frames.
        members: default number of ensemble members; None for a deterministic forecast.
        dataset: description of the data set whose encoding the fields have.
    """

    def __init__(self, model: TrainedModel | TrainedEnsemble | Baseline, dataset: DatasetSpec, device: torch.device):
        """Wrap ``model``; use :func:`load`, :meth:`of_run` or :meth:`of_baseline`."""
        self.model, self.dataset, self.device = model, dataset, device
        self.config: TrainConfig | None = None
        self.name, self.frames_in, self.frames_out = "", 1, None
        self.step_minutes, self.members = dataset.step_minutes, None

    @classmethod
    def of_run(cls, model: TrainedModel | TrainedEnsemble, *, device: torch.device) -> "Forecaster":
        """Return a forecaster of a loaded model whose networks are on ``device``."""
        config = model.config
        forecaster = cls(model, target_spec(config.data), device)
        forecaster.config, forecaster.name, forecaster.step_minutes = config, config.name, step_minutes(config.data)
        forecaster.frames_in, forecaster.frames_out = config.sequence.frames_in, config.frames_out
        forecaster.members = model.sampling.members if isinstance(model, TrainedEnsemble) else None
        return forecaster

    @classmethod
    def of_baseline(cls, name: str, dataset: DatasetSpec) -> "Forecaster":
        """Return a forecaster of a baseline for fields in the encoding of ``dataset``."""
        baseline = load_baseline(
            name, dataset.encoding, step_minutes=dataset.step_minutes, spacing_km=dataset.grid.spacing_km
        )
        forecaster = cls(baseline, dataset, torch.device("cpu"))
        forecaster.name, forecaster.frames_in = name, getattr(baseline, "at_least", 1)
        return forecaster

    def forecast(
        self,
        frames: "np.ndarray | Tensor | xarray.DataArray",
        lead_times: int | Sequence[float] | None = None,
        members: int | None = None,
    ) -> Any:
        """Forecast the frames that follow ``frames``.

        Args:
            frames: the last ``frames_in`` frames, oldest first, ``[T, H, W]`` or ``[B, T, H, W]``: uint8 encoded
                values (255 missing) or floats in [0, 1] (NaN missing), as a NumPy array, a torch tensor or an
                ``xarray.DataArray`` with a time dimension.
            lead_times: how many lead times, or which ones, counted in steps from 1; the model's horizon by default. A
                deterministic model is rolled out beyond its horizon.
            members: number of ensemble members, for a run of stage ``diffusion`` only.

        Returns:
            float32 in [0, 1], ``[T', H, W]`` or ``[B, T', H, W]``, of an ensemble ``[M, T', H, W]`` or
            ``[B, M, T', H, W]``. NumPy for NumPy; a tensor on the input's device for a tensor; a DataArray with
            the coordinates of the lead times, the grid and the members for a DataArray.

        Raises:
            TypeError: ``frames`` is not an array, or its dtype is neither uint8 nor floating.
            ValueError: wrong number of axes or frames, values outside [0, 1], infinite values, or invalid lead times,
                members, time steps.
            ConfigError: the model cannot take this grid.
        """
        steps = self._lead_times(lead_times)
        count = self._member_count(members)
        if type(frames).__name__ == "DataArray" and hasattr(frames, "coords"):
            return self._forecast_data_array(frames, steps, count)
        batch, unbatched = self._checked(frames)
        result = self._run(batch, steps, count)
        result = result[0] if unbatched else result
        return result.to(frames.device) if isinstance(frames, Tensor) else result.cpu().numpy()

    def to_physical(self, forecast: "np.ndarray | Tensor") -> np.ndarray:
        """Return float32 values in ``dataset.encoding.unit`` of fields in [0, 1] or encoded values; NaN stays missing.

        Raises:
            TypeError: the dtype is neither uint8 nor floating.
        """
        values = np.asarray(forecast.cpu() if isinstance(forecast, Tensor) else forecast)
        if values.dtype == np.uint8:
            return self.dataset.encoding.decode(values)
        if values.dtype.kind != "f":
            raise TypeError(f"forecast has dtype {values.dtype}; give uint8 encoded values or floats in [0, 1]")
        return self.dataset.encoding.value_of(values.astype(np.float64) * 255.0).astype(np.float32)

    def from_physical(self, values: np.ndarray) -> np.ndarray:
        """Return uint8 encoded values (255 missing) of values in ``dataset.encoding.unit`` (NaN missing)."""
        return self.dataset.encoding.encode(np.asarray(values, dtype=np.float64))

    def __repr__(self) -> str:
        horizon = "any lead time" if self.frames_out is None else f"{self.frames_out} lead times"
        return f"Forecaster({self.name!r}: {self.frames_in} frames in, {horizon} of {self.step_minutes:g} min)"

    def _lead_times(self, lead_times: int | Sequence[float] | None) -> list[int]:
        if lead_times is None:
            if self.frames_out is None:
                raise ValueError(f"lead_times is required for the baseline {self.name}, for example lead_times=12")
            return list(range(1, self.frames_out + 1))
        if isinstance(lead_times, (int, np.integer)) and not isinstance(lead_times, bool):
            steps = list(range(1, int(lead_times) + 1))
        elif isinstance(lead_times, (bool, str)) or not isinstance(lead_times, (Sequence, np.ndarray)):
            raise TypeError(f"lead_times={lead_times!r} must be an int or a sequence of ints, counted in steps from 1")
        else:
            steps = [int(step) for step in lead_times if float(step).is_integer()]
            if len(steps) != len(lead_times):
                raise ValueError(f"lead_times={list(lead_times)} must be whole steps of {self.step_minutes:g} minutes")
        if not steps or min(steps) < 1 or sorted(set(steps)) != steps:
            raise ValueError(f"lead_times={lead_times!r} must be ascending steps from 1, for example 12 or [1, 6, 12]")
        if isinstance(self.model, TrainedEnsemble) and steps[-1] > (self.frames_out or 0):
            raise ValueError(f"lead time {steps[-1]} is beyond the ensemble's horizon; it has 1 to {self.frames_out}")
        return steps

    def _member_count(self, members: int | None) -> int | None:
        if members is None or isinstance(self.model, TrainedEnsemble):
            if members is not None and (isinstance(members, bool) or not isinstance(members, int) or members < 1):
                raise ValueError(f"members={members!r} must be a positive int")
            return members or self.members
        raise ValueError(f"members={members} needs an ensemble; {self.name} is not a run of stage diffusion")

    def _checked(self, frames: Any) -> tuple[Tensor, bool]:
        """Return the frames as a checked tensor ``[B, T, H, W]``, and whether the batch axis was added."""
        tensor = _as_tensor(frames)
        shape = tuple(tensor.shape)
        if tensor.dim() not in (3, 4) or 0 in shape:
            raise ValueError(f"frames have shape {shape}; {_AXES} with at least one pixel is needed")
        count = shape[-3]
        enough = count >= self.frames_in if self.frames_out is None else count == self.frames_in
        if not enough:
            exact = "at least" if self.frames_out is None else "exactly"
            raise ValueError(
                f"frames of shape {shape} have {count} time steps (axes are {_AXES}); {self.name} needs {exact} "
                f"{self.frames_in}: give the last ones"
            )
        if isinstance(self.model, (TrainedModel, TrainedEnsemble)):
            self.model.check_grid((shape[-2], shape[-1]))
        _check_values(tensor)
        return (tensor[None], True) if tensor.dim() == 3 else (tensor, False)

    def _run(self, batch: Tensor, steps: list[int], members: int | None) -> Tensor:
        model = self.model
        if isinstance(model, TrainedEnsemble):
            result = model.members(batch, range(members or model.sampling.members))
        elif isinstance(model, TrainedModel):
            result = model.forecast(batch, frames_out=steps[-1])
        else:
            result = model.forecast(batch, steps[-1])
        index = torch.tensor([step - 1 for step in steps], device=result.device)
        return result.index_select(-3, index)

    def _forecast_data_array(self, frames: Any, steps: list[int], members: int | None) -> Any:
        import xarray

        # 1. Order of the dimensions: batch, time, rows, columns
        time = next((name for name in frames.dims if name in _TIME_NAMES), None)
        if time is None or len(frames.dims) not in (3, 4):
            raise ValueError(
                f"the DataArray has dimensions {frames.dims}; a time dimension ({', '.join(_TIME_NAMES)}), rows and "
                "columns are needed, with at most one batch dimension"
            )
        others = [name for name in frames.dims if name != time]
        ordered = frames.transpose(*others[:-2], time, *others[-2:])
        # 2. Cadence: the network's step is that of its training data
        last = self._check_cadence(ordered, time)
        batch, unbatched = self._checked(ordered.values)
        result = self._run(batch, steps, members)
        result = (result[0] if unbatched else result).cpu().numpy()
        # 3. Coordinates of the result
        dims = [*others[:-2], *(["member"] if result.ndim > len(frames.dims) else []), time, *others[-2:]]
        kept = {name: coord for name, coord in ordered.coords.items() if time not in coord.dims and name != time}
        leads = np.array([round(step * self.step_minutes * 60e9) for step in steps], dtype="timedelta64[ns]")
        result = xarray.DataArray(result, dims=dims, coords=kept, name=frames.name, attrs=frames.attrs)
        result = result.assign_coords(lead_time=(time, leads))
        if "member" in dims:
            result = result.assign_coords(member=np.arange(result.sizes["member"]))
        if last is None:
            return result
        return result.assign_coords({time: last + leads, "forecast_reference_time": last})

    def _check_cadence(self, frames: Any, time: str) -> Any:
        """Return the last time of a DataArray, None where it has no time coordinate of dates."""
        if time not in frames.coords or frames[time].dtype.kind != "M":
            return None
        times = frames[time].values.astype("datetime64[ns]")
        seconds = np.diff(times).astype("timedelta64[ns]").astype(np.float64) / 1e9
        expected = self.step_minutes * 60
        if np.any(np.abs(seconds - expected) > _CADENCE_TOLERANCE_SECONDS):
            raise ValueError(
                f"the times are {sorted({float(s) for s in seconds})} s apart; {self.name} needs "
                f"{expected:g} s between frames"
            )
        return times[-1]


def _as_tensor(frames: Any) -> Tensor:
    """Return an array as a tensor that shares its memory where possible; masked elements are missing."""
    if isinstance(frames, Tensor):
        tensor = frames.detach()
    elif isinstance(frames, np.ndarray):
        if isinstance(frames, np.ma.MaskedArray):
            frames = frames.filled(MISSING_CODE if frames.dtype == np.uint8 else np.nan)
        if frames.dtype.kind not in "fu" or (frames.dtype.kind == "u" and frames.dtype != np.uint8):
            raise TypeError(_wrong_dtype(frames.dtype))
        native = frames.astype(frames.dtype.newbyteorder("="), copy=False)
        tensor = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    else:
        raise TypeError(f"frames are a {type(frames).__name__}; give a NumPy array, a torch tensor or a DataArray")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise TypeError(_wrong_dtype(tensor.dtype))
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _wrong_dtype(dtype: Any) -> str:
    return f"frames have dtype {dtype}; give uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing)"


def _check_values(frames: Tensor) -> None:
    if frames.dtype == torch.uint8:
        return
    present = frames[~torch.isnan(frames)]
    if not present.numel():
        raise ValueError("every value of frames is NaN (missing)")
    low, high = (edge.item() for edge in torch.aminmax(present))
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(
            f"frames are floats from {low:g} to {high:g}, which must lie in [0, 1]: give encoded values as uint8, "
            "divide them by 255, or convert physical values by Forecaster.from_physical"
        )
