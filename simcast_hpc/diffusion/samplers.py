"""Samplers as coefficients of linear combinations of latent, prediction, clean latent, history and noise.

Everything after the network in a step is ``simcast_kernels.sampler_step``, one kernel launch; a sampler only defines
its coefficients, which are computed in double precision before the first step.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from simcast_kernels.sampler_step import Coefficients

from .forward_process import PredictionKind, check_prediction, clean_coefficients, noise_coefficients
from .noise_schedule import NoiseSchedule

SamplerKind = Literal["ddpm", "ddim", "dpm_solver"]
SAMPLERS: tuple[SamplerKind, ...] = ("ddpm", "ddim", "dpm_solver")


class SamplerStep(NamedTuple):
    """One step: the timestep passed to the network, and the coefficients of the update."""

    timestep: int
    coefficients: Coefficients

    @property
    def uses_history(self) -> bool:
        """Whether the step uses the clean latent of the previous step."""
        return self.coefficients.from_history != 0.0


def plan_steps(
    kind: SamplerKind,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    *,
    prediction: PredictionKind = "epsilon",
    eta: float = 0.0,
) -> list[SamplerStep]:
    """Return the steps of a sampler over decreasing ``timesteps``; the last step returns the clean latent.

    Args:
        kind: ``ddpm``, ``ddim`` or ``dpm_solver`` (DPM-Solver++(2M), data prediction, second order).
        schedule: the schedule that the network was trained with.
        timesteps: decreasing timesteps, see ``spaced_timesteps``.
        prediction: quantity predicted by the network.
        eta: noise of ``ddim``, 0 (deterministic) to 1 (as much as DDPM); must be 0 for other samplers.

    Raises:
        ValueError: the sampler or the prediction is unknown, ``eta`` is invalid, or ``timesteps`` do not decrease
            within the schedule.
    """
    _check_arguments(kind, schedule, timesteps, eta)
    check_prediction(prediction)
    following = [*timesteps[1:], -1]
    if kind == "ddpm":
        return [_ddpm(schedule, t, s, prediction) for t, s in zip(timesteps, following, strict=True)]
    if kind == "ddim":
        return [_ddim(schedule, t, s, prediction, eta) for t, s in zip(timesteps, following, strict=True)]
    previous = [None, *timesteps[:-1]]
    return [_dpm_solver(schedule, r, t, s, prediction) for r, t, s in zip(previous, timesteps, following, strict=True)]


def _ddpm(schedule: NoiseSchedule, t: int, s: int, prediction: PredictionKind) -> SamplerStep:
    """DDPM (Ho et al. 2020): posterior mean of Eq. 7 and the smaller variance of section 3.2."""
    bar_t, bar_s = schedule.alpha_bar(t), schedule.alpha_bar(s)
    step_alpha = bar_t / bar_s
    variance = (1 - bar_s) / (1 - bar_t) * (1 - step_alpha)
    coefficients = Coefficients(
        *clean_coefficients(schedule, prediction, t),
        from_noisy=math.sqrt(step_alpha) * (1 - bar_s) / (1 - bar_t),
        from_prediction=0.0,
        from_clean=math.sqrt(bar_s) * (1 - step_alpha) / (1 - bar_t),
        noise=math.sqrt(variance) if s >= 0 else 0.0,
    )
    return SamplerStep(t, coefficients)


def _ddim(schedule: NoiseSchedule, t: int, s: int, prediction: PredictionKind, eta: float) -> SamplerStep:
    """DDIM (Song et al. 2021, Eq. 12 and 16); the direction uses the predicted noise without clipping."""
    bar_t, bar_s = schedule.alpha_bar(t), schedule.alpha_bar(s)
    deviation = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    direction = math.sqrt(max(0.0, 1 - bar_s - deviation**2))
    from_noisy, from_prediction = noise_coefficients(schedule, prediction, t)
    coefficients = Coefficients(
        *clean_coefficients(schedule, prediction, t),
        from_noisy=direction * from_noisy,
        from_prediction=direction * from_prediction,
        from_clean=math.sqrt(bar_s),
        noise=deviation,
    )
    return SamplerStep(t, coefficients)


def _dpm_solver(schedule: NoiseSchedule, r: int | None, t: int, s: int, prediction: PredictionKind) -> SamplerStep:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second-order midpoint, first order at both ends.

    With lambda = log(alpha / sigma), h = lambda_s - lambda_t and k = (lambda_t - lambda_r) / h:
    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) ((1 + 1 / 2k) x0_t - 1 / 2k x0_r).
    The last step has sigma = 0 and infinite h, and is of first order.
    """
    alpha_s, sigma_s, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.sigma(t)
    decay = sigma_s / sigma_t * schedule.alpha(t) / alpha_s  # e^-h
    from_clean, from_history = alpha_s * (1 - decay), 0.0
    if r is not None and s >= 0:
        h = _half_log_snr(schedule, s) - _half_log_snr(schedule, t)
        ratio = (_half_log_snr(schedule, t) - _half_log_snr(schedule, r)) / h
        from_history = -from_clean / (2 * ratio)
        from_clean -= from_history
    coefficients = Coefficients(
        *clean_coefficients(schedule, prediction, t),
        from_noisy=sigma_s / sigma_t,
        from_prediction=0.0,
        from_clean=from_clean,
        from_history=from_history,
    )
    return SamplerStep(t, coefficients)


def _half_log_snr(schedule: NoiseSchedule, timestep: int) -> float:
    return math.log(schedule.alpha(timestep) / schedule.sigma(timestep))


def _check_arguments(kind: SamplerKind, schedule: NoiseSchedule, timesteps: Sequence[int], eta: float) -> None:
    if kind not in SAMPLERS:
        raise ValueError(f"sampler {kind!r} is unknown; choose {', '.join(SAMPLERS)}")
    if len(timesteps) > schedule.timesteps:
        raise ValueError(f"{len(timesteps)} sampling steps for a schedule of {schedule.timesteps} timesteps")
    decreasing = all(a > b for a, b in itertools.pairwise(timesteps))
    if not timesteps or not decreasing or not 0 <= timesteps[-1] <= timesteps[0] < schedule.timesteps:
        raise ValueError(f"timesteps {list(timesteps)} must decrease within {schedule.timesteps - 1} and 0")
    if not 0 <= eta <= 1 or (eta and kind != "ddim"):
        raise ValueError(f"eta={eta} is invalid for sampler {kind}; it must be 0, or for ddim 0 to 1")
