"""Sums of ensemble scores, additive over windows: CRPS, rank histogram, exceedance probabilities, spread.

CRPS: Gneiting and Raftery 2007, eq. 21; fair CRPS: Ferro 2014. Rank histogram: Hamill 2001. Spread and skill: Fortin
et al. 2014.
"""

import hashlib

import torch
from torch import Tensor

from .protocols import ScoreProtocol
from .threshold_levels import missing_level


def ensemble_sums(
    observed: Tensor, members: Tensor, *, levels: tuple[Tensor, Tensor], protocol: ScoreProtocol, event: str
) -> dict[str, Tensor]:
    """Return sums over the pixels of one window where observation and all members are valid.

    Args:
        observed: ``[T, H, W]`` in [0, 1], NaN where missing.
        members: ``[M, T, H, W]``, two members or more.
        levels: levels of the observation ``[T, H, W]`` and of the members ``[M, T, H, W]``.
        protocol: thresholds and oddities.
        event: together with the observation the seed that breaks ties between ranks.

    Returns:
        ``crps/fair``, ``crps/standard``, ``spread/variance``, ``spread/error`` (of the mean): float64 ``[T]``;
        ``crps/pixels``: int64 ``[T]``; ``ranks``: int64 ``[T, M + 1]``; ``probability/forecasts`` and
        ``probability/events``: int64 ``[thresholds, T, M + 1]``, by the number of members that forecast the event;
        ``crps_gaussian`` if the protocol has that oddity.
    """
    observed_levels, member_levels = levels
    missing = missing_level(protocol)
    valid = (observed_levels != missing) & (member_levels != missing).all(0)
    generator = torch.Generator().manual_seed(_seed(event, observed))
    per_frame: dict[str, list[Tensor]] = {}
    for frame in range(observed.shape[0]):
        keep = valid[frame]
        y, x = observed[frame][keep].double(), members[:, frame, keep].double()
        sums = _crps(y, x) | _spread(y, x) | {"ranks": _ranks(y, x, generator)}
        sums |= _probabilities(observed_levels[frame][keep], member_levels[:, frame, keep], len(protocol.thresholds))
        if "crps_gaussian" in protocol.oddities:
            sums["crps_gaussian"] = gaussian_crps(y, x).sum()
        for name, value in sums.items():
            per_frame.setdefault(name, []).append(value)
    return {
        name: torch.stack(values, dim=1 if name.startswith("probability") else 0) for name, values in per_frame.items()
    }


def _crps(y: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return sums of mean |x - y| - sum |x_i - x_j| / (2 M^2), and of the fair form with M (M - 1) instead of M^2."""
    members = x.shape[0]
    ordered = x.sort(0).values
    weights = 2.0 * torch.arange(1, members + 1, dtype=torch.float64, device=x.device) - members - 1
    pairs = (weights[:, None] * ordered).sum()  # half the sum of |x_i - x_j| over all ordered pairs
    error = (x - y).abs().sum() / members
    return {
        "crps/standard": error - pairs / members**2,
        "crps/fair": error - pairs / (members * (members - 1)),
        "crps/pixels": torch.tensor(y.numel(), dtype=torch.int64, device=x.device),
    }


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
    """Return the unbiased variance of the members (axis 0), NaN for a single one.

    ``torch.var`` has the same values and warns about a single member and about frames without a valid pixel.
    """
    return (x - x.mean(0)).square().sum(0) / (x.shape[0] - 1)


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
