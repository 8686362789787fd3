"""Noise schedules and the noise levels that samplers visit."""

import math

import numpy as np
import pytest
import torch

from simcast_hpc.diffusion import NoiseLevel, NoiseSchedule, make_schedule, noise_levels, spaced_timesteps
from simcast_hpc.diffusion.noise_levels import levels_at


def test_linear_schedule_equals_ddpm():
    schedule = make_schedule("linear", timesteps=1000, beta_start=1e-4, beta_end=0.02)
    assert schedule.alpha_bar(0) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert schedule.alpha_bar(1) / schedule.alpha_bar(0) == pytest.approx(1 - 1e-4 - 0.0199 / 999, rel=1e-12)
    assert schedule.alpha_bar(999) == pytest.approx(4.0358e-5, rel=1e-3), "almost no signal at the last timestep"
    assert schedule.alpha_bar(-1) == 1.0


def test_scaled_linear_schedule_has_linear_square_roots_of_betas():
    schedule = make_schedule("scaled_linear", timesteps=3, beta_start=0.01, beta_end=0.09)
    assert schedule.alpha_bars.tolist() == pytest.approx([0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91], rel=1e-12)


def test_cosine_schedule_equals_formula():
    schedule = make_schedule("cosine", timesteps=100)

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 10, 50, 90):
        assert schedule.alpha_bar(t) == pytest.approx(alpha_bar((t + 1) / 100) / alpha_bar(0), rel=1e-9)
    assert schedule.alpha_bar(99) == pytest.approx(schedule.alpha_bar(98) * 1e-3), "beta is bounded"


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_schedule_decreases_and_preserves_variance(kind, zero):
    schedule = make_schedule(kind, zero_terminal_snr=zero)
    assert (schedule.alpha_bars.diff() < 0).all() and schedule.alpha_bars.dtype == torch.float64
    assert all(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1) for t in (-1, 0, 500, 999))
    assert schedule.zero_terminal_snr == zero == (schedule.alpha_bar(999) == 0.0)
    assert schedule.alpha_bar(0) == pytest.approx(make_schedule(kind).alpha_bar(0), rel=1e-12), "the first is kept"


def test_zero_terminal_snr_is_an_affine_change_of_alpha():
    plain, rescaled = (make_schedule(zero_terminal_snr=zero).alpha_bars.sqrt() for zero in (False, True))
    slope = (rescaled[1:] - rescaled[:-1]) / (plain[1:] - plain[:-1])
    torch.testing.assert_close(slope, torch.full_like(slope, slope[0].item()))


def test_timesteps_of_the_spacings():
    schedule = make_schedule()
    assert spaced_timesteps(schedule, 20, "leading") == list(range(950, -1, -50))
    assert spaced_timesteps(schedule, 4, "trailing") == [999, 749, 499, 249]
    assert spaced_timesteps(schedule, 4, "linspace") == [999, 666, 333, 0]
    every = [spaced_timesteps(schedule, 1000, spacing) for spacing in ("leading", "linspace", "trailing")]
    assert every[0] == every[1] == every[2]
    assert spaced_timesteps(schedule, 7, "trailing")[0] == 999
    assert noise_levels(schedule, 4, "trailing")[1] == NoiseLevel(749, schedule.alpha_bar(749))


def test_karras_levels_are_linear_in_the_seventh_root():
    schedule = make_schedule()
    levels = noise_levels(schedule, 9, "karras")
    roots = [(level.sigma / level.alpha) ** (1 / 7) for level in levels]
    assert np.diff(roots) == pytest.approx([np.diff(roots)[0]] * 8)
    assert levels[0].alpha_bar == pytest.approx(schedule.alpha_bar(999), rel=1e-9)
    assert levels[-1].alpha_bar == pytest.approx(schedule.alpha_bar(0), rel=1e-9)
    assert [levels[0].timestep, levels[-1].timestep] == [999, 0]
    for level in levels[1:-1]:  # the timestep is the nearest
        near = [abs(schedule.alpha_bar(t) - level.alpha_bar) for t in range(level.timestep - 1, level.timestep + 2)]
        assert near[1] == min(near) or level.timestep < 3
    assert levels_at(schedule, noise_levels(schedule, 1000, "karras"))[0].timestep == 999, "timesteps may repeat"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spaced_timesteps(make_schedule(), 1001), "1001 sampling steps for a schedule of 1000"),
        (lambda: spaced_timesteps(make_schedule(), 0), "0 sampling steps"),
        (lambda: spaced_timesteps(make_schedule(), 1, "linspace"), "1 sampling steps .* choose 2 to 1000"),
        (lambda: spaced_timesteps(make_schedule(), 5, "even"), "spacing 'even' is unknown"),  # pyright: ignore
        (lambda: noise_levels(make_schedule(), 5, "Karras"), "spacing 'Karras' is unknown"),  # pyright: ignore
        (lambda: spaced_timesteps(make_schedule(), 5, "karras"), "use noise_levels"),
        (lambda: noise_levels(make_schedule(), 1001, "karras"), "1001 sampling steps .* choose 1 to 1000"),
        (lambda: noise_levels(make_schedule(zero_terminal_snr=True), 5, "karras"), "zero terminal SNR"),
        (lambda: make_schedule("sigmoid"), "'sigmoid' is unknown"),  # pyright: ignore
        (lambda: make_schedule("scaled_linear", beta_start=0.1, beta_end=0.01), "beta_start=0.1"),
        (lambda: make_schedule(timesteps=0), "timesteps=0"),
        (lambda: make_schedule(timesteps=1, zero_terminal_snr=True), "requires at least 2 timesteps"),
        (lambda: make_schedule(beta_start=1e-20, beta_end=1e-20), "must decrease"),
        (lambda: NoiseSchedule(torch.tensor([0.9, 0.9])), "must decrease"),
        (lambda: NoiseSchedule(torch.tensor([0.9, math.nan])), "must decrease"),
        (lambda: NoiseSchedule(torch.tensor([0.9, -0.1])), "must decrease within 1 and 0"),
        (lambda: NoiseSchedule(torch.ones(2, 2)), "must be .timesteps."),
        (lambda: levels_at(make_schedule(), [NoiseLevel(9, 0.5), NoiseLevel(5, 0.5)]), "less noise at each step"),
        (lambda: levels_at(make_schedule(), [NoiseLevel(9, 0.5), NoiseLevel(5, 1.0)]), "less noise at each step"),
        (lambda: levels_at(make_schedule(), [NoiseLevel(-1, 0.5)]), "must decrease within 999 and 0"),
    ],
)
def test_rejects_invalid_schedule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
