"""Noise schedules: alpha_bar_t of each timestep of training."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

ScheduleKind = Literal["linear", "scaled_linear", "cosine"]
SCHEDULES: tuple[ScheduleKind, ...] = get_args(ScheduleKind)
_COSINE_OFFSET = 0.008
_MAX_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: ``alpha_bars`` is alpha_bar_t per timestep t, ``[T]``.

    The values decrease within (0, 1); the last one may be 0, the schedule then has zero terminal SNR. They are stored
    in float64 on the CPU.

    Raises:
        ValueError: ``alpha_bars`` is not such a schedule.
    """

    alpha_bars: Tensor
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        """Convert ``alpha_bars`` to float64 on the CPU, and check them."""
        bars = torch.as_tensor(self.alpha_bars, dtype=torch.float64, device="cpu")
        if bars.ndim != 1 or not len(bars):
            raise ValueError(f"alpha_bars has shape {tuple(bars.shape)}; it must be [timesteps] and not empty")
        # NaN fails all comparisons
        if not (bars[0] < 1 and bars[-1] >= 0 and (bars.diff() < 0).all()):
            raise ValueError(
                f"alpha_bars from {bars[0].item():g} to {bars[-1].item():g} must decrease within 1 and 0 at each "
                "timestep; only the last may be 0"
            )
        object.__setattr__(self, "alpha_bars", bars)

    @property
    def timesteps(self) -> int:
        """T, the number of timesteps in training."""
        return len(self.alpha_bars)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise: alpha_bar is exactly 0."""
        return self.alpha_bar(self.timesteps - 1) == 0.0

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
        device = timesteps.device
        if device not in self._on_device:  # copied once, and from pinned memory: other copies wait for the device
            bars = self.alpha_bars.pin_memory() if device.type == "cuda" else self.alpha_bars
            self._on_device[device] = bars.to(device, non_blocking=True)
        alpha_bars = self._on_device[device][timesteps]
        return alpha_bars.sqrt(), (1.0 - alpha_bars).sqrt()


def make_schedule(
    kind: ScheduleKind = "linear",
    *,
    timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """Return a schedule of betas from ``beta_start`` to ``beta_end``, or a cosine schedule, which ignores both.

    ``linear``: linear betas (Ho et al. 2020, section 4). ``scaled_linear``: linear square roots of the betas (Rombach
    et al. 2022). ``cosine``: Nichol and Dhariwal 2021, Eq. 17.

    Args:
        kind: shape of the schedule.
        timesteps: T, the number of timesteps.
        beta_start: first beta.
        beta_end: last beta.
        zero_terminal_snr: shift and scale alpha_t so that it is 0 at the last timestep and unchanged at the first (Lin
            et al. 2024, Algorithm 1). Networks that predict epsilon cannot be sampled with such a schedule.

    Raises:
        ValueError: the kind is unknown, or the arguments give no decreasing schedule.
    """
    if timesteps < 1:
        raise ValueError(f"timesteps={timesteps} of the noise schedule must be at least 1; 1000 is typical")
    if kind not in SCHEDULES:
        raise ValueError(f"noise schedule {kind!r} is unknown; choose {', '.join(SCHEDULES)}")
    if kind == "cosine":
        fraction = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        alpha_bars = torch.cos((fraction + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
        betas = (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp_max(_MAX_BETA)
    else:
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start={beta_start} and beta_end={beta_end} must satisfy 0 < start <= end < 1")
        power = 1.0 if kind == "linear" else 0.5
        betas = torch.linspace(beta_start**power, beta_end**power, timesteps, dtype=torch.float64) ** (1 / power)
    alpha_bars = torch.cumprod(1.0 - betas, dim=0)
    if not zero_terminal_snr:
        return NoiseSchedule(alpha_bars)
    if timesteps == 1:
        raise ValueError("zero_terminal_snr requires at least 2 timesteps: the first one keeps its noise")
    alphas = alpha_bars.sqrt()
    # exactly 0 at the end: x - x
    return NoiseSchedule(((alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))) ** 2)
