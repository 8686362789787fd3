"""Structure, amplitude and location (SAL) of precipitation objects (Wernli et al. 2008, Monthly Weather Review 136).

A frame has one value of each component. Sums of the values, of their magnitudes and of the number of frames are
additive; medians are those of magnitudes rounded to 0.01, from counts of each rounded value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .protocols import ScoreProtocol
from .threshold_levels import levels_of

# Objects are above 1/15 of the 95th percentile of pixels with precipitation (Wernli, Hofmann and Zimmer 2009, eq. 1).
_FACTOR, _QUANTILE = 1 / 15, 0.95
_STEPS = 100  # rounded magnitudes per unit; no component exceeds 2
_LARGEST = 2.0


@dataclass(frozen=True)
class PrecipitationObjects:
    """What SAL needs of the objects of one field.

    Attributes:
        volume: scaled volume V, the mean of total / maximum over objects, weighted by their totals; 0 without objects.
        scatter: mean distance r in pixels between the centers of mass of the objects and of the field, weighted by the
            totals of the objects; NaN without objects.
    """

    volume: float
    scatter: float


def sal(observed: np.ndarray, predicted: np.ndarray, *, threshold: float | None = None) -> tuple[float, float, float]:
    """Return structure S, amplitude A and location L of one frame.

    Args:
        observed: precipitation ``[H, W]``; NaN or masked is missing, and values below 0 count as 0. A pixel that is
            missing in either field is excluded from both.
        predicted: of the same shape.
        threshold: objects are connected pixels at or above it; by default 1/15 of the 95th percentile of the
            pixels above 0, of each field.

    Returns:
        S and A in [-2, 2], L in [0, 2]; 0 is perfect. A is NaN if both fields are 0. S is NaN if neither field has an
        object, and -2 or 2 if only one has. L is NaN if a field has no object.

    Raises:
        ValueError: the fields are not two of one shape ``[H, W]``, a value is plus infinity, or the threshold is not a
            finite number above 0.
    """
    observed, predicted = (
        np.ma.filled(np.ma.asanyarray(field).astype(np.float64), np.nan) for field in (observed, predicted)
    )
    if observed.ndim != 2 or observed.shape != predicted.shape or not observed.size:
        raise ValueError(f"SAL requires two fields of one shape [H, W], got {observed.shape} and {predicted.shape}")
    if np.isposinf(observed).any() or np.isposinf(predicted).any():
        raise ValueError("the fields contain plus infinity; give finite numbers, NaN where missing")
    if threshold is not None and not 0 < threshold < np.inf:
        raise ValueError(f"threshold={threshold} must be a finite number above 0, in the unit of the fields")
    hidden = np.isnan(observed) | np.isnan(predicted)
    fields = [np.where(hidden, 0.0, np.maximum(field, 0.0)) for field in (observed, predicted)]
    masks = [field >= threshold if threshold is not None else _relative_mask(field) for field in fields]
    first, second = (precipitation_objects(field, mask) for field, mask in zip(fields, masks, strict=True))
    centers = [center_of_mass(field) for field in fields]
    structure, location = structure_and_location(first, second, centers, observed.shape)
    return structure, amplitude(*(float(field.sum()) for field in fields)), location


def amplitude(observed: float, predicted: float) -> float:
    """Return the normalized difference of two totals over the same pixels; NaN if both are 0."""
    return _normalized_difference(observed, predicted)


def structure_and_location(
    observed: PrecipitationObjects,
    predicted: PrecipitationObjects,
    centers: Sequence[tuple[float, float]],
    shape: Sequence[int],
) -> tuple[float, float]:
    """Return S and L; distances are divided by the diagonal of the frame."""
    diagonal = float(np.hypot(shape[0], shape[1]))
    distance = float(np.hypot(centers[0][0] - centers[1][0], centers[0][1] - centers[1][1]))
    location = distance / diagonal + 2 * abs(observed.scatter - predicted.scatter) / diagonal
    return _normalized_difference(observed.volume, predicted.volume), location


def _normalized_difference(observed: float, predicted: float) -> float:
    total = observed + predicted
    return 2 * (predicted - observed) / total if total > 0 else np.nan


def center_of_mass(field: np.ndarray) -> tuple[float, float]:
    """Return row and column of the center of mass of a field of values of at least 0; NaN if it is 0."""
    total = field.sum()
    if not total > 0:
        return np.nan, np.nan
    rows, columns = (np.arange(length, dtype=np.float64) for length in field.shape)
    return float(field.sum(1) @ rows / total), float(field.sum(0) @ columns / total)


def _relative_mask(field: np.ndarray) -> np.ndarray:
    wet = field[field > 0]
    if not wet.size:
        return np.zeros(field.shape, dtype=bool)
    return field >= _FACTOR * np.quantile(wet, _QUANTILE)


def precipitation_objects(field: np.ndarray, mask: np.ndarray) -> PrecipitationObjects:
    """Return the properties of the objects of a field: the connected parts of ``mask`` (four neighbors).

    Args:
        field: precipitation ``[H, W]`` of at least 0.
        mask: boolean ``[H, W]``, True where the field is at or above the threshold.
    """
    labels = label_objects(mask)
    if not labels.size:
        return PrecipitationObjects(0.0, np.nan)
    rows, columns = np.nonzero(mask)
    values = field[rows, columns]
    total = np.bincount(labels, values)
    if not total.sum() > 0:
        return PrecipitationObjects(0.0, np.nan)
    largest = np.zeros(len(total))
    np.maximum.at(largest, labels, values)
    rainy = total > 0
    total, largest = total[rainy], largest[rainy]
    volume = (total * total / largest).sum() / total.sum()
    center = center_of_mass(field)
    moments = (np.bincount(labels, values * position)[rainy] / total for position in (rows, columns))
    distances = np.hypot(*(moment - middle for moment, middle in zip(moments, center, strict=True)))
    return PrecipitationObjects(float(volume), float((total * distances).sum() / total.sum()))


def label_objects(mask: np.ndarray) -> np.ndarray:
    """Return the number of the object of each True pixel, in row-major order, int64 ``[pixels]``, from 0.

    Runs of True pixels in a row are joined with the runs that they touch in the next row.
    """
    height, width = mask.shape
    stride = width + 1  # a False column separates the rows
    flat = np.zeros(height * stride + 1, dtype=bool)
    flat[1:].reshape(height, stride)[:, :width] = mask
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    begins, ends = edges[0::2], edges[1::2]
    runs = np.arange(len(begins))
    first = np.searchsorted(ends, begins + stride, side="right")
    count = np.maximum(np.searchsorted(begins, ends + stride, side="left") - first, 0)
    upper = np.repeat(runs, count)
    lower = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    roots = runs.copy()
    while True:
        pair = roots[upper], roots[lower]
        if np.array_equal(*pair):
            break
        np.minimum.at(roots, np.maximum(*pair), np.minimum(*pair))
        while not np.array_equal(jumped := roots[roots], roots):
            roots = jumped
    _, labels = np.unique(roots, return_inverse=True)
    return np.repeat(labels, ends - begins)


def sal_sums(observed: Tensor, forecasts: Tensor | Sequence[Tensor], protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return sums of the components of one window over its forecasts, computed on the host.

    Args:
        observed: ``[T, H, W]`` in [0, 1], NaN where missing.
        forecasts: one forecast, or the members of an ensemble, each ``[T, H, W]``. A pixel that is missing in one
            member is excluded from all members, unless the protocol ignores missing members.
        protocol: thresholds, and which of the sums are needed.

    Returns:
        ``sal/values``, float64 ``[T, 3, 3]``: by component (S, A, L) the sum, the sum of magnitudes and the number of
        frames; ``sal/magnitudes``, int64 ``[T, 3, 201]``: frames by rounded magnitude. ``sal_thresholds/values`` and
        ``sal_thresholds/magnitudes``, ``[thresholds, T, 2, ...]``: the same of S and L of objects at or above each
        threshold.
    """
    hidden = torch.isnan(observed)
    if protocol.missing_members == "mask":
        hidden = hidden | torch.stack([torch.isnan(forecast) for forecast in forecasts]).any(0)
    values = np.stack([_window_components(observed, forecast, hidden, protocol) for forecast in forecasts], axis=1)
    sums: dict[str, Tensor] = {}
    if "sal" in protocol.sums:
        sums |= _summary("sal", values[..., :3])
    if "sal_thresholds" in protocol.sums:
        by_threshold = values[..., 3:].reshape(*values.shape[:2], -1, 2).transpose(2, 0, 1, 3)
        sums |= _summary("sal_thresholds", by_threshold)
    return {name: sum_.to(observed.device) for name, sum_ in sums.items()}


def _window_components(observed: Tensor, forecast: Tensor, hidden: Tensor, protocol: ScoreProtocol) -> np.ndarray:
    """Return S, A and L of relative thresholds, then S and L of each threshold, float64 ``[T, 3 + 2 K]``."""
    hidden = hidden | torch.isnan(forecast)
    described = []
    for field in (observed, forecast):
        levels = levels_of(field, protocol).masked_fill(hidden, 0).numpy(force=True)
        amounts = field.double().masked_fill(hidden, 0.0).clamp(min=0.0).numpy(force=True)
        described.append([_describe(amount, level, protocol) for amount, level in zip(amounts, levels, strict=True)])
    seen, predicted = described
    shape = observed.shape[1:]
    return np.array([_components(first, second, shape) for first, second in zip(seen, predicted, strict=True)])


def _describe(
    field: np.ndarray, levels: np.ndarray, protocol: ScoreProtocol
) -> tuple[float, tuple[float, float], list[PrecipitationObjects]]:
    """Return total, center of mass, and the objects above the relative and above each threshold."""
    masks = [_relative_mask(field)] if "sal" in protocol.sums else [np.zeros(field.shape, dtype=bool)]
    if "sal_thresholds" in protocol.sums:
        masks += [levels > row for row in range(len(protocol.thresholds))]
    return float(field.sum()), center_of_mass(field), [precipitation_objects(field, mask) for mask in masks]


def _components(
    observed: tuple[float, tuple[float, float], list[PrecipitationObjects]],
    predicted: tuple[float, tuple[float, float], list[PrecipitationObjects]],
    shape: Sequence[int],
) -> list[float]:
    centers = [observed[1], predicted[1]]
    pairs = [
        structure_and_location(first, second, centers, shape)
        for first, second in zip(observed[2], predicted[2], strict=True)
    ]
    relative, *fixed = pairs
    return [relative[0], amplitude(observed[0], predicted[0]), relative[1], *(part for pair in fixed for part in pair)]


def _summary(name: str, values: np.ndarray) -> dict[str, Tensor]:
    """Return sums over the forecasts of ``values`` ``[..., T, F, C]``: ``[..., T, C, 3]`` and ``[..., T, C, 201]``."""
    defined = np.isfinite(values)
    magnitudes = np.abs(np.where(defined, values, 0.0))
    sums = np.stack([np.where(defined, values, 0.0).sum(-2), magnitudes.sum(-2), defined.sum(-2)], axis=-1)
    rounded = np.where(defined, np.rint(magnitudes * _STEPS), -1).astype(np.int64)
    counts = (rounded[..., None] == np.arange(round(_LARGEST * _STEPS) + 1)).sum(-3)
    return {f"{name}/values": torch.from_numpy(sums), f"{name}/magnitudes": torch.from_numpy(counts)}


def sal_scores(
    sums: Mapping[str, Tensor], protocol: ScoreProtocol
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """Return scores without and with thresholds by name, each by lead time ``[..., T]`` and over all lead times."""
    plain: dict[str, tuple[Tensor, Tensor]] = {}
    by_threshold: dict[str, tuple[Tensor, Tensor]] = {}
    for group, names, found in (
        ("sal", ("structure", "amplitude", "location"), plain),
        ("sal_thresholds", ("structure", "location"), by_threshold),
    ):
        if group not in protocol.scores:
            continue
        values, counts = sums[f"{group}/values"].double(), sums[f"{group}/magnitudes"].double()
        for column, name in enumerate(names):
            leads = _statistics(values[..., column, :], counts[..., column, :])
            pooled = _statistics(values[..., column, :].sum(-2), counts[..., column, :].sum(-2))
            for suffix, by_lead in leads.items():
                if name == "location" and suffix == "_signed":
                    continue
                overall = by_lead.mean(-1) if protocol.aggregation == "lead-mean" else pooled[suffix]
                found[f"sal_{name}{suffix}"] = (by_lead, overall)
    return plain, by_threshold


def _statistics(values: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Return mean magnitude, median magnitude and mean of sums ``[..., 3]`` and counts ``[..., 201]``."""
    total = counts.sum(-1)
    reached = counts.cumsum(-1)
    middle = [(reached <= rank[..., None]).sum(-1) for rank in (((total - 1) / 2).floor(), (total / 2).floor())]
    median = (middle[0] + middle[1]).double() / (2 * _STEPS)
    return {
        "": values[..., 1] / values[..., 2],
        "_median": median.where(total > 0, torch.nan),
        "_signed": values[..., 0] / values[..., 2],
    }
