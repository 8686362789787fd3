"""From frames to sufficient statistics: one pass over observation and forecast, whatever the number of thresholds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.data.codes import code_to_unit

from .protocols import ScoreProtocol
from .statistics import SUMS, Statistics, group_events, merge

# A float forecast beyond this is no [0, 1] field: it holds codes, mm/h, or a diverged model.
_LARGEST_FORECAST = 10.0


class Accumulator:
    """Streaming verification: add batches, then read ``statistics``.

    Args:
        protocol: the rule by which pixels are counted.
    """

    def __init__(self, protocol: ScoreProtocol):
        self.protocol = protocol
        self._parts: list[Statistics] = []

    def add(
        self,
        observation: Tensor | np.ndarray,
        forecast: Tensor | np.ndarray,
        *,
        events: Sequence[str],
        valid: Tensor | np.ndarray | None = None,
    ) -> None:
        """Count one batch (see :func:`count`); ``events`` names the event of each of its windows."""
        self._parts.append(count(observation, forecast, protocol=self.protocol, events=events, valid=valid))

    @property
    def statistics(self) -> Statistics:
        """Everything added so far, merged; a ValueError where nothing was added."""
        merged = merge(self._parts)
        self._parts = [merged]
        return merged


def count(
    observation: Tensor | np.ndarray,
    forecast: Tensor | np.ndarray,
    *,
    protocol: ScoreProtocol,
    events: Sequence[str] | None = None,
    valid: Tensor | np.ndarray | None = None,
) -> Statistics:
    """Count a batch of windows on the device of its inputs.

    Each pixel is put between two thresholds in both fields; the joint histogram of these levels holds the 2 x 2 tables
    of all thresholds at once, so the fields are read once whatever the number of thresholds.

    Args:
        observation: ``[N, T, H, W]``, uint8 codes or floats in [0, 1] (NaN missing).
        forecast: ``[N, T, H, W]``, uint8 codes or floats (NaN missing), neither clipped nor rounded here.
        protocol: thresholds, comparison and mask rule.
        events: the event of each window; windows of one event are summed. By default each window is an event.
        valid: boolean, broadcastable to ``[N, T, H, W]``; False pixels count as missing (a domain mask).

    Raises:
        ValueError: shapes differ, or floats are not [0, 1] fields.
        TypeError: a field is neither uint8 nor floating, or ``valid`` is not boolean.
    """
    observation, forecast = _field(observation, "observation"), _field(forecast, "forecast")
    if observation.shape != forecast.shape:
        raise ValueError(
            f"observation {tuple(observation.shape)} and forecast {tuple(forecast.shape)} must have one shape "
            "[N, T, H, W]"
        )
    if observation.device != forecast.device:
        raise ValueError(f"observation is on {observation.device}, forecast on {forecast.device}; move one of them")
    keys = [f"{row:08d}" for row in range(len(observation))] if events is None else [str(key) for key in events]
    if len(keys) != len(observation):
        raise ValueError(f"{len(keys)} event keys for {len(observation)} windows; give one key a window")
    _check_range(observation, forecast)
    mask = None if valid is None else _mask(valid, observation)
    windows = [
        _count_window(observation[n], forecast[n], protocol=protocol, valid=None if mask is None else mask[n])
        for n in range(len(observation))
    ]
    sums = {name: torch.stack([window[name] for window in windows]) for name in SUMS}
    return group_events(protocol, keys=keys, sums=sums)


def _count_window(
    observation: Tensor, forecast: Tensor, *, protocol: ScoreProtocol, valid: Tensor | None
) -> dict[str, Tensor]:
    """Count one window ``[T, H, W]``; returns the sums without their events axis."""
    levels = len(protocol.thresholds) + 1
    observed, predicted = _levels(observation, protocol), _levels(forecast, protocol)
    if valid is not None:
        observed.masked_fill_(~valid, levels)
    sums = _tables(_joint_histogram(observed, predicted, bins=levels + 1), protocol)
    both = (observed != levels) & (predicted != levels)
    difference = _unit(forecast, protocol).sub_(_unit(observation, protocol)).masked_fill_(~both, 0.0)
    sums["absolute_error"] = difference.abs().sum((1, 2))
    sums["squared_error"] = difference.square_().sum((1, 2))
    return sums


def _levels(field: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Return how many thresholds each pixel reaches, uint8 ``[T, H, W]``; missing pixels get one more than all."""
    missing = len(protocol.thresholds) + 1
    if field.dtype == torch.uint8:
        codes = torch.arange(256, device=field.device).to(torch.uint8)
        table = (
            _released_levels(codes, protocol) if protocol.comparison == "released" else _code_levels(codes, protocol)
        )
        if protocol.missing is not None:
            table[protocol.missing] = missing
        return table.index_select(0, field.flatten().int()).view(field.shape)
    if protocol.comparison == "released":
        levels = _released_levels(field, protocol)
    else:
        unit_thresholds = torch.tensor(protocol.thresholds, dtype=torch.float64).div(protocol.scale).float()
        levels = _reached(field.float(), unit_thresholds)
    return levels.masked_fill_(torch.isnan(field), missing)


def _code_levels(codes: Tensor, protocol: ScoreProtocol) -> Tensor:
    return _reached(codes.to(torch.float64), torch.tensor(protocol.thresholds, dtype=torch.float64))


def _released_levels(field: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Compare as the released evaluators do: fp32 ``x / (1 / scale)``, a true division on every device."""
    unit = code_to_unit(field, protocol.scale) if field.dtype == torch.uint8 else field.float()
    step = torch.full((), 1.0 / protocol.scale, dtype=torch.float32, device=field.device)
    return _reached(unit / step, torch.tensor(protocol.thresholds, dtype=torch.float32))


def _reached(field: Tensor, thresholds: Tensor) -> Tensor:
    # Comparing once a threshold is four times faster on a CPU than torch.bucketize.
    reached = torch.zeros(field.shape, dtype=torch.uint8, device=field.device)
    for threshold in thresholds.tolist():
        reached += (field >= threshold).view(torch.uint8)
    return reached


def _joint_histogram(observed: Tensor, predicted: Tensor, *, bins: int) -> Tensor:
    """Return how often each pair of levels meets, int64 ``[T, observed, predicted]``."""
    frames = observed.shape[0]
    offset = torch.arange(frames, device=observed.device, dtype=torch.int32) * (bins * bins)
    pair = observed.int().mul_(bins).add_(predicted).add_(offset.view(-1, 1, 1))
    return torch.bincount(pair.flatten(), minlength=frames * bins * bins).view(frames, bins, bins)


def _tables(histogram: Tensor, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Read the tables ``[thresholds, T]`` and pixel counts ``[T]`` off a joint histogram ``[T, L + 1, L + 1]``."""
    levels = histogram.shape[-1] - 1
    valid = histogram[:, :levels, :levels]
    at_least = valid.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)
    hits = at_least.diagonal(dim1=1, dim2=2)[:, 1:]
    observed_events, forecast_events = at_least[:, 1:, 0], at_least[:, 0, 1:]
    pixels = valid.sum((1, 2))
    counted = histogram.sum((1, 2)) if protocol.missing_rule == "non-event" else pixels
    table = {
        "hits": hits,
        "misses": observed_events - hits,
        "false_alarms": forecast_events - hits,
        "correct_negatives": counted[:, None] - observed_events - forecast_events + hits,
    }
    sums = {name: counts.transpose(0, 1).contiguous() for name, counts in table.items()}
    return sums | {"valid_pixels": pixels, "observed_pixels": histogram[:, :levels].sum((1, 2))}


def _unit(field: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Return the field in [0, 1] as a new float64 tensor; a code has the float32 value that models see."""
    if field.dtype == torch.uint8:
        return code_to_unit(field, protocol.scale).double()
    return field.to(torch.float64, copy=True)


def _field(field: Tensor | np.ndarray, name: str) -> Tensor:
    if isinstance(field, np.ndarray):
        field = torch.from_numpy(np.require(field, requirements=["C", "W"]))
    if field.dim() != 4 or not field.numel():
        raise ValueError(f"{name} must be [N, T, H, W] with at least one pixel, got shape {tuple(field.shape)}")
    if field.dtype != torch.uint8 and not field.is_floating_point():
        raise TypeError(f"{name} must be uint8 codes or floats in [0, 1], got {field.dtype}")
    return field.detach()


def _mask(valid: Tensor | np.ndarray, observation: Tensor) -> Tensor:
    mask = torch.as_tensor(valid, device=observation.device)
    if mask.dtype != torch.bool:
        raise TypeError(f"valid must be boolean, True where a pixel counts, got {mask.dtype}")
    try:
        return mask.expand(observation.shape)
    except RuntimeError as error:
        raise ValueError(
            f"valid {tuple(mask.shape)} does not broadcast to the fields' {tuple(observation.shape)}"
        ) from error


def _check_range(observation: Tensor, forecast: Tensor) -> None:
    # NaN answers False to every comparison, so missing pixels pass.
    if observation.is_floating_point() and bool(((observation < 0) | (observation > 1)).any()):
        low, high = (float(edge) for edge in torch.aminmax(observation[~torch.isnan(observation)]))
        raise ValueError(
            f"float observations must be codes / 255 in [0, 1] with NaN for missing, got {low:g} to {high:g}; "
            "pass codes as uint8"
        )
    if forecast.is_floating_point() and bool((forecast.abs() > _LARGEST_FORECAST).any()):
        largest = float(forecast[~torch.isnan(forecast)].abs().max())
        raise ValueError(
            f"float forecasts must be codes / 255 near [0, 1], got a magnitude of {largest:g}; "
            "pass codes as uint8, or look for a diverged model"
        )
