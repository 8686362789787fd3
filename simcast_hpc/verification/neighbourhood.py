"""Sums of the fractions skill score (FSS); integers, because a fraction is a pixel count over a fixed window size."""

import torch
from torch import Tensor

from .protocols import ScoreProtocol
from .threshold_levels import missing_level


def fraction_sums(observed: Tensor, predicted: Tensor, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return ``fss/<km>``, int64 ``[3, thresholds, T]``, for each window size of the protocol.

    The first axis contains sums over pixels of (n_o - n_f)^2, n_f^2 and n_o^2, where n is the number of events in a
    square window around the pixel. Pixels beyond the frame (as in pysteps) and missing pixels are not events.

    Args:
        observed: levels of the observation ``[T, H, W]``.
        predicted: levels of the forecast ``[T, H, W]``.
        protocol: thresholds and windows.
    """
    windows = protocol.fss_windows
    frames, thresholds = observed.shape[0], len(protocol.thresholds)
    hidden = torch.maximum(observed, predicted) == missing_level(protocol)
    observed, predicted = observed.masked_fill(hidden, 0), predicted.masked_fill(hidden, 0)
    sums = observed.new_zeros((len(windows), 3, thresholds, frames), dtype=torch.int64)
    highest = torch.maximum(observed, predicted).flatten(1).amax(1).tolist()
    for frame, level in enumerate(highest):
        # Above the highest level of the frame both counts are 0 everywhere, and so are the sums.
        for row in range(level):
            events = torch.stack([observed[frame], predicted[frame]]) > row
            integral = _integral(_crop(events, margin=max(windows)))
            for index, window in enumerate(windows):
                sums[index, :, row, frame] = _squares(_counts(integral, window))
    return {f"fss/{km:g}": part for km, part in zip(protocol.fss_km, sums, strict=True)}


def _crop(events: Tensor, *, margin: int) -> Tensor:
    """Return the part of two event fields ``[2, H, W]`` within ``margin`` of an event; elsewhere all counts are 0."""
    either = events.any(0)
    edges = []
    for side in (1, 0):
        positions = either.any(side).nonzero()
        edges.append(slice(max(0, int(positions[0]) - margin), int(positions[-1]) + margin + 1))
    return events[:, edges[0], edges[1]]


def _integral(events: Tensor) -> Tensor:
    """Return the summed-area table ``[2, H + 1, W + 1]`` of two event fields, int32."""
    return torch.nn.functional.pad(events.int(), (1, 0, 1, 0)).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)


def _counts(integral: Tensor, window: int) -> Tensor:
    """Return the number of events in the window around each pixel, int32 ``[2, H, W]``.

    A window of even size extends one pixel further to the top and left.
    """
    height, width = integral.shape[1] - 1, integral.shape[2] - 1
    top, bottom = _edges(height, window, integral.device)
    left, right = _edges(width, window, integral.device)
    rows = integral.index_select(1, bottom) - integral.index_select(1, top)
    return rows.index_select(2, right) - rows.index_select(2, left)


def _edges(length: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    begin = torch.arange(length, device=device) - window // 2
    return begin.clamp(0, length), (begin + window).clamp(0, length)


def _squares(counts: Tensor) -> Tensor:
    # A count is at most 128^2, so its square fits into int32; the sums need 64 bits.
    observed, predicted = counts
    difference = observed - predicted
    return torch.stack([(part * part).sum(dtype=torch.int64) for part in (difference, predicted, observed)])
