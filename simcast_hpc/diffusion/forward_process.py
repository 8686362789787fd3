"""The forward process, the training target of the network, and the clean latent from a prediction."""

from typing import Literal, get_args

from torch import Tensor

from .noise_levels import NoiseLevel
from .noise_schedule import NoiseSchedule

PredictionKind = Literal["epsilon", "v", "sample"]
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
    """Return the training target: epsilon (Ho et al. 2020, Eq. 14), v (Salimans and Ho 2022, section 4) or x_0.

    v = alpha_t epsilon - sigma_t x_0; ``sample`` is x_0, the clean latent.

    Raises:
        ValueError: the kind is unknown or does not suit the schedule.
    """
    check_prediction(kind, schedule)
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    alpha, sigma = _factors(schedule, timesteps, like=clean)
    return alpha * noise - sigma * clean


def clean_from_prediction(
    schedule: NoiseSchedule, kind: PredictionKind, noisy: Tensor, prediction: Tensor, timesteps: Tensor
) -> Tensor:
    """Return the clean latent of a prediction: the inverse of Eq. 4, alpha_t x_t - sigma_t v, or the prediction.

    Raises:
        ValueError: the kind is unknown or does not suit the schedule.
    """
    check_prediction(kind, schedule)
    if kind == "sample":
        return prediction
    alpha, sigma = _factors(schedule, timesteps, like=noisy)
    if kind == "epsilon":
        return (noisy - sigma * prediction) / alpha
    return alpha * noisy - sigma * prediction


def clean_coefficients(level: NoiseLevel, kind: PredictionKind) -> tuple[float, float]:
    """Return (a, b) such that the clean latent is a x_t + b prediction at a noise level.

    Raises:
        ValueError: the kind is unknown, or epsilon at the level of pure noise.
    """
    check_prediction(kind)
    if kind == "sample":
        return 0.0, 1.0
    if kind == "v":
        return level.alpha, -level.sigma
    if level.alpha == 0.0:
        raise ValueError(_epsilon_of_pure_noise(level.timestep))
    return 1.0 / level.alpha, -level.sigma / level.alpha


def noise_coefficients(level: NoiseLevel, kind: PredictionKind) -> tuple[float, float]:
    """Return (a, b) such that epsilon is a x_t + b prediction at a noise level.

    Raises:
        ValueError: the kind is unknown.
    """
    check_prediction(kind)
    if kind == "epsilon":
        return 0.0, 1.0
    if kind == "v":
        return level.sigma, level.alpha
    return 1.0 / level.sigma, -level.alpha / level.sigma


def check_prediction(kind: str, schedule: NoiseSchedule | None = None) -> None:
    """Check the quantity that a network predicts, and that the schedule allows it.

    Raises:
        ValueError: the kind is unknown, or it is epsilon and the schedule has zero terminal SNR.
    """
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction {kind!r} is unknown; choose {', '.join(PREDICTIONS[:-1])} or {PREDICTIONS[-1]}")
    if kind == "epsilon" and schedule is not None and schedule.zero_terminal_snr:
        raise ValueError(_epsilon_of_pure_noise(schedule.timesteps - 1))


def _epsilon_of_pure_noise(timestep: int) -> str:
    return (
        f"prediction 'epsilon' does not determine the clean latent at timestep {timestep}, which is pure noise "
        "(zero terminal SNR); choose v or sample"
    )


def _factors(schedule: NoiseSchedule, timesteps: Tensor, *, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *(1,) * (like.ndim - 1))
    alpha, sigma = schedule.factors(timesteps)
    return alpha.to(like.dtype).view(shape), sigma.to(like.dtype).view(shape)
