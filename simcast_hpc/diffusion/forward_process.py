"""The forward process, the training target of the network, and the clean latent from a prediction."""

from typing import Literal, get_args

from torch import Tensor

from .noise_schedule import NoiseSchedule

PredictionKind = Literal["epsilon", "v"]
PREDICTIONS: tuple[PredictionKind, ...] = get_args(PredictionKind)


def add_noise(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return x_t = alpha_t x_0 + sigma_t epsilon (Ho et al. 2020, Eq. 4), in the dtype of ``clean``.

    Args:
        schedule: the noise schedule.
        clean: x_0, ``[B, ...]``.
        noise: epsilon, standard normal, same shape.
        timesteps: t of each sample, int64 ``[B]``.
    """
    alpha, sigma = _factors(schedule, timesteps, like=clean)
    return alpha * clean + sigma * noise


def training_target(
    schedule: NoiseSchedule, kind: PredictionKind, clean: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Return the training target: epsilon (Ho et al. 2020, Eq. 14) or v (Salimans and Ho 2022, section 4).

    v = alpha_t epsilon - sigma_t x_0.

    Raises:
        ValueError: the kind is unknown.
    """
    check_prediction(kind)
    if kind == "epsilon":
        return noise
    alpha, sigma = _factors(schedule, timesteps, like=clean)
    return alpha * noise - sigma * clean


def clean_from_prediction(
    schedule: NoiseSchedule, kind: PredictionKind, noisy: Tensor, prediction: Tensor, timesteps: Tensor
) -> Tensor:
    """Return the clean latent of a prediction: the inverse of Eq. 4, or alpha_t x_t - sigma_t v.

    Raises:
        ValueError: the kind is unknown.
    """
    check_prediction(kind)
    alpha, sigma = _factors(schedule, timesteps, like=noisy)
    if kind == "epsilon":
        return (noisy - sigma * prediction) / alpha
    return alpha * noisy - sigma * prediction


def clean_coefficients(schedule: NoiseSchedule, kind: PredictionKind, timestep: int) -> tuple[float, float]:
    """Return (a, b) such that the clean latent is a x_t + b prediction at ``timestep``.

    Raises:
        ValueError: the kind is unknown.
    """
    check_prediction(kind)
    alpha, sigma = schedule.alpha(timestep), schedule.sigma(timestep)
    return (1.0 / alpha, -sigma / alpha) if kind == "epsilon" else (alpha, -sigma)


def noise_coefficients(schedule: NoiseSchedule, kind: PredictionKind, timestep: int) -> tuple[float, float]:
    """Return (a, b) such that epsilon is a x_t + b prediction at ``timestep``.

    Raises:
        ValueError: the kind is unknown.
    """
    check_prediction(kind)
    return (0.0, 1.0) if kind == "epsilon" else (schedule.sigma(timestep), schedule.alpha(timestep))


def check_prediction(kind: str) -> None:
    """Check the quantity that a network predicts.

    Raises:
        ValueError: the kind is unknown; names the known kinds.
    """
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction {kind!r} is unknown; choose {' or '.join(PREDICTIONS)}")


def _factors(schedule: NoiseSchedule, timesteps: Tensor, *, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *(1,) * (like.ndim - 1))
    alpha, sigma = schedule.factors(timesteps)
    return alpha.to(like.dtype).view(shape), sigma.to(like.dtype).view(shape)
