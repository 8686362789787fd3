"""Samplers as linear forms: what each step makes of latent, prediction, clean latent, history and noise.

All that follows the network in a step is ``simcast_kernels.sampler_step``, one launch; a sampler only says with which
coefficients. They are computed in double precision, once, before the first step.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from simcast_kernels.sampler_step import Coefficients

from .forward_process import PredictionKind, clean_forms, noise_forms
from .noise_schedule import NoiseSchedule

SamplerKind = Literal["ddpm", "ddim", "dpm_solver"]
SAMPLERS: tuple[SamplerKind, ...] = ("ddpm", "ddim", "dpm_solver")


class Step(NamedTuple):
    """One step: the timestep that the network is told, and the linear forms that follow it."""

    timestep: int
    coefficients: Coefficients

    @property
    def uses_history(self) -> bool:
        """Whether the clean latent of the step before is wanted."""
        return self.coefficients.from_history != 0.0


def plan_steps(
    kind: SamplerKind,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    *,
    prediction: PredictionKind = "epsilon",
    eta: float = 0.0,
) -> list[Step]:
    """Return the steps of a sampler over falling ``timesteps``, the last of which ends at the clean latent.

    Args:
        kind: ``ddpm``, ``ddim`` or ``dpm_solver`` (DPM-Solver++(2M), data prediction, second order).
        schedule: the schedule that the network was trained with.
        timesteps: what the network is told, falling; see ``schedule.spaced_timesteps``.
        prediction: what the network says.
        eta: noise of ``ddim``, 0 (none) to 1 (as much as DDPM); the other two take none.

    Raises:
        ValueError: the sampler is unknown, timesteps do not fall within the schedule, or ``eta`` is not its own.
    """
    _check(kind, schedule, timesteps, eta)
    after = [*timesteps[1:], -1]
    if kind == "ddpm":
        return [_ddpm(schedule, t, s, prediction) for t, s in zip(timesteps, after, strict=True)]
    if kind == "ddim":
        return [_ddim(schedule, t, s, prediction, eta) for t, s in zip(timesteps, after, strict=True)]
    before = [None, *timesteps[:-1]]
    return [_dpm_solver(schedule, r, t, s, prediction) for r, t, s in zip(before, timesteps, after, strict=True)]


def _ddpm(schedule: NoiseSchedule, t: int, s: int, prediction: PredictionKind) -> Step:
    """DDPM (Ho et al. 2020): the posterior mean of Eq. 7 and its variance, the smaller of the two of section 3.2."""
    bar_t, bar_s = schedule.alpha_bar(t), schedule.alpha_bar(s)
    step_alpha = bar_t / bar_s
    variance = (1 - bar_s) / (1 - bar_t) * (1 - step_alpha)
    forms = Coefficients(
        *clean_forms(schedule, prediction, t),
        from_noisy=math.sqrt(step_alpha) * (1 - bar_s) / (1 - bar_t),
        from_prediction=0.0,
        from_clean=math.sqrt(bar_s) * (1 - step_alpha) / (1 - bar_t),
        noise=math.sqrt(variance) if s >= 0 else 0.0,
    )
    return Step(t, forms)


def _ddim(schedule: NoiseSchedule, t: int, s: int, prediction: PredictionKind, eta: float) -> Step:
    """DDIM (Song et al. 2021, Eq. 12 and 16); the direction is the predicted noise, whatever was clipped."""
    bar_t, bar_s = schedule.alpha_bar(t), schedule.alpha_bar(s)
    deviation = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    direction = math.sqrt(max(0.0, 1 - bar_s - deviation**2))
    from_noisy, from_prediction = noise_forms(schedule, prediction, t)
    forms = Coefficients(
        *clean_forms(schedule, prediction, t),
        from_noisy=direction * from_noisy,
        from_prediction=direction * from_prediction,
        from_clean=math.sqrt(bar_s),
        noise=deviation,
    )
    return Step(t, forms)


def _dpm_solver(schedule: NoiseSchedule, r: int | None, t: int, s: int, prediction: PredictionKind) -> Step:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): midpoint of second order, of first at both ends.

    With lambda = log(alpha / sigma), h = lambda_s - lambda_t and k = (lambda_t - lambda_r) / h:
    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) ((1 + 1 / 2k) x0_t - 1 / 2k x0_r).
    The last step goes to sigma = 0, where h is infinite, and is of first order.
    """
    alpha_s, sigma_s, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.sigma(t)
    decay = sigma_s / sigma_t * schedule.alpha(t) / alpha_s  # e^-h
    from_clean, from_history = alpha_s * (1 - decay), 0.0
    if r is not None and s >= 0:
        h = _half_log_snr(schedule, s) - _half_log_snr(schedule, t)
        ratio = (_half_log_snr(schedule, t) - _half_log_snr(schedule, r)) / h
        from_history = -from_clean / (2 * ratio)
        from_clean -= from_history
    forms = Coefficients(
        *clean_forms(schedule, prediction, t),
        from_noisy=sigma_s / sigma_t,
        from_prediction=0.0,
        from_clean=from_clean,
        from_history=from_history,
    )
    return Step(t, forms)


def _half_log_snr(schedule: NoiseSchedule, timestep: int) -> float:
    return math.log(schedule.alpha(timestep) / schedule.sigma(timestep))


def _check(kind: SamplerKind, schedule: NoiseSchedule, timesteps: Sequence[int], eta: float) -> None:
    if kind not in SAMPLERS:
        raise ValueError(f"sampler {kind!r} is unknown; there are {', '.join(SAMPLERS)}")
    if len(timesteps) > schedule.timesteps:
        raise ValueError(f"{len(timesteps)} sampling steps asked of a schedule of {schedule.timesteps} timesteps")
    falling = all(a > b for a, b in itertools.pairwise(timesteps))
    if not timesteps or not falling or not 0 <= timesteps[-1] <= timesteps[0] < schedule.timesteps:
        raise ValueError(f"timesteps {list(timesteps)} must fall within {schedule.timesteps - 1} and 0")
    if not 0 <= eta <= 1 or (eta and kind != "ddim"):
        raise ValueError(f"eta={eta} is for ddim alone, from 0 (no noise) to 1; the sampler is {kind}")
