"""From frames to sufficient statistics: one pass over observation and forecast, whatever the number of thresholds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .contingency import frame_scores
from .ensemble_scores import ensemble_sums
from .input_fields import Window, checked, windows_of
from .neighbourhood import fraction_sums
from .protocols import ScoreProtocol
from .similarity import ssim
from .spectrum import spectrum_sums
from .sufficient_statistics import TABLE, Statistics, group_events, merge
from .threshold_levels import (
    averaged_levels,
    joint_histogram,
    levels_of,
    missing_level,
    pooled_levels,
    released_levels,
    tables,
)


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
        forecast: ``[N, T, H, W]`` or members ``[N, M, T, H, W]``, uint8 codes or floats (NaN missing), clipped and
            rounded as the protocol says: by default neither.
        protocol: thresholds, comparison, pools, mask rule and what else is summed.
        events: the event of each window; windows of one event are summed. By default each window is an event.
        valid: boolean, broadcastable to ``[N, T, H, W]``; False pixels count as missing (a domain mask).

    Raises:
        ValueError: shapes differ, or floats are not [0, 1] fields.
        TypeError: a field is neither uint8 nor floating, or ``valid`` is not boolean.
    """
    batch = checked(observation, forecast, protocol=protocol, valid=valid)
    keys = [f"{row:08d}" for row in range(batch.windows)] if events is None else [str(key) for key in events]
    if len(keys) != batch.windows:
        raise ValueError(f"{len(keys)} event keys for {batch.windows} windows; give one key a window")
    counted = [_count_window(window, protocol) for window in windows_of(batch, protocol, keys)]
    sums = {name: torch.stack([window[name] for window in counted]) for name in counted[0]}
    return group_events(protocol, keys=keys, sums=sums)


def _count_window(window: Window, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Count one window; returns the sums without their events axis."""
    parts = [_count_fields(window, forecast, protocol) for forecast in window.forecasts]
    sums = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
    if window.members is not None:
        said = torch.stack([levels_of(member, protocol) for member in window.members])
        seen = _hide(levels_of(window.observation, protocol), window, protocol)
        sums |= ensemble_sums(window.unit, window.members, levels=(seen, said), protocol=protocol, event=window.event)
    return sums


def _hide(levels: Tensor, window: Window, protocol: ScoreProtocol) -> Tensor:
    return levels if window.valid is None else levels.masked_fill_(~window.valid, missing_level(protocol))


def _count_fields(window: Window, forecast: Tensor, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Count one forecast ``[T, H, W]`` against the observation."""
    leads = window.observation.shape[0]
    # On a CPU frame by frame where floats are read, so that a frame is still in the cache at the next threshold.
    chunk = 1 if window.observation.device.type == "cpu" else leads
    parts = [slice(begin, begin + chunk) for begin in range(0, leads, chunk)]
    averaged = [pool for pool in protocol.pools if pool.kind == "avg"]
    if averaged and protocol.comparison != "codes":
        codes = window.observation.dtype == torch.uint8 or window.valid is not None
        fields = ((window.unit, codes or window.observation_has_nan), (forecast, window.forecast_has_nan))
        means = [
            _together([released_levels(field[part], averaged, protocol, has_nan=nan) for part in parts])
            for field, nan in fields
        ]
        seen, said = (levels.pop("") for levels in means)
    else:
        observation, has_nan = window.observation, window.observation_has_nan
        seen = torch.cat([levels_of(observation[part], protocol, has_nan=has_nan) for part in parts])
        said = torch.cat([levels_of(forecast[part], protocol, has_nan=window.forecast_has_nan) for part in parts])
        means = []
    seen = _hide(seen, window, protocol)
    hidden = _hidden(seen, said, window, protocol)
    if averaged and not means:
        means = [averaged_levels(field, hidden, averaged, protocol) for field in (window.unit, forecast)]
    joint = _histograms((seen, said), means, hidden, protocol)
    errors = [
        _errors(window.unit[part], forecast[part], seen[part], None if hidden is None else hidden[part], protocol)
        for part in parts
    ]
    sums = _together(errors) | _counts(joint, protocol)
    if protocol.fss_km:
        sums |= fraction_sums(seen, said, protocol)
    return sums | _pictures(window, forecast, hidden, protocol)


def _together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _hidden(seen: Tensor, said: Tensor, window: Window, protocol: ScoreProtocol) -> Tensor | None:
    """Return where a pixel is missing in either field; None where none is."""
    codes = window.observation.dtype == torch.uint8
    if not (codes or window.valid is not None or window.observation_has_nan or window.forecast_has_nan):
        return None
    highest, missing = torch.maximum(seen, said), missing_level(protocol)
    return highest == missing if int(highest.max()) == missing else None


def _histograms(
    levels: tuple[Tensor, Tensor], means: list[dict[str, Tensor]], hidden: Tensor | None, protocol: ScoreProtocol
) -> dict[str, Tensor]:
    """Return the joint histograms of pixels (key empty) and of each pool; ``means`` has levels of averages by pool."""
    bins = missing_level(protocol) + 1
    found = {"": joint_histogram(*levels, bins=bins)}
    for pool in protocol.pools:
        if pool.kind == "max":
            blocks = pooled_levels(*levels, hidden, pool, protocol)
        else:
            blocks = (means[0][pool.key], means[1][pool.key])
        found[pool.key] = joint_histogram(*blocks, bins=bins)
    return found


def _counts(joint: dict[str, Tensor], protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return tables and pixel counts of one window out of its joint histograms."""
    pixels = joint[""]
    by_pool = {name: tables(histogram, protocol) for name, histogram in joint.items()}
    sums = dict(zip(TABLE, by_pool[""], strict=True))
    sums |= {f"{name}/table": counts for name, counts in by_pool.items() if name}
    sums |= {"valid_pixels": pixels[:, :-1, :-1].sum((1, 2)), "observed_pixels": pixels[:, :-1].sum((1, 2))}
    return sums | (frame_scores(by_pool, protocol) if protocol.scores_frames else {})


def _errors(
    observed: Tensor, predicted: Tensor, seen: Tensor, hidden: Tensor | None, protocol: ScoreProtocol
) -> dict[str, Tensor]:
    """Return float64 sums of errors over the pixels valid in both, ``[T]`` each."""
    flat = predicted.to(torch.float64, copy=True).sub_(observed).flatten(1)
    if hidden is not None:
        flat.masked_fill_(hidden.flatten(1), 0.0)
    squared = torch.linalg.vecdot(flat, flat)
    flat.abs_()
    sums = {"absolute_error": flat.sum(1), "squared_error": squared}
    if protocol.balance:
        weights = torch.tensor((*protocol.balance, 0.0), dtype=torch.float64, device=flat.device)
        weighted = weights[seen.flatten(1).int()]
        sums["balanced/absolute"] = torch.linalg.vecdot(weighted, flat)
        sums["balanced/squared"] = torch.linalg.vecdot(weighted, flat.square())
        sums["balanced/frames"] = torch.ones_like(flat[:, 0], dtype=torch.int64)
    return sums


def _pictures(window: Window, forecast: Tensor, hidden: Tensor | None, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return the sums of scores that see frames as pictures."""
    sums: dict[str, Tensor] = {}
    if protocol.ssim:
        sums |= _mean_of_frames("ssim", ssim(window.unit, forecast, hidden=hidden))
    if "ssim_batch_range" in protocol.oddities:
        # Theirs is on the 255 scale; its constants scale with the range, so [0, 1] fields serve.
        values = ssim(window.unit, forecast, data_range=window.batch_range, reflect=True)
        sums |= _mean_of_frames("ssim_batch_range", values)
    if "crps_gaussian" in protocol.oddities and window.members is None:
        sums["crps_gaussian"] = torch.nan_to_num(forecast.double() - window.unit).abs().sum((1, 2))
    if protocol.spectrum:
        averaged = window.members if protocol.members == "mean" else None
        sums |= spectrum_sums(window.unit, forecast, hidden, members=averaged)
    return sums


def _mean_of_frames(name: str, values: Tensor) -> dict[str, Tensor]:
    defined = ~torch.isnan(values)
    return {f"{name}/sum": torch.nan_to_num(values), f"{name}/frames": defined.long()}
