"""Noise schedules and the timesteps that samplers visit."""

import math

import pytest
import torch

from simcast_hpc.diffusion import make_schedule, spaced_timesteps


def test_linear_schedule_equals_ddpm():
    schedule = make_schedule("linear", timesteps=1000, beta_start=1e-4, beta_end=0.02)
    assert schedule.alpha_bar(0) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert schedule.alpha_bar(1) / schedule.alpha_bar(0) == pytest.approx(1 - 1e-4 - 0.0199 / 999, rel=1e-12)
    assert schedule.alpha_bar(999) == pytest.approx(4.0358e-5, rel=1e-3), "almost no signal at the last timestep"
    assert schedule.alpha_bar(-1) == 1.0


def test_cosine_schedule_equals_formula():
    schedule = make_schedule("cosine", timesteps=100)

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 10, 50, 90):
        assert schedule.alpha_bar(t) == pytest.approx(alpha_bar((t + 1) / 100) / alpha_bar(0), rel=1e-9)
    assert schedule.alpha_bar(99) == pytest.approx(schedule.alpha_bar(98) * 1e-3), "beta is bounded"


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedule_decreases_and_preserves_variance(kind):
    schedule = make_schedule(kind)
    assert (schedule.alpha_bars.diff() < 0).all() and schedule.alpha_bars.dtype == torch.float64
    assert all(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1) for t in (-1, 0, 500, 999))


def test_timesteps_of_both_spacings():
    schedule = make_schedule()
    assert spaced_timesteps(schedule, 20, "leading") == list(range(950, -1, -50))
    assert spaced_timesteps(schedule, 4, "trailing") == [999, 749, 499, 249]
    assert spaced_timesteps(schedule, 1000, "leading") == spaced_timesteps(schedule, 1000, "trailing")
    assert spaced_timesteps(schedule, 7, "trailing")[0] == 999


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spaced_timesteps(make_schedule(), 1001), "1001 sampling steps for a schedule of 1000"),
        (lambda: spaced_timesteps(make_schedule(), 0), "0 sampling steps"),
        (lambda: spaced_timesteps(make_schedule(), 5, "even"), "spacing 'even' is unknown"),  # pyright: ignore
        (lambda: make_schedule("sigmoid"), "'sigmoid' is unknown"),  # pyright: ignore
        (lambda: make_schedule(beta_start=0.1, beta_end=0.01), "beta_start=0.1"),
        (lambda: make_schedule(timesteps=0), "timesteps=0"),
    ],
)
def test_rejects_invalid_schedule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
