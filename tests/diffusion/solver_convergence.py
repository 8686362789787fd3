"""Initial value problems of DPM-Solver++ with known solutions, to measure the order of a solver.

The clean latent is a given function of lambda = log(alpha / sigma), so a solver only has to integrate it. The functions
are negligible at the start, where multistep solvers have a lower order.
"""

import math

import torch

START, END, NOISY = -3.0, 1.0, 1.3
_CENTERS = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)


def clean_latents(half_log_snr: torch.Tensor) -> torch.Tensor:
    """Return the clean latents of four problems at each lambda ``[...]``: ``[..., 4]``."""
    return torch.exp(-2 * (half_log_snr[..., None] - _CENTERS).square())


def initial_latents() -> torch.Tensor:
    """Return the noisy latents at the start, float64 ``[1, 4]``."""
    return torch.full((1, len(_CENTERS)), NOISY, dtype=torch.float64)


def half_log_snrs(steps: int) -> torch.Tensor:
    """Return lambda at the start and after each of ``steps`` equal steps, float64 ``[steps + 1]``."""
    return torch.linspace(START, END, steps + 1, dtype=torch.float64)


def error(latents: torch.Tensor, *, stochastic: bool) -> float:
    """Return the error of the latents at the end: of the ODE, or of the SDE without its noise."""
    rate, grid = (2.0 if stochastic else 1.0), half_log_snrs(100_000)
    alphas = torch.sigmoid(2 * grid[[0, -1]]).sqrt()
    sigma_ratio = (alphas[1] * math.exp(-END) / (alphas[0] * math.exp(-START))).item()
    weights = rate * torch.exp(rate * (grid - END))
    integral = torch.trapezoid(weights[:, None] * clean_latents(grid), grid, dim=0)
    solution = sigma_ratio * math.exp(-(rate - 1) * (END - START)) * NOISY + alphas[1] * integral
    return (latents - solution).norm().item()


def observed_order(errors: list[float]) -> float:
    """Return the order from the errors of n, 2 n, 4 n, ... steps, of the last two."""
    return math.log2(errors[-2] / errors[-1])
