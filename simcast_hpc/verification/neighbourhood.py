"""Fractions skill score (FSS); its sums are integers, because a fraction is a pixel count over a fixed window size."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .protocols import ScoreProtocol
from .threshold_levels import missing_level


def fraction_sums(observed: Tensor, predicted: Tensor, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return ``fss/<km>``, int64 ``[3, thresholds, T]``, for each window size of the protocol.

    The first axis contains sums over pixels of (n_o - n_f)^2, n_f^2 and n_o^2, where n is the number of events in a
    square window around the pixel. Pixels beyond the frame (as in pysteps) and missing pixels are not events. If the
    protocol requests it, also ``fss_inside/<km>``: the same sums over windows within the frame and without a pixel that
    is missing in either field.

    Args:
        observed: levels of the observation ``[T, H, W]``.
        predicted: levels of the forecast ``[T, H, W]``.
        protocol: thresholds and windows.
    """
    windows = protocol.fss_windows
    frames, thresholds = observed.shape[0], len(protocol.thresholds)
    hidden = torch.maximum(observed, predicted) == missing_level(protocol)
    observed, predicted = observed.masked_fill(hidden, 0), predicted.masked_fill(hidden, 0)
    forms = ("fss", "fss_inside") if "fss_inside" in protocol.sums else ("fss",)
    sums = observed.new_zeros((len(forms), len(windows), 3, thresholds, frames), dtype=torch.int64)
    highest = torch.maximum(observed, predicted).flatten(1).amax(1).tolist()
    for frame, level in enumerate(highest):
        complete = [_complete(hidden[frame], window) for window in windows] if len(forms) > 1 and level else []
        # Above the highest level of the frame both counts are 0 everywhere, and so are the sums.
        for row in range(level):
            events = torch.stack([observed[frame], predicted[frame]]) > row
            rows, columns = _surroundings(events, margin=max(windows))
            integral = _integral(events[:, rows, columns])
            for index, window in enumerate(windows):
                counts = _counts(integral, window)
                sums[0, index, :, row, frame] = _squares(counts)
                if complete:
                    inside = counts.masked_fill_(~complete[index][rows, columns], 0)
                    sums[1, index, :, row, frame] = _squares(inside)
    return {
        f"{form}/{km:g}": part
        for form, by_window in zip(forms, sums, strict=True)
        for km, part in zip(protocol.fss_km, by_window, strict=True)
    }


def fss_scores(sums: Mapping[str, Tensor], protocol: ScoreProtocol) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each form by lead time ``[..., K, T]`` and over all lead times ``[..., K]``; NaN without any event."""
    forms = ("fss", "fss_inside") if "fss_inside" in protocol.scores else ("fss",)
    scores: dict[str, tuple[Tensor, Tensor]] = {}
    for name in (f"{form}/{km:g}" for form in forms for km in protocol.fss_km):
        if name in sums:
            parts = sums[name].double()
            leads = 1 - parts[..., 0, :, :] / parts[..., 1:, :, :].sum(-3)
            pooled = 1 - parts.sum(-1)[..., 0, :] / parts.sum(-1)[..., 1:, :].sum(-2)
            scores[name] = (leads, leads.mean(-1) if protocol.aggregation == "lead-mean" else pooled)
    return scores


def _complete(hidden: Tensor, window: int) -> Tensor:
    """Return where the window around a pixel is within the frame and has no missing pixel, boolean ``[H, W]``."""
    complete = _counts(_integral(hidden[None]), window)[0] == 0
    for axis, length in enumerate(hidden.shape):
        begin = torch.arange(length, device=hidden.device) - window // 2
        within = (begin >= 0) & (begin + window <= length)
        complete &= within.unsqueeze(1 - axis)
    return complete


def _surroundings(events: Tensor, *, margin: int) -> tuple[slice, slice]:
    """Return rows and columns within ``margin`` of an event of two fields ``[2, H, W]``; elsewhere all counts are 0."""
    either = events.any(0)
    edges = []
    for side in (1, 0):
        positions = either.any(side).nonzero()
        edges.append(slice(max(0, int(positions[0]) - margin), int(positions[-1]) + margin + 1))
    return edges[0], edges[1]


def _integral(events: Tensor) -> Tensor:
    """Return the summed-area tables ``[F, H + 1, W + 1]`` of event fields ``[F, H, W]``, int32."""
    return torch.nn.functional.pad(events.int(), (1, 0, 1, 0)).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)


def _counts(integral: Tensor, window: int) -> Tensor:
    """Return the number of events in the window around each pixel, int32 ``[F, H, W]``.

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
