"""Faults of other implementations that docs/results/compatibility.md lists; a failure means that a fault is gone."""

import contextlib
import importlib
import io
from typing import Any

import numpy as np
import pytest
import torch

from simcast_hpc.diffusion import add_noise, make_schedule, plan_steps, sample
from simcast_hpc.radar import read_frames
from simcast_hpc.verification import protocol_for, score
from tests.diffusion.float64_diffusers import scheduler
from tests.diffusion.solver_convergence import clean_latents, error, half_log_snrs, initial_latents, observed_order
from tests.radar.odim_files import layout, write_layout


def library(name: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration file
        return pytest.importorskip(
            name, reason=f"{name} is not installed: pip install -c constraints.txt -e '.[verify]'"
        )


def test_crps_of_pysteps_omits_intervals_that_end_at_the_observation():
    crps = library("pysteps.verification.probscores").CRPS
    members, observed = np.array([[0.0], [1.0]]), np.array([1.0])
    assert crps(members, observed) == 0
    assert crps(members, observed - 1e-9) == pytest.approx(0.25, abs=1e-8), "it is not continuous"
    ours = score(  # half of it: in float fields of observations 1 is the missing value
        np.full((1, 1, 4, 4), 0.5, np.float32),
        np.broadcast_to(np.array([0, 0.5], np.float32)[:, None, None, None], (1, 2, 1, 4, 4)),
        protocol=protocol_for("own", (100.0,)),
    )
    assert ours["crps_standard"] == pytest.approx(0.125, abs=1e-9)


def fss_of_all_windows(forecast: np.ndarray, observed: np.ndarray, size: int) -> float:
    """Return the FSS over the windows that are centered at each pixel, with zeros outside of the fields."""
    fractions = []
    for field in (forecast, observed):
        padded = np.pad(field.astype(float), size // 2)
        fractions.append(np.lib.stride_tricks.sliding_window_view(padded, (size, size)).mean((2, 3)))
    left, right = fractions
    assert left.shape == forecast.shape, "one window per pixel"
    return 1 - ((left - right) ** 2).mean() / (left**2 + right**2).mean()


def test_zero_padded_fss_of_scores_counts_too_many_windows():
    fss = library("scores.spatial").fss_2d_single_field
    forecast, observed = np.random.default_rng(0).random((2, 8, 8))
    options: Any = {"event_threshold": 0.5, "window_size": (3, 3)}
    right = fss_of_all_windows(forecast > 0.5, observed > 0.5, 3)
    # The windows of the padded fields are 9 x 9 instead of 8 x 8.
    assert fss(forecast, observed, **options, zero_padding=True) == pytest.approx(0.93226, abs=1e-5)
    assert right == pytest.approx(0.93832, abs=1e-5)
    # Without padding, scores takes the windows within the field.
    margin = (np.pad(field, 1) for field in (forecast, observed))
    assert fss(*margin, **options) == pytest.approx(right, abs=1e-12)


def test_pysteps_reads_every_odim_accumulation_as_fifteen_minutes(tmp_path):
    importer = library("pysteps.io.importers").import_odim_hdf5
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    groups = layout(stored, quantity="ACRR", gain=0.5, offset=0.0, nodata=255.0, undetect=0.0)
    path = write_layout(tmp_path / "hour.h5", groups)  # dataset1/what: 00:00:00 to 01:00:00
    amount, _, metadata = importer(str(path), qty="ACRR")
    assert metadata["accutime"] == 15.0 and metadata["unit"] == "mm"
    (frame,) = read_frames(path)
    assert frame.unit == "mm/h"
    np.testing.assert_allclose(frame.values, amount, rtol=1e-6)  # mm of one hour


def noisy_start(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the deterministic sample and noise of the scheduler tests of diffusers, ``[4, 3, 8, 8]`` in [0, 1)."""
    numbers = torch.arange(768, dtype=dtype) / 768
    return tuple(x.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) for x in (numbers, numbers.flip(0)))  # pyright: ignore


def scaled(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Return the network of the scheduler tests of diffusers."""
    time = timesteps.to(noisy.dtype).view(-1, 1, 1, 1)
    return noisy * time / (time + 1)


def test_expected_ddpm_sum_of_diffusers_is_that_of_float32(monkeypatch):
    """`test_full_loop_with_noise` of diffusers expects 387.9466 within 0.01, the float64 value is beyond."""
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sums = {}
    for dtype in (torch.float32, torch.float64):
        with monkeypatch.context() as patch:
            ddpm = scheduler(
                patch,
                "DDPMScheduler",
                noise=lambda _, dtype=dtype: noise.to(dtype),
                double=dtype == torch.float64,
                beta_schedule="linear",
                variance_type="fixed_small",
                clip_sample=True,
            )
            clean, added = noisy_start(dtype)
            latent = ddpm.add_noise(clean, added, torch.tensor([1]))
            for t in (1, 0):
                latent = ddpm.step(scaled(latent, torch.tensor([t])), t, latent).prev_sample
        sums[dtype] = latent.abs().sum().item()
    schedule = make_schedule()
    clean, added = noisy_start(torch.float64)
    ours = sample(
        plan_steps("ddpm", schedule, [1, 0]),
        scaled,
        add_noise(schedule, clean, added, torch.ones(4, dtype=torch.int64)),
        clip=1.0,
        noise=lambda _: noise.double(),
    ).latents.abs()
    assert sums[torch.float32] == pytest.approx(387.9466, abs=1e-3)
    assert sums[torch.float64] == pytest.approx(387.96725, abs=1e-4)
    assert ours.sum().item() == pytest.approx(sums[torch.float64], abs=1e-9)


@pytest.mark.parametrize(("algorithm", "found"), [("dpmsolver++", 2), ("sde-dpmsolver++", 1)])
def test_third_order_of_the_solver_of_diffusers_is_lower(algorithm, found, monkeypatch):
    """Its second difference is half the second derivative and lacks a factor of 2; in the SDE a sign is wrong too."""
    errors = []
    for count in (80, 160, 320):
        with monkeypatch.context() as patch:
            solver = scheduler(
                patch,
                "DPMSolverMultistepScheduler",
                noise=lambda _: torch.zeros_like(initial_latents()),
                algorithm_type=algorithm,
                solver_order=3,
                prediction_type="sample",
                lower_order_final=False,
                final_sigmas_type="sigma_min",
            )
            solver.set_timesteps(count)
            snrs = half_log_snrs(count)
            solver.sigmas, solver.timesteps = torch.exp(-snrs), torch.arange(count)
            solver.set_begin_index(0)
            latent = initial_latents()
            for number in range(count):
                latent = solver.step(clean_latents(snrs[number : number + 1]), number, latent).prev_sample
        errors.append(error(latent, stochastic=algorithm.startswith("sde")))
    assert observed_order(errors) == pytest.approx(found, abs=0.3), "ours: tests/diffusion/test_samplers.py"


def test_ddim_of_diffusers_steps_past_the_next_timestep(monkeypatch):
    """If a spacing does not divide the timesteps, the network receives another timestep than that of the update."""
    ddim = scheduler(monkeypatch, "DDIMScheduler", timestep_spacing="linspace", clip_sample=False)
    ddim.set_timesteps(20)
    first, following = ddim.timesteps[:2].tolist()
    assert (first, following) == (999, 946)
    latent, prediction = torch.linspace(-2, 2, 10, dtype=torch.float64).view(2, 5).unbind()
    update = ddim.step(prediction, first, latent).prev_sample
    for timestep, equal in ((949, True), (following, False)):
        forms = plan_steps("ddim", make_schedule(), [first, timestep])[0].coefficients
        clean = forms.clean_from_noisy * latent + forms.clean_from_prediction * prediction
        ours = forms.from_noisy * latent + forms.from_prediction * prediction + forms.from_clean * clean
        assert torch.allclose(ours, update, rtol=1e-9) == equal


def test_solver_of_diffusers_ends_zero_terminal_snr_with_more_signal(monkeypatch):
    solver = scheduler(monkeypatch, "DPMSolverMultistepScheduler", rescale_betas_zero_snr=True)
    assert solver.alphas_cumprod[-1] > 10 * solver.alphas_cumprod[-2] > 0
    assert make_schedule(zero_terminal_snr=True).alpha_bars[-1] == 0


@pytest.mark.parametrize("padding", ["zeros", "nearest"])
def test_cross_attention_of_earthformer_fails_where_padding_is_needed(padding):
    reason = "earthformer is not installed: add src of a checkout of earth-forecasting-transformer to PYTHONPATH"
    name = "earthformer.cuboid_transformer.cuboid_transformer"
    pytest.importorskip(name, reason=reason)
    layer = importlib.import_module(name).CuboidCrossAttentionLayer(
        dim=8, num_heads=2, cuboid_hw=(4, 4), padding_type=padding
    )
    whole, partial, vectors = torch.zeros(1, 2, 8, 4, 8), torch.zeros(1, 2, 6, 4, 8), torch.zeros(1, 8, 8)
    assert layer(whole, whole, vectors).shape == whole.shape
    with pytest.raises(UnboundLocalError, match="x_mask"):
        layer(partial, partial, vectors)
