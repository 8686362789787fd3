"""Samplers as coefficients of linear combinations of latent, prediction, clean latent, history and noise.

Everything after the network in a step is ``simcast_kernels.sampler_step``, one kernel launch; a sampler only defines
its coefficients, which are computed in double precision before the first step.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from simcast_kernels.sampler_step import Coefficients

from .forward_process import PredictionKind, check_prediction, clean_coefficients, noise_coefficients
from .noise_levels import CLEAN, NoiseLevel, levels_at
from .noise_schedule import NoiseSchedule

SamplerKind = Literal["ddpm", "ddim", "dpm_solver", "dpm_solver_sde"]
SAMPLERS: tuple[SamplerKind, ...] = get_args(SamplerKind)
_MULTISTEP: tuple[SamplerKind, ...] = ("dpm_solver", "dpm_solver_sde")
# With fewer steps the last but one is of second order at most, as in the implementation of Lu et al.
_MANY_STEPS = 15


class SamplerStep(NamedTuple):
    """One step: the timestep passed to the network, and the coefficients of the update."""

    timestep: int
    coefficients: Coefficients

    @property
    def memory(self) -> int:
        """Number of previous steps whose clean latents the step uses, 0 to 2."""
        if self.coefficients.from_earlier != 0.0:
            return 2
        return 1 if self.coefficients.from_history != 0.0 else 0


def plan_steps(
    kind: SamplerKind,
    schedule: NoiseSchedule,
    timesteps: Sequence[int | NoiseLevel],
    *,
    prediction: PredictionKind = "epsilon",
    eta: float = 0.0,
    order: int = 2,
) -> list[SamplerStep]:
    """Return the steps of a sampler over decreasing ``timesteps``; the last step returns the clean latent.

    Args:
        kind: ``ddpm``, ``ddim``, ``dpm_solver`` (DPM-Solver++, multistep, data prediction) or ``dpm_solver_sde``, its
            stochastic form.
        schedule: the schedule that the network was trained with.
        timesteps: decreasing timesteps or noise levels, see ``spaced_timesteps`` and ``noise_levels``.
        prediction: quantity predicted by the network.
        eta: noise of ``ddim``, 0 (deterministic) to 1 (as much as DDPM); must be 0 for other samplers.
        order: order of DPM-Solver++, 1 to 3; must be 2 for other samplers, which have none.

    Raises:
        ValueError: the sampler or the prediction is unknown, the prediction does not suit the schedule, ``eta`` or
            ``order`` is invalid, or ``timesteps`` do not decrease within the schedule.
    """
    _check_arguments(kind, eta, order)
    check_prediction(prediction)
    levels = levels_at(schedule, timesteps)
    pairs = list(zip(levels, [*levels[1:], CLEAN], strict=True))
    if kind == "ddpm":
        return [_ddpm(t, s, prediction) for t, s in pairs]
    if kind == "ddim":
        return [_ddim(t, s, prediction, eta) for t, s in pairs]
    steps, total = [], len(levels)
    for number, (t, s) in enumerate(pairs):
        # The clean latent has infinite lambda, so the last step is of first order.
        limit = 1 if number == total - 1 else 2 if number == total - 2 and total < _MANY_STEPS else 3
        before = levels[:number][::-1][: min(order, limit) - 1]
        steps.append(_dpm_solver(before, t, s, prediction, stochastic=kind == "dpm_solver_sde"))
    return steps


def _ddpm(t: NoiseLevel, s: NoiseLevel, prediction: PredictionKind) -> SamplerStep:
    """DDPM (Ho et al. 2020): posterior mean of Eq. 7 and the smaller variance of section 3.2."""
    bar_t, bar_s = t.alpha_bar, s.alpha_bar
    step_alpha = bar_t / bar_s
    variance = (1 - bar_s) / (1 - bar_t) * (1 - step_alpha)
    coefficients = Coefficients(
        *clean_coefficients(t, prediction),
        from_noisy=math.sqrt(step_alpha) * (1 - bar_s) / (1 - bar_t),
        from_prediction=0.0,
        from_clean=math.sqrt(bar_s) * (1 - step_alpha) / (1 - bar_t),
        noise=math.sqrt(variance),
    )
    return SamplerStep(t.timestep, coefficients)


def _ddim(t: NoiseLevel, s: NoiseLevel, prediction: PredictionKind, eta: float) -> SamplerStep:
    """DDIM (Song et al. 2021, Eq. 12 and 16); the direction uses the predicted noise without clipping."""
    bar_t, bar_s = t.alpha_bar, s.alpha_bar
    deviation = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    direction = math.sqrt(max(0.0, 1 - bar_s - deviation**2))
    from_noisy, from_prediction = noise_coefficients(t, prediction)
    coefficients = Coefficients(
        *clean_coefficients(t, prediction),
        from_noisy=direction * from_noisy,
        from_prediction=direction * from_prediction,
        from_clean=math.sqrt(bar_s),
        noise=deviation,
    )
    return SamplerStep(t.timestep, coefficients)


def _dpm_solver(
    before: Sequence[NoiseLevel], t: NoiseLevel, s: NoiseLevel, prediction: PredictionKind, *, stochastic: bool
) -> SamplerStep:
    """Multistep DPM-Solver++ (Lu et al. 2022), of order 1 + number of levels ``before``, latest first.

    With lambda = log(alpha / sigma) and h = lambda_s - lambda_t the solution of the ODE is

        x_s = sigma_s / sigma_t x_t + alpha_s int_0^h e^(u - h) x0(lambda_t + u) du,

    and that of the reverse SDE

        x_s = sigma_s / sigma_t e^-h x_t + alpha_s int_0^h 2 e^(2 u - 2 h) x0(lambda_t + u) du
              + sigma_s sqrt(1 - e^-2h) z.

    x0 is approximated by a polynomial in lambda through this and the previous clean latents. Of second order it is
    integrated by the midpoint rule (Algorithm 2), of third order exactly. The limit of pure noise, lambda_t = -inf,
    has e^-h = 0; a previous level of pure noise has no influence.
    """
    decay = s.sigma / t.sigma * t.alpha / s.alpha  # e^-h
    decay_of_weights = decay**2 if stochastic else decay
    weight = s.alpha * (1 - decay_of_weights)
    # Coefficients of the differences between successive clean latents
    first = second = 0.0
    if before:
        h, last = s.half_log_snr - t.half_log_snr, t.half_log_snr - before[0].half_log_snr
        first = weight / 2 * h / last
        if len(before) == 2:
            previous = before[0].half_log_snr - before[1].half_log_snr
            first, second = _third_order(h, last, previous, 2 * h if stochastic else h)
            first, second = s.alpha * first, s.alpha * second
    coefficients = Coefficients(
        *clean_coefficients(t, prediction),
        from_noisy=s.sigma / t.sigma * (decay if stochastic else 1.0),
        from_prediction=0.0,
        from_clean=weight + first,
        from_history=second - first,
        noise=s.sigma * math.sqrt(1 - decay**2) if stochastic else 0.0,
        from_earlier=-second,
    )
    return SamplerStep(t.timestep, coefficients)


def _third_order(h: float, last: float, previous: float, g: float) -> tuple[float, float]:
    """Return the coefficients of x0_t - x0_r and x0_r - x0_q of the exact integral of a parabola in lambda.

    h, last and previous are the steps of lambda from t to s, from r to t and from q to r; the weight of the integral is
    e^-g at its start. With x0(lambda_t + u) = x0_t + D1 u / h + D2 (u / h)^2 / 2 the integrals of the last two terms
    are D1 (1 - (1 - e^-g) / g) and D2 (1/2 - 1/g + (1 - e^-g) / g^2).
    """
    decreased = -math.expm1(-g)
    slope = 1 - decreased / g
    curvature = 0.5 - 1 / g + decreased / g**2
    share = last / (last + previous)  # 0 for a level q of pure noise, whose previous is infinite
    # D1 = (1 + share) h/last (x0_t - x0_r) - share h/previous (x0_r - x0_q), D2 accordingly
    factor = slope * share + curvature * 2 * h / (last + previous)
    return (slope + factor) * h / last, -factor * h / previous


def _check_arguments(kind: SamplerKind, eta: float, order: int) -> None:
    if kind not in SAMPLERS:
        raise ValueError(f"sampler {kind!r} is unknown; choose {', '.join(SAMPLERS)}")
    if not 0 <= eta <= 1 or (eta and kind != "ddim"):
        raise ValueError(f"eta={eta} is invalid for sampler {kind}; it must be 0, or for ddim 0 to 1")
    if order not in (1, 2, 3) or (order != 2 and kind not in _MULTISTEP):
        raise ValueError(
            f"order={order} is invalid for sampler {kind}; it must be 2, or for {' and '.join(_MULTISTEP)} 1 to 3"
        )
