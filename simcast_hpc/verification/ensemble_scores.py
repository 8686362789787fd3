"""Sums of ensemble scores: CRPS, rank histogram, probabilities of exceedance, spread. Every one adds up over windows.

CRPS: Gneiting and Raftery 2007, eq. 21; the fair form: Ferro 2014. Ranks: Hamill 2001. Spread and skill: Fortin et
al. 2014.
"""

import hashlib

import torch
from torch import Tensor

from .protocols import ScoreProtocol
from .threshold_levels import missing_level


def ensemble_sums(
    observed: Tensor, members: Tensor, *, levels: tuple[Tensor, Tensor], protocol: ScoreProtocol, event: str
) -> dict[str, Tensor]:
    """Return the sums over pixels of one window whose observation and members are all valid.

    Args:
        observed: ``[T, H, W]`` in [0, 1], NaN where missing.
        members: ``[M, T, H, W]``, two members or more.
        levels: of the observation ``[T, H, W]`` and of the members ``[M, T, H, W]``.
        protocol: thresholds and oddities.
        event: seeds the chance that breaks ties between ranks, together with the observation.

    Returns:
        ``crps/fair``, ``crps/standard``, ``spread/variance``, ``spread/error`` (of the mean): float64 ``[T]``;
        ``crps/pixels``: int64 ``[T]``; ``ranks``: int64 ``[T, M + 1]``; ``probability/forecasts`` and
        ``probability/events``: int64 ``[thresholds, T, M + 1]``, by how many members forecast the event;
        ``crps_gaussian`` where the protocol asks for that oddity.
    """
    seen, said = levels
    missing = missing_level(protocol)
    valid = (seen != missing) & (said != missing).all(0)
    chance = torch.Generator().manual_seed(_seed(event, observed))
    per_frame: dict[str, list[Tensor]] = {}
    for frame in range(observed.shape[0]):
        keep = valid[frame]
        y, x = observed[frame][keep].double(), members[:, frame, keep].double()
        sums = _crps(y, x) | _spread(y, x) | {"ranks": _ranks(y, x, chance)}
        sums |= _probabilities(seen[frame][keep], said[:, frame, keep], len(protocol.thresholds))
        if "crps_gaussian" in protocol.oddities:
            sums["crps_gaussian"] = gaussian_crps(y, x).sum()
        for name, value in sums.items():
            per_frame.setdefault(name, []).append(value)
    return {
        name: torch.stack(values, dim=1 if name.startswith("probability") else 0) for name, values in per_frame.items()
    }


def _crps(y: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return sums of mean |x - y| - sum |x_i - x_j| / (2 M^2), and of its fair form with M (M - 1) for M^2."""
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
    """Return the CRPS of a normal law with the members' mean and standard deviation (axis 0), as CasCast releases it.

    sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with z = (mean - y + e) / (sigma + e), e = 1e-10; a single
    member has sigma 0.
    """
    tiny = 1e-10
    sigma = (x.std(0) if x.shape[0] > 1 else torch.zeros_like(y)) + tiny
    z = (x.mean(0) - y + tiny) / sigma
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    return sigma * (z * torch.erf(z / 2**0.5) + 2 * density - torch.pi**-0.5)


def _spread(y: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"spread/variance": x.var(0).sum(), "spread/error": (x.mean(0) - y).square().sum()}


def _ranks(y: Tensor, x: Tensor, chance: torch.Generator) -> Tensor:
    below, ties = (x < y).sum(0), (x == y).sum(0)
    # Drawn on the host, so that every device breaks the ties alike.
    drawn = torch.rand(y.shape, generator=chance, dtype=torch.float64).to(y.device)
    rank = below + (drawn * (ties + 1)).long().clamp_(max=x.shape[0])
    return torch.bincount(rank, minlength=x.shape[0] + 1)


def _probabilities(seen: Tensor, said: Tensor, thresholds: int) -> dict[str, Tensor]:
    bins = said.shape[0] + 1
    forecasts, events = [], []
    for row in range(thresholds):
        agreeing = (said > row).sum(0)
        forecasts.append(torch.bincount(agreeing, minlength=bins))
        events.append(torch.bincount(agreeing[seen > row], minlength=bins))
    return {"probability/forecasts": torch.stack(forecasts), "probability/events": torch.stack(events)}


def _seed(event: str, observed: Tensor) -> int:
    """Return a seed that depends on neither batch nor rank: on the event and on what was observed."""
    seen = torch.nan_to_num(observed, nan=-1.0).double().sum().cpu().item()
    return int.from_bytes(hashlib.sha256(f"{event}/{seen:.6f}".encode()).digest()[:7], "big")
