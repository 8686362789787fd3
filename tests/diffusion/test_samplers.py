"""Samplers compared with diffusers in float64 and with the exact solution of a Gaussian; rejected arguments."""

import math

import pytest
import torch

from simcast_hpc.diffusion import BatchNoise, make_schedule, plan_steps, sample, spaced_timesteps
from simcast_hpc.diffusion.samplers import SAMPLERS
from simcast_hpc.diffusion.sampling_loop import NonFiniteLatentError

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


def reference_scheduler(name: str, *, kind: str, prediction: str, clip: float | None, **more):
    """Return a scheduler of diffusers with float64 tables of the same schedule; its own are float32."""
    diffusers = pytest.importorskip("diffusers.schedulers")
    beta_schedule = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[kind]
    clipping = {} if "DPMSolver" in name else {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=beta_schedule,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[prediction],
        **clipping,
        **more,
    )
    schedule = make_schedule(kind)  # pyright: ignore[reportArgumentType]
    assert (scheduler.alphas_cumprod.double() / schedule.alpha_bars - 1).abs().max() < 2e-4, "the schedules are equal"
    scheduler.alphas_cumprod = schedule.alpha_bars
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def assert_same_path(scheduler, steps, *, clip: float | None, needs_noise: bool, eta: float | None = None, monkeypatch):
    latent, numbers = start(), iter(range(10_000))
    path: list[torch.Tensor] = []
    monkeypatch.setattr(
        f"{type(scheduler).__module__}.randn_tensor", lambda *_args, **_kwargs: given_noise(next(numbers))
    )
    for t in scheduler.timesteps:
        timesteps = torch.full((len(latent),), int(t), dtype=torch.int64)
        more = {} if eta is None else {"eta": eta}
        latent = scheduler.step(analytic_denoiser(latent, timesteps), t, latent, **more).prev_sample
        path.append(latent)
    ours: list[torch.Tensor] = []
    result = sample(
        steps,
        analytic_denoiser,
        start(),
        clip=clip,
        noise=given_noise if needs_noise else None,
        after_step=lambda _, x: ours.append(x),
    )
    worst = max((a - b).abs().max().item() / b.abs().max().item() for a, b in zip(ours, path, strict=True))
    assert worst < 1e-6
    assert result.latents.dtype == torch.float64
    assert clip is None or result.clip_rate.item() > 0, "clipping is compared too"


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("kind", "count"), [("linear", 20), ("linear", 1000), ("cosine", 20)])
def test_ddpm_equals_diffusers(kind, count, prediction, monkeypatch):
    """Settings: fixed_small variance, leading spacing, clip 1.2."""
    scheduler = reference_scheduler(
        "DDPMScheduler", kind=kind, prediction=prediction, clip=1.2, timestep_spacing="leading"
    )
    scheduler.set_timesteps(count)
    scheduler.betas = scheduler.betas.double()
    schedule = make_schedule(kind)
    timesteps = spaced_timesteps(schedule, count, "leading")
    assert timesteps == scheduler.timesteps.tolist()
    steps = plan_steps("ddpm", schedule, timesteps, prediction=prediction)
    assert_same_path(scheduler, steps, clip=1.2, needs_noise=True, monkeypatch=monkeypatch)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("spacing", "eta"), [("leading", 0.0), ("leading", 0.7), ("trailing", 0.0), ("trailing", 1.0)])
def test_ddim_equals_diffusers(spacing, eta, prediction, monkeypatch):
    """Settings: set_alpha_to_one, steps_offset 0, clip 1.2, no use_clipped_model_output, 20 steps."""
    scheduler = reference_scheduler(
        "DDIMScheduler", kind="linear", prediction=prediction, clip=1.2, timestep_spacing=spacing, set_alpha_to_one=True
    )
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(20)
    schedule = make_schedule()
    timesteps = spaced_timesteps(schedule, 20, spacing)
    assert timesteps == scheduler.timesteps.tolist()
    steps = plan_steps("ddim", schedule, timesteps, prediction=prediction, eta=eta)
    assert_same_path(scheduler, steps, clip=1.2, needs_noise=eta > 0, eta=eta, monkeypatch=monkeypatch)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("kind", "count"), [("linear", 6), ("linear", 20), ("cosine", 8)])
def test_dpm_solver_equals_diffusers(kind, count, prediction, monkeypatch):
    """Settings: dpmsolver++, order 2, midpoint, lower_order_final, final sigma zero, trailing spacing, no clip."""
    scheduler = reference_scheduler(
        "DPMSolverMultistepScheduler",
        kind=kind,
        prediction=prediction,
        clip=None,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(count)
    schedule = make_schedule(kind)
    timesteps = spaced_timesteps(schedule, count, "trailing")
    assert timesteps == scheduler.timesteps.tolist()
    bars = [schedule.alpha_bar(t) for t in timesteps]
    scheduler.sigmas = torch.tensor([math.sqrt((1 - bar) / bar) for bar in bars] + [0.0], dtype=torch.float64)
    steps = plan_steps("dpm_solver", schedule, timesteps, prediction=prediction)
    assert_same_path(scheduler, steps, clip=None, needs_noise=False, monkeypatch=monkeypatch)


def gaussian_denoiser(schedule, deviation: float):
    """Return the exact prediction of epsilon for a normal clean latent of this standard deviation."""

    def denoise(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (f.view(-1, 1) for f in schedule.factors(timesteps))
        return sigma * noisy / (alpha**2 * deviation**2 + sigma**2)

    return denoise


@pytest.mark.parametrize(("kind", "steps"), [("ddim", 500), ("dpm_solver", 100), ("ddpm", 500)])
def test_samplers_reproduce_gaussian(kind, steps):
    """With the exact denoiser of a normal latent of standard deviation 0.5, members have that deviation."""
    schedule = make_schedule()
    timesteps = spaced_timesteps(schedule, steps, "trailing")
    rows = BatchNoise(KEY, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    result = sample(
        plan_steps(kind, schedule, timesteps),
        gaussian_denoiser(schedule, 0.5),
        rows.initial((4000,), torch.float64),
        batch_noise=rows,
    )
    assert result.latents.std().item() == pytest.approx(0.5, rel=0.03)
    assert abs(result.latents.mean().item()) < 0.02


def test_dpm_solver_is_second_order():
    """Before the last step, half the steps double the error of DDIM and quadruple that of DPM-Solver++."""
    schedule, deviation = make_schedule(), 0.5
    first = torch.linspace(-2, 2, 11, dtype=torch.float64).view(1, -1)

    def spread(t: int) -> float:
        return math.sqrt(schedule.alpha_bar(t) * deviation**2 + schedule.sigma(t) ** 2)

    def error(kind, stride: int) -> float:
        timesteps = list(range(800, 399, -stride))
        latents: list[torch.Tensor] = []
        steps = plan_steps(kind, schedule, timesteps)
        sample(steps, gaussian_denoiser(schedule, deviation), first, after_step=lambda _, x: latents.append(x))
        exact = first * spread(400) / spread(800)  # the flow of a Gaussian is a scaling
        return (latents[-2] - exact).abs().max().item()

    ratios = {kind: error(kind, 20) / error(kind, 10) for kind in ("ddim", "dpm_solver")}
    assert 1.8 < ratios["ddim"] < 2.2
    assert 3.4 < ratios["dpm_solver"] < 4.6


@pytest.mark.parametrize("kind", SAMPLERS)
def test_members_do_not_depend_on_batching(kind):
    schedule = make_schedule()
    steps = plan_steps(kind, schedule, spaced_timesteps(schedule, 6, "trailing"))
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
