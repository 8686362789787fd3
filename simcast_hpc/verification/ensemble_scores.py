"""Sums of ensemble scores, additive over windows: CRPS, rank histogram, exceedance probabilities, spread.

Rank histogram: Hamill 2001. Spread and skill: Fortin et al. 2014. CRPS: see ``crps_sums.py``.
"""

import hashlib

import torch
from torch import Tensor

from .crps_sums import bin_sums, crps_sums, threshold_weighted_errors, threshold_weighted_sums, value_counts
from .protocols import ScoreProtocol
from .threshold_levels import missing_level

_BY_THRESHOLD = ("probability/", "twcrps/", "brier/")


def ensemble_sums(
    observed: Tensor, members: Tensor, *, levels: tuple[Tensor, Tensor], protocol: ScoreProtocol, event: str
) -> dict[str, Tensor]:
    """Return sums over the pixels of one window where observation and all members are valid.

    If the protocol ignores missing members, sums are over pixels with one member or more, those of fair forms and of
    the spread over pixels with two or more, and ranks, probabilities and bins over pixels with all members.

    Args:
        observed: ``[T, H, W]`` in [0, 1], NaN where missing.
        members: ``[M, T, H, W]``, two members or more.
        levels: levels of the observation ``[T, H, W]`` and of the members ``[M, T, H, W]``.
        protocol: thresholds and oddities.
        event: together with the observation the seed that breaks ties between ranks.

    Returns:
        ``crps/fair``, ``crps/standard``, ``spread/variance``, ``spread/error`` (of the mean): float64 ``[T]``;
        ``crps/pixels``: int64 ``[T]``; ``twcrps/fair``, ``twcrps/standard``: float64 ``[thresholds, T]``;
        ``crps_bins/widths``: float64 ``[T, 2, M + 1]``; ``crps_bins/pixels``: int64 ``[T, 3]``; ``observed_values``:
        int64 ``[T, 256]``, see ``crps_sums.py``, if the protocol requests them; ``ranks``: int64 ``[T, M + 1]``;
        ``probability/forecasts``, ``probability/events``: int64 ``[thresholds, T, M + 1]``, by the number of members
        that forecast the event;
        ``crps_gaussian`` if the protocol has that oddity. If missing members are ignored also ``crps/fair_pixels``,
        ``spread/total`` (variance times (m + 1) / m, for m members) and ``brier/standard``, ``brier/fair``.
    """
    observed_levels, member_levels = levels
    missing = missing_level(protocol)
    observable = observed_levels != missing
    present = (member_levels != missing).sum(0)
    sizes = range(1, len(members) + 1) if protocol.missing_members == "ignore" else (len(members),)
    generator = torch.Generator().manual_seed(_seed(event, observed))
    per_frame: dict[str, list[Tensor]] = {}
    for frame in range(observed.shape[0]):
        sums: dict[str, Tensor] = {}
        for size in reversed(sizes):  # pixels with equal numbers of members
            keep = observable[frame] & (present[frame] == size)
            if size < len(members) and not keep.any():
                continue
            y = observed[frame][keep].double()
            ordered = members[:, frame, keep].sort(0).values[:size].double()  # missing members are last
            by_level = observed_levels[frame][keep], member_levels[:, frame, keep]
            part = _sums_of_members(y, ordered, by_level, protocol)
            if size == len(members):
                part |= _sums_of_complete_ensembles(y, ordered, by_level, protocol, generator)
            sums |= {name: sums[name] + value if name in sums else value for name, value in part.items()}
        for name, value in sums.items():
            per_frame.setdefault(name, []).append(value)
    return {
        name: torch.stack(values, dim=1 if name.startswith(_BY_THRESHOLD) else 0) for name, values in per_frame.items()
    }


def _sums_of_members(
    y: Tensor, ordered: Tensor, levels: tuple[Tensor, Tensor], protocol: ScoreProtocol
) -> dict[str, Tensor]:
    """Return sums that are defined for any number of members; fair forms and the spread require two, and add 0 for one.

    Args:
        y: observation ``[P]``.
        ordered: the members that are present, in ascending order, ``[m, P]``.
        levels: levels of the observation ``[P]`` and of all members ``[M, P]``.
        protocol: thresholds and additional scores.
    """
    size = len(ordered)
    sums = {"crps/pixels": torch.tensor(y.numel(), dtype=torch.int64, device=y.device)}
    sums |= crps_sums(y, ordered) | _spread(y, ordered)
    if "twcrps" in protocol.sums:
        sums |= threshold_weighted_sums(y, ordered, [threshold / protocol.scale for threshold in protocol.thresholds])
    if "crps_gaussian" in protocol.oddities:
        sums["crps_gaussian"] = gaussian_crps(y, ordered).sum()
    if protocol.missing_members == "ignore":
        sums |= _brier_sums(*levels, size, protocol) | {"spread/total": sums["spread/variance"] * (size + 1) / size}
        sums["crps/fair_pixels"] = sums["crps/pixels"]
        if size == 1:
            undefined = ("crps/fair", "crps/fair_pixels", "twcrps/fair", "brier/fair")
            names = [name for name in sums if name in undefined or name.startswith("spread/")]
            sums |= {name: torch.zeros_like(sums[name]) for name in names}
    return sums


def _sums_of_complete_ensembles(
    y: Tensor, ordered: Tensor, levels: tuple[Tensor, Tensor], protocol: ScoreProtocol, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return sums by rank or by number of members, over the pixels where no member is missing."""
    sums = {"ranks": _ranks(y, ordered, generator)} | _probabilities(*levels, len(protocol.thresholds))
    if "crps_bins" in protocol.sums:
        sums |= bin_sums(y, ordered) | {"observed_values": value_counts(y, protocol.scale)}
    return sums


def _brier_sums(observed: Tensor, members: Tensor, size: int, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return sums of the Brier score and of its fair form over pixels with ``size`` members, float64 ``[thresholds]``.

    Args:
        observed: levels ``[P]``.
        members: levels of all members ``[M, P]``.
        size: number of members that are present, the same in all pixels.
        protocol: thresholds.
    """
    standard, excess = [], []
    for row in range(len(protocol.thresholds)):
        number = ((members > row) & (members != missing_level(protocol))).sum(0).double()
        standard.append((number / size - (observed > row).double()).square().sum())
        excess.append((number * (size - number)).sum() / (size**2 * max(size - 1, 1)))
    return {"brier/standard": torch.stack(standard), "brier/fair": torch.stack(standard) - torch.stack(excess)}


def single_forecast_sums(observed: Tensor, forecast: Tensor, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return ``twcrps/absolute`` of a single forecast, float64 ``[thresholds, T]``; pixels missing in either add 0.

    Args:
        observed: ``[T, H, W]`` in [0, 1], NaN where missing.
        forecast: of the same shape.
        protocol: thresholds.
    """
    thresholds = [threshold / protocol.scale for threshold in protocol.thresholds]
    frames = zip(observed.flatten(1), forecast.flatten(1), strict=True)
    return {"twcrps/absolute": torch.stack([threshold_weighted_errors(y, x, thresholds) for y, x in frames], dim=1)}


def gaussian_crps(y: Tensor, x: Tensor) -> Tensor:
    """Return CasCast's CRPS: that of a normal distribution with the members' mean and standard deviation (axis 0).

    sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with z = (mean - y + e) / (sigma + e), e = 1e-10; sigma = 0 for
    a single member.
    """
    tiny = 1e-10
    sigma = (_variance(x).sqrt() if x.shape[0] > 1 else torch.zeros_like(y)) + tiny
    z = (x.mean(0) - y + tiny) / sigma
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    return sigma * (z * torch.erf(z / 2**0.5) + 2 * density - torch.pi**-0.5)


def _spread(y: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"spread/variance": _variance(x).sum(), "spread/error": (x.mean(0) - y).square().sum()}


def _variance(x: Tensor) -> Tensor:
    """Return the unbiased variance of the members (axis 0), 0 for a single one.

    ``torch.var`` has the same values and warns about a single member and about frames without a valid pixel.
    """
    return (x - x.mean(0)).square().sum(0) / max(x.shape[0] - 1, 1)


def _ranks(y: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    below, ties = (x < y).sum(0), (x == y).sum(0)
    # Sampled on the host, so that every device breaks ties identically.
    random = torch.rand(y.shape, generator=generator, dtype=torch.float64).to(y.device)
    rank = below + (random * (ties + 1)).long().clamp_(max=x.shape[0])
    return torch.bincount(rank, minlength=x.shape[0] + 1)


def _probabilities(observed: Tensor, members: Tensor, thresholds: int) -> dict[str, Tensor]:
    """Return counts by the number of members at or above each threshold, from levels ``[pixels]``, ``[M, pixels]``."""
    bins = members.shape[0] + 1
    forecasts, events = [], []
    for row in range(thresholds):
        count = (members > row).sum(0)
        forecasts.append(torch.bincount(count, minlength=bins))
        events.append(torch.bincount(count[observed > row], minlength=bins))
    return {"probability/forecasts": torch.stack(forecasts), "probability/events": torch.stack(events)}


def _seed(event: str, observed: Tensor) -> int:
    """Return a seed from the event and the observation, independent of batch and rank."""
    total = torch.nan_to_num(observed, nan=-1.0).double().sum().cpu().item()
    return int.from_bytes(hashlib.sha256(f"{event}/{total:.6f}".encode()).digest()[:7], "big")
