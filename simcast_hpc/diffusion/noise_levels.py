"""The noise levels that a sampler visits, and the timesteps that the network receives for them."""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from .noise_schedule import NoiseSchedule

Spacing = Literal["leading", "linspace", "trailing", "karras"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
_KARRAS_RHO = 7.0


class NoiseLevel(NamedTuple):
    """A noise level: the timestep that the network receives, and alpha_bar, which the update uses."""

    timestep: int
    alpha_bar: float

    @property
    def alpha(self) -> float:
        """Coefficient of the clean latent."""
        return math.sqrt(self.alpha_bar)

    @property
    def sigma(self) -> float:
        """Coefficient of the noise."""
        return math.sqrt(1.0 - self.alpha_bar)

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma), called lambda; infinite for the clean latent, minus infinite for pure noise."""
        if self.alpha_bar in (0.0, 1.0):
            return math.copysign(math.inf, self.alpha_bar - 0.5)
        return math.log(self.alpha / self.sigma)


CLEAN = NoiseLevel(-1, 1.0)


def spaced_timesteps(schedule: NoiseSchedule, steps: int, spacing: Spacing = "leading") -> list[int]:
    """Return ``steps`` timesteps of a schedule, decreasing (names as in Lin et al. 2024, Table 2).

    ``leading`` starts at 0 with an integer stride and includes timestep 0, as CasCast does. ``linspace`` includes the
    first and the last timestep. ``trailing`` starts at the last timestep (Lin et al., section 3.3), so that sampling
    with few steps starts from pure noise.

    Raises:
        ValueError: ``steps`` is not between 1 (``linspace``: 2) and the timesteps of the schedule, the spacing is
            unknown, or it is ``karras``, whose levels lie between timesteps (see :func:`noise_levels`).
    """
    total = schedule.timesteps
    if spacing not in SPACINGS:
        raise ValueError(f"timestep spacing {spacing!r} is unknown; choose {', '.join(SPACINGS)}")
    least = 2 if spacing == "linspace" else 1
    if not least <= steps <= total:
        raise ValueError(
            f"{steps} sampling steps for a schedule of {total} timesteps; choose {least} to {total} for spacing "
            f"{spacing}"
        )
    if spacing == "leading":
        return [i * (total // steps) for i in reversed(range(steps))]
    if spacing == "linspace":
        return [round(i * (total - 1) / (steps - 1)) for i in reversed(range(steps))]
    if spacing == "trailing":
        return [round(total - i * total / steps) - 1 for i in range(steps)]
    raise ValueError("the levels of spacing 'karras' lie between timesteps; use noise_levels")


def noise_levels(schedule: NoiseSchedule, steps: int, spacing: Spacing = "leading") -> list[NoiseLevel]:
    """Return the noise levels that a sampler visits, from noisy to clean, without the clean latent at the end.

    For ``karras``, sigma / alpha to the power of 1/7 decreases linearly from that of the last timestep to that of the
    first (Karras et al. 2022, Eq. 5 with rho 7). The network receives the nearest timestep by linear interpolation in
    log(sigma / alpha); at the end several levels can have the same. Other spacings: see :func:`spaced_timesteps`.

    Raises:
        ValueError: as :func:`spaced_timesteps`, or ``karras`` for a schedule with zero terminal SNR, whose last
            sigma / alpha is infinite.
    """
    if spacing != "karras":
        return levels_at(schedule, spaced_timesteps(schedule, steps, spacing))
    if not 1 <= steps <= schedule.timesteps:
        raise ValueError(
            f"{steps} sampling steps for a schedule of {schedule.timesteps} timesteps; choose 1 to "
            f"{schedule.timesteps} for spacing karras"
        )
    if schedule.zero_terminal_snr:
        raise ValueError(
            "spacing karras requires a finite largest sigma / alpha, but the schedule has zero terminal SNR; choose "
            "trailing or linspace"
        )
    bars = schedule.alpha_bars.numpy()
    ratios = np.sqrt((1.0 - bars) / bars)
    largest, smallest = ratios[-1] ** (1 / _KARRAS_RHO), ratios[0] ** (1 / _KARRAS_RHO)
    chosen = (largest + np.linspace(0.0, 1.0, steps) * (smallest - largest)) ** _KARRAS_RHO
    timesteps = np.interp(np.log(chosen), np.log(ratios), np.arange(len(ratios))).round()
    return [
        NoiseLevel(int(timestep), float(1.0 / (1.0 + ratio**2)))
        for timestep, ratio in zip(timesteps, chosen, strict=True)
    ]


def levels_at(schedule: NoiseSchedule, timesteps: Sequence[int | NoiseLevel]) -> list[NoiseLevel]:
    """Return the noise levels of timesteps of a schedule; levels are returned as they are.

    Raises:
        TypeError: a timestep is not an integer.
        ValueError: there are none or more than the schedule has, a timestep is not in the schedule, or alpha_bar does
            not increase within [0, 1).
    """
    total = schedule.timesteps
    if len(timesteps) > total:
        raise ValueError(f"{len(timesteps)} sampling steps for a schedule of {total} timesteps")
    numbers = [item.timestep if isinstance(item, NoiseLevel) else operator.index(item) for item in timesteps]
    if not numbers or not all(0 <= number < total for number in numbers):
        raise ValueError(f"timesteps {numbers} must decrease within {total - 1} and 0")
    levels = [
        item if isinstance(item, NoiseLevel) else NoiseLevel(number, schedule.alpha_bar(number))
        for item, number in zip(timesteps, numbers, strict=True)
    ]
    bars = [level.alpha_bar for level in levels]
    if not 0 <= bars[0] <= bars[-1] < 1 or not all(a < b for a, b in itertools.pairwise(bars)):
        raise ValueError(f"timesteps {numbers} must decrease within {total - 1} and 0, with less noise at each step")
    return levels
