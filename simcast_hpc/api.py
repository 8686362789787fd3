"""Public Python API behind ``import simcast_hpc``: trained models and baselines as forecasters of arrays.

Fields are encoded values: uint8 (255 missing), or floats in [0, 1], which are encoded values / 255 (NaN missing).
:meth:`Forecaster.to_physical` and :meth:`Forecaster.from_physical` convert between these and physical units.
"""

import difflib
import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.baselines import BASELINES, Baseline, load_baseline
from simcast_hpc.config import ConfigError, TrainConfig, expand_path
from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.open_windows import pixel_spacing_km, step_minutes, target_spec
from simcast_hpc.data_arrays import (
    ArrayModel,
    attributes_of,
    forecast_data_array,
    is_data_array,
    require_encoded,
    require_unit,
)
from simcast_hpc.inference.ensemble import Ensemble
from simcast_hpc.inference.input_arrays import (
    MISSING_AS_FLOAT,
    ROUNDING,
    as_array,
    as_tensor,
    checked_values,
    missing_in_any,
    missing_summary,
)
from simcast_hpc.inference.postprocessing import (
    Postprocessing,
    check_postprocessing,
    load_postprocessing,
    no_echo_limit,
)
from simcast_hpc.inference.probability_matching import ProbabilityMatching
from simcast_hpc.inference.trained_ensemble import load_run
from simcast_hpc.inference.trained_model import TrainedModel, forecast_device
from simcast_hpc.radar.radar_frame import require_plausible
from simcast_hpc.storage.compile_caches import check_caches
from simcast_hpc.verification.input_fields import reject_time_last

if TYPE_CHECKING:
    import xarray

__all__ = ["Forecaster", "load"]

_AXES = "[T, H, W] or [B, T, H, W]"
_MAX_LEAD_TIME = 10_000


def load(
    run_or_name: str | os.PathLike[str],
    *,
    dataset: str | os.PathLike[str] | DatasetSpec | None = None,
    device: torch.device | str | None = None,
    postprocess: str = "none",
) -> "Forecaster":
    """Load a finished training run, or a baseline by name, as a forecaster.

    Args:
        run_or_name: run directory of a stage that forecasts (``teacher``, ``direct``, ``student``, ``diffusion``), or
            the name of a baseline (``persistence``, ``extrapolation``, ``steps``, ...). An existing directory of this
            name takes precedence.
        dataset: for baselines only: the data set whose encoding the fields have, a name, a YAML file or a description.
        device: where the network runs, by default the first CUDA device, else the CPU. Baselines run on the CPU.
        postprocess: change of the values of each forecast: ``none``, ``probability-matching`` (with the last input
            frame), or ``quantile-mapping``, for a run after ``simcast calibrate RUN``.

    Raises:
        ConfigError: no such run or baseline, an unfinished or damaged run, ``dataset`` or ``device`` does not apply, or
            an unknown ``postprocess`` or one that was not fitted for the run.
        TypeError: ``run_or_name`` is neither text nor a path.
        ImportError: the baseline needs an extra that is not installed.
    """
    if not isinstance(run_or_name, (str, os.PathLike)):
        raise TypeError(f"run_or_name={run_or_name!r} must be a run directory or the name of a baseline")
    check_postprocessing(postprocess)
    chosen = forecast_device() if device is None else _checked_device(device)
    name = str(run_or_name)
    path = expand_path(name, where="run_or_name")
    if os.path.isdir(path):
        if dataset is not None:
            raise ConfigError(f"dataset={dataset!r} is for baselines; the run {path} has its own data set")
        model = load_run(Path(path), device=chosen)
        forecaster = Forecaster.of_run(model, device=chosen)
        forecaster.postprocessing = load_postprocessing(postprocess, Path(path), model)
        return forecaster
    if os.path.isfile(path):
        raise ConfigError(f"{path} is a file; give the run directory that contains config.yaml and DONE.json")
    if name not in BASELINES:
        near = difflib.get_close_matches(name.lower(), BASELINES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name!r} is neither a run directory nor a baseline ({', '.join(BASELINES)}){hint}")
    if dataset is None:
        raise ConfigError(f"the baseline {name} needs dataset=, the data set whose encoding the fields have")
    if postprocess == "quantile-mapping":
        raise ConfigError(f"postprocess={postprocess!r} is fitted for a run; the baseline {name} has none")
    spec = dataset if isinstance(dataset, DatasetSpec) else read_spec(str(dataset))
    forecaster = Forecaster.of_baseline(name, spec)
    if postprocess == "probability-matching":
        forecaster.postprocessing = ProbabilityMatching(no_echo_limit(spec.encoding))
    return forecaster


class Forecaster:
    """A trained model, ensemble or baseline that forecasts arrays.

    Attributes:
        name: name of the run or the baseline.
        frames_in: number of past frames that :meth:`forecast` needs (T); of a baseline the smallest number.
        frames_out: number of lead times in one pass; None for a baseline, which has no horizon of its own.
        step_minutes: minutes between two frames.
        members: default number of ensemble members; None for a deterministic forecast.
        spacing_km: size of a pixel.
        dataset: description of the data set whose encoding the fields have.
        postprocessing: changes the values of each forecast; None for none.
    """

    def __init__(self, model: TrainedModel | Ensemble | Baseline, dataset: DatasetSpec, device: torch.device):
        """Wrap ``model``; use :func:`load`, :meth:`of_run` or :meth:`of_baseline`."""
        self.model, self.dataset, self.device = model, dataset, device
        self.config: TrainConfig | None = None
        self.postprocessing: Postprocessing | None = None
        self.name, self.frames_in, self.frames_out = "", 1, None
        self.step_minutes, self.spacing_km, self.members = dataset.step_minutes, dataset.grid.spacing_km, None

    @classmethod
    def of_run(cls, model: TrainedModel | Ensemble, *, device: torch.device) -> "Forecaster":
        """Return a forecaster of a loaded model whose networks are on ``device``."""
        config = model.config
        forecaster = cls(model, target_spec(config.data), device)
        forecaster.config, forecaster.name, forecaster.step_minutes = config, config.name, step_minutes(config.data)
        forecaster.spacing_km = pixel_spacing_km(config.data)
        forecaster.frames_in, forecaster.frames_out = config.sequence.frames_in, config.frames_out
        forecaster.members = model.sampling.members if isinstance(model, Ensemble) else None
        return forecaster

    @classmethod
    def of_baseline(cls, name: str, dataset: DatasetSpec) -> "Forecaster":
        """Return a forecaster of a baseline for fields in the encoding of ``dataset``."""
        baseline = load_baseline(
            name, dataset.encoding, step_minutes=dataset.step_minutes, spacing_km=dataset.grid.spacing_km
        )
        forecaster = cls(baseline, dataset, torch.device("cpu"))
        forecaster.name, forecaster.frames_in = name, getattr(baseline, "min_frames", 1)
        forecaster.members = getattr(baseline, "members", None)
        return forecaster

    def forecast(
        self,
        frames: "np.ndarray | Tensor | xarray.DataArray",
        lead_times: int | Sequence[float] | None = None,
        members: int | None = None,
        *,
        any_spacing: bool = False,
    ) -> Any:
        """Forecast the frames that follow ``frames``.

        Args:
            frames: the last ``frames_in`` frames, oldest first, ``[T, H, W]`` or ``[B, T, H, W]``: uint8 encoded
                values (255 missing) or floats in [0, 1] (NaN missing), as a NumPy array, a torch tensor or an
                ``xarray.DataArray`` with a time dimension.
            lead_times: how many lead times, or which ones, counted in steps from 1; the model's horizon by default. A
                deterministic model is rolled out beyond its horizon.
            members: number of ensemble members, for a run of stage ``diffusion`` or of a network with noise channels.
            any_spacing: accept a DataArray whose coordinates have another pixel size than the training data.

        Returns:
            float32 in [0, 1], ``[T', H, W]`` or ``[B, T', H, W]``, of an ensemble ``[M, T', H, W]`` or
            ``[B, M, T', H, W]``. NumPy for NumPy; a tensor on the input's device for a tensor; a DataArray with
            the coordinates of the lead times, the grid and the members for a DataArray. A pixel is NaN where it is
            missing in any input frame of a network, or in the last frame of a baseline.

        Raises:
            TypeError: ``frames`` is not an array, its dtype is neither uint8 nor floating, or it has no dense data.
            ValueError: wrong number of axes or frames, values outside [0, 1] by more than 1e-6, floats of 1 (255 / 255,
                the missing code), infinite values, a sample without a pixel that is valid in all frames (the last frame
                is missing), invalid lead times or members; time steps, units or grid coordinates of a DataArray that
                are not those of the model.
            ConfigError: the model cannot take this grid.
        """
        steps = self._lead_times(lead_times)
        count = self._member_count(members)
        if is_data_array(frames):
            model = ArrayModel(
                self.name, self.dataset.encoding.unit, self.step_minutes, None if any_spacing else self.spacing_km
            )
            run = lambda values: self._forecast_array(values, steps, count)  # noqa: E731
            return forecast_data_array(frames, run, model, steps, is_ensemble=count is not None)
        return self._forecast_array(frames, steps, count)

    def to_physical(self, forecast: "np.ndarray | Tensor | xarray.DataArray") -> Any:
        """Return float32 values in ``dataset.encoding.unit`` of fields in [0, 1] or encoded values; NaN stays missing.

        A DataArray is returned as one, with attribute ``units``; otherwise the result is a NumPy array.

        Raises:
            TypeError: the dtype is neither uint8 nor floating.
            ValueError: floats are outside [0, 1], or all are multiples of 1 / 255 with 1 among them: encoded values
                / 255 with the missing code; or a DataArray has physical units already.
        """
        if is_data_array(forecast):
            require_encoded(forecast, self.dataset.encoding.unit, "to_physical")
            return forecast.copy(data=self.to_physical(forecast.values)).assign_attrs(units=self.dataset.encoding.unit)
        values = as_array(forecast)
        if values.dtype == np.uint8:
            return self.dataset.encoding.decode(values)
        if values.dtype.kind != "f":
            raise TypeError(f"forecast has dtype {values.dtype}; give uint8 encoded values or floats in [0, 1]")
        step = MISSING_CODE * max(np.finfo(values.dtype).eps, np.finfo(np.float32).eps)
        values = values.astype(np.float64)
        outside = values[(values < -ROUNDING) | (values > 1.0 + ROUNDING)]
        if outside.size:
            raise ValueError(f"forecast contains {outside[0]:g}; floats must be encoded values / 255 in [0, 1]")
        codes = values * MISSING_CODE
        present = codes[~np.isnan(codes)]
        # A forecast may be clipped to 1; only encoded values / 255 are all on whole values.
        if (present >= MISSING_CODE - step).any() and (np.abs(present - np.rint(present)) <= step).all():
            raise ValueError(f"forecast contains {MISSING_AS_FLOAT}")
        return self.dataset.encoding.value_of(codes).astype(np.float32)

    def from_physical(self, values: "np.ndarray | Tensor | xarray.DataArray") -> Any:
        """Return uint8 encoded values (255 missing) of values in ``dataset.encoding.unit`` (NaN or masked: missing).

        Values outside the range of the encoding get its first or last value; those of mm/h and kg/m^2 from -0.001 to 0
        are rounding noise and become 0. A DataArray is returned as one.

        Raises:
            TypeError: the values are not real numbers.
            ValueError: a value is plus infinity, negative in mm/h or kg/m^2, or not plausible in its unit; or the
                attribute ``units`` of a DataArray is another unit.
        """
        if is_data_array(values):
            require_unit(values, self.dataset.encoding.unit)
            encoded = values.copy(data=self.from_physical(values.values))
            encoded.attrs = attributes_of(values)
            return encoded
        given = np.ma.asarray(values) if not isinstance(values, Tensor) else as_array(values)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"values have dtype {given.dtype}; give real numbers in {self.dataset.encoding.unit}")
        physical = np.ma.filled(given.astype(np.float64), np.nan)
        require_plausible(physical, self.dataset.encoding.unit)
        return self.dataset.encoding.encode(physical)

    def __repr__(self) -> str:
        horizon = "any lead time" if self.frames_out is None else f"{self.frames_out} lead times"
        return f"Forecaster({self.name!r}: {self.frames_in} frames in, {horizon} of {self.step_minutes:g} min)"

    def _lead_times(self, lead_times: int | Sequence[float] | None) -> list[int]:
        if lead_times is None:
            if self.frames_out is None:
                raise ValueError(f"lead_times is required for the baseline {self.name}, for example lead_times=12")
            return list(range(1, self.frames_out + 1))
        # Arrays, tensors and NumPy scalars have tolist()
        given = getattr(lead_times, "tolist", lambda: lead_times)()
        each: Any = [given] if isinstance(given, Real) else given
        numbers = isinstance(each, Sequence) and not isinstance(each, bytes)
        if not numbers or not all(isinstance(step, Real) and not isinstance(step, bool) for step in each):
            raise TypeError(f"lead_times={lead_times!r} must be an int or a sequence of ints, counted in steps from 1")
        if not all(isinstance(step, Integral) or float(step).is_integer() for step in each):
            raise ValueError(f"lead_times={lead_times!r} must be whole steps of {self.step_minutes:g} minutes")
        if any(step > _MAX_LEAD_TIME for step in each):
            raise ValueError(f"lead_times={lead_times!r} exceeds {_MAX_LEAD_TIME}, the largest lead time in steps")
        steps = list(range(1, int(each[0]) + 1)) if isinstance(given, Real) else [int(step) for step in each]
        if not steps or min(steps) < 1 or sorted(set(steps)) != steps:
            raise ValueError(f"lead_times={lead_times!r} must be ascending steps from 1, for example 12 or [1, 6, 12]")
        if isinstance(self.model, Ensemble) and steps[-1] > (self.frames_out or 0):
            raise ValueError(f"lead time {steps[-1]} is beyond the ensemble's horizon; it has 1 to {self.frames_out}")
        if self.postprocessing is not None:
            self.postprocessing.check_leads(steps[-1])
        return steps

    def _member_count(self, members: int | None) -> int | None:
        if members is None:
            return self.members
        if not isinstance(self.model, Ensemble):
            own = f"has {self.members} members" if self.members else "is deterministic"
            raise ValueError(f"members={members} needs an ensemble of variable size; {self.name} {own}")
        if isinstance(members, bool) or not isinstance(members, Integral) or members < 1:
            raise ValueError(f"members={members!r} must be a positive int")
        return int(members)

    def _checked(self, frames: Any) -> tuple[Tensor, bool]:
        """Return the frames as a checked tensor ``[B, T, H, W]``, and whether the batch axis was added."""
        tensor = as_tensor(frames)
        shape = tuple(tensor.shape)
        if tensor.dim() not in (3, 4) or 0 in shape:
            raise ValueError(f"frames have shape {shape}; {_AXES} with at least one pixel is needed")
        if self.frames_out is None:
            reject_time_last(shape, "frames")
        count = shape[-3]
        enough = count >= self.frames_in if self.frames_out is None else count == self.frames_in
        if not enough:
            exact = "at least" if self.frames_out is None else "exactly"
            raise ValueError(
                f"frames of shape {shape} have {count} time steps (axes are {_AXES}); {self.name} needs {exact} "
                f"{self.frames_in}: give the last ones"
            )
        if isinstance(self.model, (TrainedModel, Ensemble)):
            self.model.check_grid((shape[-2], shape[-1]))
        batch = checked_values(tensor.reshape(-1, *shape[-3:]))
        if problem := missing_summary(batch[:, -self.frames_in :]):
            raise ValueError(f"{problem}. Give frames that end with an observed one, and interpolate frames before it")
        return batch, tensor.dim() == 3

    def _forecast_array(self, frames: Any, steps: list[int], members: int | None) -> Any:
        batch, unbatched = self._checked(frames)
        result = self._run(batch, steps, members)
        result = result[0] if unbatched else result
        return result.to(frames.device) if isinstance(frames, Tensor) else result.cpu().numpy()

    def _run(self, batch: Tensor, steps: list[int], members: int | None) -> Tensor:
        model = self.model
        if isinstance(model, Ensemble):
            result = model.members(batch, range(members or model.sampling.members))
        elif isinstance(model, TrainedModel):
            result = model.forecast(batch, frames_out=steps[-1])
        else:
            result = model.forecast(batch, steps[-1])
        if self.postprocessing is not None:
            result = self.postprocessing.apply(result, batch)
        # As in `simcast predict`, no forecast where a network has no complete input; a baseline moves the last frame.
        used = batch if isinstance(model, (TrainedModel, Ensemble)) else batch[:, -1:]
        missing = missing_in_any(used).to(result.device)
        result = result.masked_fill(
            missing.reshape(len(batch), *(1,) * (result.dim() - 3), *missing.shape[1:]), torch.nan
        )
        index = torch.tensor([step - 1 for step in steps], device=result.device)
        return result.index_select(-3, index)


def _checked_device(device: Any) -> torch.device:
    """Return the device after allocating on it."""
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device!r} cannot be used ({reason}); choose cpu or an available cuda:N") from error
    if chosen.type == "cuda":
        check_caches(os.environ, kernels=True)
    return chosen
