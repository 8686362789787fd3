"""Data of verification diagrams: reliability, ROC curve, rank histogram, power spectra."""

import torch
from torch import Tensor

from .sufficient_statistics import Statistics


def brier(forecasts: Tensor, events: Tensor) -> Tensor:
    """Return the Brier score (Brier 1950) of probabilities n / M.

    Args:
        forecasts: ``[..., M + 1]``, number of pixels for which n of M members forecast the event.
        events: number of those pixels where the event was observed.
    """
    probability = torch.linspace(0, 1, forecasts.shape[-1], dtype=torch.float64, device=forecasts.device)
    errors = events * (1 - probability) ** 2 + (forecasts - events) * probability**2
    return errors.sum(-1) / forecasts.sum(-1)


def fair_brier(forecasts: Tensor, events: Tensor) -> Tensor:
    """Return the fair Brier score (Ferro 2014, eq. 7): the Brier score minus n (M - n) / (M^2 (M - 1)) of each pixel.

    Its expectation is that of the Brier score of an ensemble with an unlimited number of members. The arguments are
    those of :func:`brier`; two members or more.
    """
    members = forecasts.shape[-1] - 1
    number = torch.arange(members + 1, dtype=torch.float64, device=forecasts.device)
    excess = number * (members - number) / (members**2 * (members - 1))
    return brier(forecasts, events) - (forecasts * excess).sum(-1) / forecasts.sum(-1)


def decompose_brier(forecasts: Tensor, events: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return reliability, resolution and uncertainty (Murphy 1973): Brier score = first - second + third.

    There is one bin per probability n / M, so that the equation is exact. The arguments are those of :func:`brier`.
    """
    forecasts, events = forecasts.double(), events.double()
    total = forecasts.sum(-1, keepdim=True)
    probability = torch.linspace(0, 1, forecasts.shape[-1], dtype=torch.float64, device=forecasts.device)
    frequency = torch.where(forecasts > 0, events / forecasts, 0.0)
    climatology = events.sum(-1, keepdim=True) / total
    share = forecasts / total
    reliability = (share * (frequency - probability).square()).sum(-1)
    resolution = (share * (frequency - climatology).square()).sum(-1)
    return reliability, resolution, (climatology * (1 - climatology))[..., 0]


def roc_curve(forecasts: Tensor, events: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities of false detection and of detection ``[..., M + 2]`` by decreasing number of members.

    The first point is (0, 0), where no number of members is sufficient; the last is (1, 1).
    """
    detected = _exceedance(events) / events.sum(-1, keepdim=True)
    false = _exceedance(forecasts - events) / (forecasts - events).sum(-1, keepdim=True)
    return false, detected


def roc_area(forecasts: Tensor, events: Tensor) -> Tensor:
    """Return the area under the ROC curve by trapezoids (Mason 1982); NaN if the event occurred always or never."""
    false, detected = roc_curve(forecasts, events)
    return torch.trapezoid(detected, false, dim=-1)


def _exceedance(counts: Tensor) -> Tensor:
    totals = counts.double().flip(-1).cumsum(-1)
    return torch.cat([torch.zeros_like(totals[..., :1]), totals], dim=-1)


def reliability(statistics: Statistics) -> dict[str, Tensor]:
    """Return the reliability diagram of an ensemble, pooled over events and lead times, float64.

    Returns:
        ``probability`` ``[M + 1]``; ``observed_frequency`` ``[thresholds, M + 1]``, NaN where a probability was never
        forecast; ``forecasts`` ``[thresholds, M + 1]``, the number of forecasts of each probability (sharpness).

    Raises:
        ValueError: the statistics are of a single forecast.
    """
    _check_members(statistics)
    forecasts = statistics.extra["probability/forecasts"].sum((0, 2)).double()
    events = statistics.extra["probability/events"].sum((0, 2)).double()
    probability = torch.linspace(0, 1, forecasts.shape[-1], dtype=torch.float64)
    return {"probability": probability, "observed_frequency": events / forecasts, "forecasts": forecasts}


def rank_histogram(statistics: Statistics) -> Tensor:
    """Return the rank histogram of the observation among the members, int64 ``[leads, M + 1]``; flat is reliable.

    Raises:
        ValueError: the statistics are of a single forecast.
    """
    _check_members(statistics)
    return statistics.extra["ranks"].sum(0)


def power_spectra(statistics: Statistics) -> dict[str, Tensor]:
    """Return mean radial power of ``observed`` and ``forecast``, float64 ``[leads, wavenumbers]``.

    For an ensemble scored by its mean also ``members``, the mean power of its members. NaN if every frame has a
    missing pixel.

    Raises:
        ValueError: the protocol sums no spectra.
    """
    if "spectrum/frames" not in statistics.extra:
        raise ValueError(f"protocol {statistics.protocol.name!r} sums no spectra; use one with spectrum=True")
    frames = statistics.extra["spectrum/frames"].sum(0)[:, None]
    names = [name for name in ("observed", "forecast", "members") if f"spectrum/{name}" in statistics.extra]
    return {name: statistics.extra[f"spectrum/{name}"].sum(0) / frames for name in names}


def heavy_rain_panel(scores: dict[str, float], labels: tuple[str, ...], *, top: int = 2) -> dict[str, dict[str, float]]:
    """Return POD, FAR, frequency bias and CSI at the highest thresholds, which a mean over thresholds hides.

    Args:
        scores: scores by key.
        labels: the protocol's labels.
        top: number of thresholds.
    """
    names = ("pod", "far", "frequency_bias", "csi")
    return {label: {name: scores[f"{name}/{label}"] for name in names} for label in labels[-top:]}


def _check_members(statistics: Statistics) -> None:
    if statistics.members < 2:
        raise ValueError("a single forecast has no ranks and no probabilities; count members [N, M, T, H, W]")
