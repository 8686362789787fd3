"""How much noise each timestep holds, and which timesteps a sampler visits."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScheduleKind = Literal["linear", "cosine"]
Spacing = Literal["leading", "trailing"]
_COSINE_OFFSET = 0.008
_MOST_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: ``alpha_bars`` float64 ``[T]``, alpha_bar_t of timestep t, falling."""

    alpha_bars: Tensor

    @property
    def timesteps(self) -> int:
        """T, the timesteps that a network of this schedule is trained on."""
        return len(self.alpha_bars)

    def alpha_bar(self, timestep: int) -> float:
        """Return alpha_bar_t; that of -1, where sampling ends, is 1."""
        return 1.0 if timestep < 0 else float(self.alpha_bars[timestep])

    def alpha(self, timestep: int) -> float:
        """Return alpha_t, the factor of the clean latent."""
        return math.sqrt(self.alpha_bar(timestep))

    def sigma(self, timestep: int) -> float:
        """Return sigma_t, the factor of the noise."""
        return math.sqrt(1.0 - self.alpha_bar(timestep))

    def factors(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t of each timestep, float64, on its device."""
        alpha_bars = self.alpha_bars.to(timesteps.device)[timesteps]
        return alpha_bars.sqrt(), (1.0 - alpha_bars).sqrt()


def make_schedule(
    kind: ScheduleKind = "linear", *, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Return a schedule: ``linear`` (Ho et al. 2020, section 4) or ``cosine`` (Nichol and Dhariwal 2021, Eq. 17).

    ``beta_start`` and ``beta_end`` are the noise added at the first and the last timestep of ``linear``, from one
    timestep to the next; ``cosine`` has its own.

    Raises:
        ValueError: the kind is unknown, or the numbers make no falling schedule.
    """
    if timesteps < 1:
        raise ValueError(f"a noise schedule of {timesteps} timesteps is none; 1000 is usual")
    if kind == "linear":
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start={beta_start} and beta_end={beta_end} must satisfy 0 < start <= end < 1")
        betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    elif kind == "cosine":
        share = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        level = torch.cos((share + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
        betas = (1 - level[1:] / level[:-1]).clamp_max(_MOST_BETA)
    else:
        raise ValueError(f"noise schedule {kind!r} is unknown; there are linear and cosine")
    return NoiseSchedule(torch.cumprod(1.0 - betas, dim=0))


def spaced_timesteps(schedule: NoiseSchedule, steps: int, spacing: Spacing = "leading") -> list[int]:
    """Return ``steps`` timesteps of a schedule, falling.

    ``leading`` counts from 0 in whole strides and ends on timestep 0, as CasCast samples; ``trailing`` counts from the
    last one down (Lin et al. 2024, section 3.3), so that few steps begin from pure noise.

    Raises:
        ValueError: there are more steps than the schedule has timesteps, or fewer than one.
    """
    total = schedule.timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} sampling steps asked of a schedule of {total} timesteps; take 1 to {total}")
    if spacing == "leading":
        return [place * (total // steps) for place in reversed(range(steps))]
    if spacing == "trailing":
        return [round(total - place * total / steps) - 1 for place in range(steps)]
    raise ValueError(f"spacing {spacing!r} is unknown; there are leading and trailing")
