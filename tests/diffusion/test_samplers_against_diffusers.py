"""Every sampler, schedule and spacing against the library diffusers in float64, and the table of the differences."""

import re
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from simcast_hpc.diffusion import NoiseLevel, make_schedule, noise_levels, plan_steps, sample
from tests.diffusion.float64_diffusers import scheduler
from tests.diffusion.test_samplers import analytic_denoiser, given_noise, start

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "compatibility.md"
TOLERANCE = 1e-6
DPM = "DPMSolverMultistepScheduler"
KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One sampling run of both implementations."""

    sampler: str
    oracle: str
    prediction: str = "epsilon"
    kind: str = "linear"
    zero: bool = False
    spacing: str = "trailing"
    steps: int = 20
    eta: float = 0.0
    order: int = 2
    clip: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def levels(self) -> list[NoiseLevel]:
        """Return our noise levels; the solver of diffusers replaces an alpha_bar of 0 by 2^-24."""
        schedule = make_schedule(self.kind, zero_terminal_snr=self.zero)  # pyright: ignore[reportArgumentType]
        levels = noise_levels(schedule, self.steps, self.spacing)  # pyright: ignore[reportArgumentType]
        if self.oracle == DPM and levels[0].alpha_bar == 0:
            levels[0] = levels[0]._replace(alpha_bar=2.0**-24)
        return levels

    def theirs(self, patch: pytest.MonkeyPatch) -> Any:
        """Return the scheduler of diffusers with its timesteps set."""
        settings: dict[str, Any] = {
            "beta_schedule": KINDS[self.kind],
            "prediction_type": PREDICTIONS[self.prediction],
            "rescale_betas_zero_snr": self.zero,
        }
        if self.oracle == DPM:
            kinds = {"dpm_solver_sde": "sde-dpmsolver++"}
            settings |= {
                "algorithm_type": kinds.get(self.sampler, "dpmsolver++"),
                "solver_order": self.order,
                "final_sigmas_type": "zero",
                "use_karras_sigmas": self.spacing == "karras",
            }
        else:
            settings |= {"clip_sample": self.clip is not None, "clip_sample_range": self.clip or 1.0}
            settings["timestep_spacing"] = self.spacing
        found = scheduler(patch, self.oracle, noise=given_noise, **settings | self.settings)
        if self.oracle == DPM and self.spacing != "karras":
            # Its own leading and linspace spacings divide by one more step.
            found.set_timesteps(timesteps=[level.timestep for level in self.levels()])
        else:
            found.set_timesteps(self.steps)
        if self.order == 3:
            correct_third_order(found)
        return found


def correct_third_order(found: Any) -> None:
    """Add what diffusers lacks to be of third order: see tests/test_peer_faults.py."""
    update = found.multistep_dpm_solver_third_order_update

    def corrected(outputs, *arguments, **options):
        ratios = found.sigmas[found.step_index - 2 : found.step_index + 2]
        steps = -ratios.log().diff()  # of lambda
        h = steps[2]
        first, second = ((outputs[-k - 1] - outputs[-k - 2]) * h / steps[2 - k - 1] for k in range(2))
        half = h / (steps[0] + steps[1]) * (first - second)  # of the second derivative times h^2
        stochastic = found.config.algorithm_type.startswith("sde")
        g = 2 * h if stochastic else h
        right = 0.5 - 1 / g - torch.expm1(-g) / g**2
        alpha = (1 + ratios[-1] ** 2) ** -0.5
        return update(outputs, *arguments, **options) + alpha * (right + stochastic) * half

    found.multistep_dpm_solver_third_order_update = corrected


def difference(run: Run, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the largest difference of the latents after any step, relative to the largest latent of the step."""
    ours: list[torch.Tensor] = []
    levels = run.levels()
    steps = plan_steps(
        run.sampler,  # pyright: ignore[reportArgumentType]
        make_schedule(run.kind, zero_terminal_snr=run.zero),  # pyright: ignore[reportArgumentType]
        levels,
        prediction=run.prediction,  # pyright: ignore[reportArgumentType]
        eta=run.eta,
        order=run.order if run.sampler.startswith("dpm") else 2,
    )
    result = sample(
        steps,
        analytic_denoiser,
        start(),
        clip=run.clip,
        noise=given_noise,
        after_step=lambda _, latent: ours.append(latent),
    )
    assert run.clip is None or 0 < result.clip_rate < 1, "clipping is compared too"
    worst, latent = 0.0, start()
    with monkeypatch.context() as patch:
        theirs = run.theirs(patch)
        if run.kind != "cosine" or run.spacing != "karras":  # there diffusers truncates timesteps instead of rounding
            assert theirs.timesteps.tolist() == [level.timestep for level in levels]
        for level, t, own in zip(levels, theirs.timesteps, ours, strict=True):
            prediction = analytic_denoiser(latent, torch.full((len(latent),), level.timestep))
            options = {"eta": run.eta} if run.oracle == "DDIMScheduler" else {}
            latent = theirs.step(prediction, t, latent, **options).prev_sample
            worst = max(worst, ((latent - own).abs().max() / latent.abs().max()).item())
    return worst


def variants(run: Run, **axes: Any) -> list[Run]:
    """Return the runs with every combination of values of some fields; epsilon only without zero terminal SNR."""
    runs = [replace(run, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    return [one for one in runs if not (one.zero and one.prediction == "epsilon")]


ALL = {"prediction": list(PREDICTIONS), "kind": list(KINDS), "zero": [False, True]}
DDPM = Run(sampler="ddpm", oracle="DDPMScheduler", clip=1.2)
DDIM = Run(sampler="ddim", oracle="DDIMScheduler", clip=1.2)
SOLVER, SDE = (Run(sampler=name, oracle=DPM) for name in ("dpm_solver", "dpm_solver_sde"))
SPACINGS = ["leading", "linspace", "trailing"]
ROWS = {
    "`ddpm`": [*variants(DDPM, **ALL, spacing=SPACINGS), replace(DDPM, steps=1000), replace(DDPM, steps=7)],
    "`ddim`, `eta` 0, 0.7 and 1": variants(DDIM, **ALL, spacing=["leading", "trailing"], eta=[0.0, 0.7, 1.0]),
    "`ddim`, spacings `linspace` and `karras`": [
        *variants(replace(DDIM, oracle=DPM, order=1, clip=None), **ALL, spacing=["linspace"]),
        *variants(replace(DDIM, oracle=DPM, order=1, clip=None), prediction=list(PREDICTIONS), spacing=["karras"]),
    ],
    "`dpm_solver`, `order` 1 and 2": variants(SOLVER, **ALL, order=[1, 2], spacing=SPACINGS, steps=[6, 20]),
    "`dpm_solver`, `order` 3": variants(SOLVER, **ALL, order=[3], spacing=SPACINGS, steps=[6, 20]),
    "`dpm_solver_sde`, `order` 1 and 2": variants(SDE, **ALL, order=[1, 2], spacing=SPACINGS, steps=[6, 20]),
    "`dpm_solver_sde`, `order` 3": variants(SDE, **ALL, order=[3], spacing=SPACINGS, steps=[6, 20]),
    "both, spacing `karras`": [
        one
        for solver in (SOLVER, SDE)
        for one in variants(
            replace(solver, spacing="karras"), prediction=list(PREDICTIONS), kind=list(KINDS), order=[1, 2, 3]
        )
    ],
}


def stated(row: str) -> float:
    """Return the difference that the page states for a row of its table."""
    found = re.search(rf"^\| {re.escape(row)} \|[^\n]*\| ([\d.e+-]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert found is not None, f"{PAGE.name} has no row {row}"
    return float(found[1])


def assert_as_stated(row: str, worst: float) -> None:
    """Assert that a difference is tolerable, and the stated one up to the rounding of other machines."""
    print(f"{row}: {worst:.1e}")
    assert worst < TOLERANCE
    assert worst <= 10 * stated(row) <= TOLERANCE, f"{PAGE.name} states {stated(row)} for {row}, measured {worst:.1e}"


@pytest.mark.parametrize("row", ROWS)
def test_sampler_equals_diffusers(row, monkeypatch):
    assert_as_stated(row, max(difference(run, monkeypatch) for run in ROWS[row]))


def test_schedules_equal_diffusers(monkeypatch):
    worst = 0.0
    for kind, zero in product(KINDS, (False, True)):
        run = replace(DDIM, kind=kind, zero=zero, prediction="v")
        with monkeypatch.context() as patch:
            theirs = run.theirs(patch).alphas_cumprod
        ours = make_schedule(kind, zero_terminal_snr=zero).alpha_bars  # pyright: ignore[reportArgumentType]
        worst = max(worst, ((theirs - ours).abs() / ours.clamp_min(1e-300)).max().item())
    assert_as_stated("schedules, also with zero terminal SNR", worst)
