"""Noise schedules and the timesteps of a sampler."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScheduleKind = Literal["linear", "cosine"]
Spacing = Literal["leading", "trailing"]
_COSINE_OFFSET = 0.008
_MAX_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: ``alpha_bars`` is alpha_bar_t per timestep t, float64 ``[T]``, decreasing."""

    alpha_bars: Tensor

    @property
    def timesteps(self) -> int:
        """T, the number of timesteps in training."""
        return len(self.alpha_bars)

    def alpha_bar(self, timestep: int) -> float:
        """Return alpha_bar_t; it is 1 for -1, the end of sampling."""
        return 1.0 if timestep < 0 else float(self.alpha_bars[timestep])

    def alpha(self, timestep: int) -> float:
        """Return alpha_t, the coefficient of the clean latent."""
        return math.sqrt(self.alpha_bar(timestep))

    def sigma(self, timestep: int) -> float:
        """Return sigma_t, the coefficient of the noise."""
        return math.sqrt(1.0 - self.alpha_bar(timestep))

    def factors(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t of each timestep, float64, on the device of ``timesteps``."""
        alpha_bars = self.alpha_bars.to(timesteps.device)[timesteps]
        return alpha_bars.sqrt(), (1.0 - alpha_bars).sqrt()


def make_schedule(
    kind: ScheduleKind = "linear", *, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Return a schedule: ``linear`` (Ho et al. 2020, section 4) or ``cosine`` (Nichol and Dhariwal 2021, Eq. 17).

    ``beta_start`` and ``beta_end`` are the first and the last beta of ``linear``; ``cosine`` ignores them.

    Raises:
        ValueError: the kind is unknown, or the arguments give no decreasing schedule.
    """
    if timesteps < 1:
        raise ValueError(f"timesteps={timesteps} of the noise schedule must be at least 1; 1000 is typical")
    if kind == "linear":
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start={beta_start} and beta_end={beta_end} must satisfy 0 < start <= end < 1")
        betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    elif kind == "cosine":
        fraction = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        alpha_bars = torch.cos((fraction + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
        betas = (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp_max(_MAX_BETA)
    else:
        raise ValueError(f"noise schedule {kind!r} is unknown; choose linear or cosine")
    return NoiseSchedule(torch.cumprod(1.0 - betas, dim=0))


def spaced_timesteps(schedule: NoiseSchedule, steps: int, spacing: Spacing = "leading") -> list[int]:
    """Return ``steps`` timesteps of a schedule, decreasing.

    ``leading`` starts at 0 with an integer stride and includes timestep 0, as CasCast does; ``trailing`` starts at the
    last timestep (Lin et al. 2024, section 3.3), so that sampling with few steps starts from pure noise.

    Raises:
        ValueError: ``steps`` is not between 1 and the timesteps of the schedule, or the spacing is unknown.
    """
    total = schedule.timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} sampling steps for a schedule of {total} timesteps; choose 1 to {total}")
    if spacing == "leading":
        return [i * (total // steps) for i in reversed(range(steps))]
    if spacing == "trailing":
        return [round(total - i * total / steps) - 1 for i in range(steps)]
    raise ValueError(f"timestep spacing {spacing!r} is unknown; choose leading or trailing")
