"""Samplers compared with the exact solution of a Gaussian, orders of convergence, pure noise, rejected arguments."""

import math
from typing import Any

import pytest
import torch

from simcast_hpc.diffusion import (
    BatchNoise,
    NoiseLevel,
    make_schedule,
    noise_levels,
    plan_steps,
    sample,
    spaced_timesteps,
)
from simcast_hpc.diffusion.samplers import SAMPLERS, SamplerKind
from simcast_hpc.diffusion.sampling_loop import NonFiniteLatentError
from tests.diffusion.solver_convergence import clean_latents, error, half_log_snrs, initial_latents, observed_order

SHAPE = (3, 2, 4, 5)
KEY = 11


def analytic_denoiser(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Return a smooth function of latent and time of order 1, so that only the sampler is compared."""
    time = timesteps.to(noisy.dtype).view(-1, 1, 1, 1) / 1000
    return torch.tanh(0.7 * noisy + time) + 0.3 * torch.sin(3 * noisy - time)


def start() -> torch.Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def given_noise(number: int) -> torch.Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + number))


def gaussian_denoiser(schedule, deviation: float, prediction="epsilon"):
    """Return the exact prediction for a normal clean latent of this standard deviation."""

    def denoise(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (f.view(-1, 1) for f in schedule.factors(timesteps))
        variance = alpha**2 * deviation**2 + sigma**2
        epsilon, clean = sigma * noisy / variance, alpha * deviation**2 * noisy / variance
        return {"epsilon": epsilon, "sample": clean, "v": alpha * epsilon - sigma * clean}[prediction]

    return denoise


@pytest.mark.parametrize(("prediction", "zero"), [("epsilon", False), ("v", True), ("sample", True)])
@pytest.mark.parametrize(
    ("kind", "steps", "order"),
    [
        ("ddim", 500, 2),
        ("ddpm", 500, 2),
        ("dpm_solver", 100, 2),
        ("dpm_solver", 100, 3),
        ("dpm_solver_sde", 200, 2),
        ("dpm_solver_sde", 100, 3),
    ],
)
def test_samplers_reproduce_gaussian(kind, steps, order, prediction, zero):
    """With the exact denoiser of a normal latent of standard deviation 0.5, members have that deviation."""
    schedule = make_schedule(zero_terminal_snr=zero)
    rows = BatchNoise(KEY, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    result = sample(
        plan_steps(kind, schedule, noise_levels(schedule, steps, "trailing"), prediction=prediction, order=order),
        gaussian_denoiser(schedule, 0.5, prediction),
        rows.initial((4000,), torch.float64),
        batch_noise=rows,
    )
    assert result.latents.std().item() == pytest.approx(0.5, rel=0.03)
    assert abs(result.latents.mean().item()) < 0.02


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["dpm_solver", "dpm_solver_sde"])
def test_order_of_dpm_solver(kind, order):
    errors, schedule = [], make_schedule()
    for count in (40, 80, 160):
        snrs = half_log_snrs(count)
        bars = torch.sigmoid(2 * snrs).tolist()
        levels = [NoiseLevel(count - number, bar) for number, bar in enumerate(bars)]
        latents: list[torch.Tensor] = []
        sample(
            plan_steps(kind, schedule, levels, prediction="sample", order=order),
            lambda _, t, snrs=snrs: clean_latents(snrs[len(snrs) - 1 - t]),
            initial_latents(),
            noise=lambda _: torch.zeros_like(initial_latents()),
            after_step=lambda _, x, latents=latents: latents.append(x),
        )
        errors.append(error(latents[-2], stochastic=kind == "dpm_solver_sde"))
    assert observed_order(errors) == pytest.approx(order, abs=0.3)


def test_pure_noise_is_the_limit_of_little_signal():
    """A step from alpha_bar 0 equals a step from a tiny alpha_bar; first order is DDIM."""
    schedule = make_schedule(zero_terminal_snr=True)
    plans: list[tuple[SamplerKind, dict[str, Any]]] = [
        ("ddpm", {}),
        ("ddim", {"eta": 0.6}),
        ("dpm_solver", {}),
        ("dpm_solver_sde", {"order": 3}),
    ]
    for kind, options in plans:
        zero, tiny = (
            plan_steps(kind, schedule, [NoiseLevel(999, bar), 700, 300], prediction="v", **options)
            for bar in (0.0, 1e-30)
        )
        assert zero[0].coefficients == pytest.approx(tiny[0].coefficients, abs=1e-12)
        assert zero[0].memory == zero[1].memory == 0, "the first clean latent has no weight in the second step"
    plans = [("dpm_solver", {"order": 1}), ("ddim", {})]
    first, ddim = (
        sample(
            plan_steps(kind, schedule, spaced_timesteps(schedule, 9, "trailing"), prediction="sample", **options),
            analytic_denoiser,
            start(),
        ).latents
        for kind, options in plans
    )
    torch.testing.assert_close(first, ddim)


@pytest.mark.parametrize(("kind", "order"), [*((kind, 2) for kind in SAMPLERS), ("dpm_solver_sde", 3)])
def test_members_do_not_depend_on_batching(kind, order):
    schedule = make_schedule()
    steps = plan_steps(kind, schedule, noise_levels(schedule, 6, "karras"), order=order)
    sample_of, member = torch.arange(10) // 5, torch.arange(10) % 5

    def members(which: slice) -> torch.Tensor:
        rows = BatchNoise(KEY, sample_of[which], member[which])
        return sample(steps, analytic_denoiser, rows.initial((2, 3, 7)), batch_noise=rows, clip=2.0).latents

    together = members(slice(0, 10))
    assert torch.equal(torch.cat([members(slice(i, i + 1)) for i in range(10)]), together)
    assert torch.equal(torch.cat([members(slice(0, 3)), members(slice(3, 10))]), together)
    differences = (together[:, None] - together[None]).abs().flatten(2).amax(-1) + torch.eye(10)
    assert differences.min() > 1e-3, "members are distinct"


def test_guidance_combines_predictions():
    schedule = make_schedule()
    steps = plan_steps("ddim", schedule, spaced_timesteps(schedule, 5))

    def weak_denoiser(noisy, timesteps):
        return 0.5 * analytic_denoiser(noisy, timesteps)

    def mixed(noisy, timesteps):
        return weak_denoiser(noisy, timesteps) + 1.5 * (
            analytic_denoiser(noisy, timesteps) - weak_denoiser(noisy, timesteps)
        )

    got = sample(steps, analytic_denoiser, start(), unconditional=weak_denoiser, guidance=1.5).latents
    torch.testing.assert_close(got, sample(steps, mixed, start()).latents)


def test_rejects_missing_inputs_and_non_finite_latents():
    schedule = make_schedule()
    steps = plan_steps("ddpm", schedule, [500, 0])
    with pytest.raises(ValueError, match="a stochastic sampler requires batch_noise or noise"):
        sample(steps, analytic_denoiser, start())
    with pytest.raises(ValueError, match=r"guidance=2\.0 requires"):
        sample(steps, analytic_denoiser, start(), guidance=2.0, noise=given_noise)
    ddim = plan_steps("ddim", schedule, [500, 0])
    with pytest.raises(NonFiniteLatentError, match="3 of 3 sampled latents are not finite"):
        sample(ddim, lambda x, t: analytic_denoiser(x, t) * math.nan, start())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("euler", [5, 0]), "'euler' is unknown"),
        (("ddim", []), "must decrease"),
        (("ddim", [0, 5]), "must decrease"),
        (("ddim", [1000, 0]), "must decrease within 999 and 0"),
        (("ddpm", list(range(1001))), "1001 sampling steps"),
    ],
)
def test_rejects_invalid_plan(arguments, message):
    kind, timesteps = arguments
    with pytest.raises(ValueError, match=message):
        plan_steps(kind, make_schedule(), timesteps)
    with pytest.raises(ValueError, match=r"eta=0\.5 is invalid for sampler dpm_solver"):
        plan_steps("dpm_solver", make_schedule(), [5, 0], eta=0.5)
    invalid: list[tuple[SamplerKind, int]] = [("ddim", 1), ("ddpm", 3), ("dpm_solver", 0), ("dpm_solver_sde", 4)]
    for sampler, order in invalid:
        with pytest.raises(ValueError, match=f"order={order} is invalid for sampler {sampler}; .* 1 to 3"):
            plan_steps(sampler, make_schedule(), [5, 0], order=order)
    with pytest.raises(TypeError, match="float"):
        plan_steps("ddim", make_schedule(), [5.5, 0])  # pyright: ignore
