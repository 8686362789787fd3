"""Check observation and forecast of a batch, and convert them to the form that is counted."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.data.encoding import as_native, code_to_unit

from .physical_values import physical_values
from .protocols import ScoreProtocol

# A float forecast beyond this is not a [0, 1] field: it contains pixel values, mm/h, or the output of a diverged model.
_LARGEST_FORECAST = 2.0
_ROUNDING = 1e-6
_ENCODED = "uint8 pixel values or floats in [0, 1]"
_SMALLEST_GRID = 32  # pixels; smaller fields may have any shape


@dataclasses.dataclass(frozen=True)
class Batch:
    """Fields of N windows: observation and mask ``[N, T, H, W]``, forecast ``[N, M, T, H, W]``."""

    observation: Tensor
    forecast: Tensor
    valid: Tensor | None
    is_ensemble: bool
    observation_has_nan: bool
    forecast_has_nan: bool

    @property
    def windows(self) -> int:
        """The number of windows."""
        return len(self.observation)


@dataclasses.dataclass(frozen=True)
class Window:
    """One window in the form that is counted.

    Attributes:
        observation: uint8 pixel values or floats ``[T, H, W]``.
        unit: the observation as [0, 1] floats, NaN where missing.
        forecasts: [0, 1] floats ``[T, H, W]``: the forecast, the mean of the members, or each member.
        members: ``[M, T, H, W]`` of an ensemble, NaN where a member is missing, else None.
        valid: False where the domain mask excludes a pixel; ``unit`` is NaN there.
        event: the event of the window.
        batch_range: largest minus smallest valid observed pixel value of the batch, in whole pixel values, over the
            scale; NaN if no pixel of the batch is valid.
    """

    observation: Tensor
    unit: Tensor
    forecasts: tuple[Tensor, ...]
    members: Tensor | None
    valid: Tensor | None
    event: str
    batch_range: float
    observation_has_nan: bool
    forecast_has_nan: bool


def require_dense(field: Tensor, name: str) -> None:
    """Raise an error for a tensor without data or without a dense layout.

    Raises:
        TypeError: names the device or the layout.
    """
    if field.is_meta or field.layout != torch.strided:
        place = "device meta" if field.is_meta else f"layout {field.layout}"
        raise TypeError(f"{name} are a tensor of {place}; give a dense tensor with data")


def reject_time_last(shape: Sequence[int], name: str) -> None:
    """Raise an error if the last three axes are evidently [H, W, T], as in files of SEVIR, instead of [T, H, W].

    Raises:
        ValueError: there are as many time steps as rows and fewer columns, or columns are fewer than a quarter of both.
    """
    time, rows, columns = shape[-3:]
    if min(time, rows) >= _SMALLEST_GRID and (columns < time == rows or 4 * columns < min(time, rows)):
        raise ValueError(
            f"{name} of shape {tuple(shape)} seem to have the axes [H, W, T]; [T, H, W] is needed, for example "
            "numpy.moveaxis(field, -1, -3)"
        )


def check_fields(
    observation: Tensor | np.ndarray,
    forecast: Tensor | np.ndarray,
    *,
    protocol: ScoreProtocol,
    valid: Tensor | np.ndarray | None,
) -> Batch:
    """Return the fields as tensors after checking them.

    Raises:
        ValueError: shapes or devices differ, floats are not [0, 1] fields, or values are not in a physical unit.
        TypeError: a field is neither uint8 nor floating point, or ``valid`` is not boolean.
    """
    expected = f"floats in {protocol.unit}" if protocol.comparison == "physical" else _ENCODED
    observation, forecast = _field(observation, "observation", expected), _field(forecast, "forecast", expected)
    if observation.dim() == 3:  # one window
        observation, forecast = observation[None], forecast[None]
    members = forecast.dim() == 5
    if observation.dim() != 4 or observation.shape != (forecast[:, 0] if members else forecast).shape:
        raise ValueError(
            f"observation {tuple(observation.shape)} and forecast {tuple(forecast.shape)} must have the same shape "
            "[N, T, H, W]; an ensemble forecast has shape [N, M, T, H, W]"
        )
    if observation.device != forecast.device:
        raise ValueError(
            f"observation is on {observation.device} and forecast on {forecast.device}; both must be on one device"
        )
    if protocol.comparison == "physical":
        observation = physical_values(observation, "observation", protocol)
        forecast = physical_values(forecast, "forecast", protocol)
        if observation.dtype != forecast.dtype:  # the same value must be on the same side of a threshold in both
            observation, forecast = observation.float(), forecast.float()
        observation_has_nan, forecast_has_nan = (bool(torch.isnan(one).any()) for one in (observation, forecast))
    else:
        observation_has_nan, forecast_has_nan = _check_range(observation, forecast, protocol)
    return Batch(
        observation=observation,
        forecast=forecast if members else forecast[:, None],
        valid=None if valid is None else _mask(valid, observation),
        is_ensemble=members and forecast.shape[1] > 1,
        observation_has_nan=observation_has_nan,
        forecast_has_nan=forecast_has_nan or (forecast.dtype == torch.uint8 and protocol.missing is not None),
    )


def windows_of(batch: Batch, protocol: ScoreProtocol, events: Sequence[str]) -> Iterator[Window]:
    """Yield the windows of a batch with their forecasts clipped, rounded and reduced according to the protocol."""
    batch_range = _batch_range(batch, protocol) if "ssim_batch_range" in protocol.oddities else 1.0
    for row, event in enumerate(events):
        observation = batch.observation[row]
        members = _clip_and_round(_unit(batch.forecast[row], protocol), protocol)
        if protocol.members == "each":
            forecasts = tuple(members)
        else:
            forecasts = (mean_of_members(members, protocol) if batch.is_ensemble else members[0],)
        valid = None if batch.valid is None else batch.valid[row]
        unit = _unit(observation, protocol)
        yield Window(
            observation=observation,
            unit=unit if valid is None else unit.masked_fill(~valid, torch.nan),
            forecasts=forecasts,
            members=members if batch.is_ensemble else None,
            valid=valid,
            event=event,
            batch_range=batch_range,
            observation_has_nan=batch.observation_has_nan,
            forecast_has_nan=batch.forecast_has_nan,
        )


def mean_of_members(members: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Return the mean over the members (axis 0), NaN where the protocol scores no ensemble (``missing_members``)."""
    ignores = protocol.missing_members == "ignore"
    if protocol.comparison != "physical":  # rounded as in published scores
        return members.nanmean(0) if ignores else members.mean(0)
    # Differences to the smallest member: the mean of equal members is exactly their value, and reaches what they reach.
    smallest = (members.masked_fill(members.isnan(), torch.inf) if ignores else members).amin(0)
    differences = members.double() - smallest.double()
    mean = smallest.double() + (differences.nanmean(0) if ignores else differences.mean(0))
    return mean.to(members.dtype)


def has_forecast(missing: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Return where an ensemble is scored, from where each member is missing, boolean ``[M, ...]`` (axis 0 is reduced).

    With ``missing_members="mask"`` every member must be present, with ``"ignore"`` at least one.
    """
    return ~(missing.all(0) if protocol.missing_members == "ignore" else missing.any(0))


def _unit(field: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Return a field in [0, 1] with NaN where missing; pixel values become the float32 values that models see."""
    if field.dtype != torch.uint8:
        return field.float() if field.dtype in (torch.float16, torch.bfloat16) else field
    codes = torch.arange(256, device=field.device).to(torch.uint8)
    table = code_to_unit(codes, protocol.scale)
    if protocol.missing is not None:
        table[protocol.missing] = torch.nan
    return table.index_select(0, field.flatten().int()).view(field.shape)


def _clip_and_round(unit: Tensor, protocol: ScoreProtocol) -> Tensor:
    if protocol.clip:
        unit = unit.clamp(0.0, 1.0)
    if protocol.rounding == "none":
        return unit
    codes = unit.double() * protocol.scale
    # Add 2 ulp of float32, so that a pixel value converted to float32 and back is not truncated to the one below.
    codes = codes.round() if protocol.rounding == "nearest" else (codes * (1 + 2.0**-22)).floor()
    return codes.div_(protocol.scale).float()


def _batch_range(batch: Batch, protocol: ScoreProtocol) -> float:
    unit = _unit(batch.observation, protocol).float()
    valid = ~torch.isnan(unit) if batch.valid is None else batch.valid & ~torch.isnan(unit)
    present = unit[valid] * protocol.scale
    return int(present.max() - present.min()) / protocol.scale if present.numel() else torch.nan


def _field(field: Tensor | np.ndarray, name: str, expected: str) -> Tensor:
    if isinstance(field, np.ndarray):
        if field.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be {expected}, got {field.dtype}")
        field = torch.from_numpy(np.require(as_native(field), requirements=["C", "W"]))
    elif not isinstance(field, Tensor):
        raise TypeError(f"{name} must be a NumPy array, a torch tensor or a DataArray, got {type(field).__name__}")
    require_dense(field, f"values of {name}")
    axes = "[N, T, H, W]" if name == "observation" else "[N, T, H, W] or [N, M, T, H, W]"
    if field.dim() not in ((3, 4) if name == "observation" else (3, 4, 5)) or not field.numel():
        raise ValueError(f"{name} must be {axes} with at least one pixel, got shape {tuple(field.shape)}")
    reject_time_last(field.shape, f"values of {name}")
    if field.dtype != torch.uint8 and not field.is_floating_point():
        raise TypeError(f"{name} must be {expected}, got {field.dtype}")
    return field.detach()


def _mask(valid: Tensor | np.ndarray, observation: Tensor) -> Tensor:
    mask = torch.as_tensor(valid, device=observation.device)
    if mask.dtype != torch.bool:
        raise TypeError(f"valid must be boolean (True where a pixel counts), got {mask.dtype}")
    try:
        return mask.expand(observation.shape)
    except RuntimeError as error:
        raise ValueError(
            f"valid {tuple(mask.shape)} does not broadcast to the shape of the fields {tuple(observation.shape)}"
        ) from error


def _check_range(observation: Tensor, forecast: Tensor, protocol: ScoreProtocol) -> tuple[bool, bool]:
    """Raise an error for floats that are not [0, 1] fields; return whether each field contains a NaN.

    A forecast may reach 1, to which models clip. In an observation, 1 is the missing code divided by the scale.
    """
    observation_has_nan, low, high = _extremes(observation)
    if observation.is_floating_point() and not 0 <= low <= high <= 1:
        raise ValueError(
            f"float observations must be pixel values / 255 in [0, 1] with NaN for missing, got {low:g} to {high:g}; "
            "pass pixel values as uint8"
        )
    # Published evaluators count it as precipitation; protocols that exclude missing pixels must not.
    excluded = protocol.missing if protocol.missing_rule == "excluded" else None
    if observation.is_floating_point() and excluded == protocol.scale and high >= 1.0 - _ROUNDING:
        raise ValueError(
            f"float observations contain 1 = {protocol.missing} / {protocol.scale:g}, the missing pixel value; pass "
            "uint8 pixel values, or NaN where a pixel is missing"
        )
    forecast_has_nan, low, high = _extremes(forecast)
    if forecast.is_floating_point() and max(-low, high) > _LARGEST_FORECAST:
        raise ValueError(
            f"float forecasts must be pixel values / 255 near [0, 1], got a magnitude of {max(-low, high):g}; "
            "pass pixel values as uint8, or check whether the model diverged"
        )
    return observation_has_nan, forecast_has_nan


def _extremes(field: Tensor) -> tuple[bool, float, float]:
    """Return whether a field contains NaN, its minimum and its maximum; 0 and 0 for uint8 and for only NaN."""
    if not field.is_floating_point():
        return False, 0.0, 0.0
    low, high = (edge.item() for edge in torch.aminmax(field))
    if low == low:
        return False, low, high
    present = field[~torch.isnan(field)]
    if not present.numel():
        return True, 0.0, 0.0
    low, high = (edge.item() for edge in torch.aminmax(present))
    return True, low, high
