"""Forward process and its inverse, guidance, and random numbers of training."""

import pytest
import torch

from simcast_hpc.diffusion import (
    NoiseLevel,
    add_noise,
    clean_from_prediction,
    make_schedule,
    plan_steps,
    stream_key,
    training_target,
)
from simcast_hpc.diffusion.counter_noise import sample_timesteps, training_noise
from simcast_hpc.diffusion.forward_process import clean_coefficients, noise_coefficients
from simcast_hpc.diffusion.guidance import check_guidance, drop_condition, guided

SCHEDULE = make_schedule()
PURE = make_schedule(zero_terminal_snr=True)
TIMESTEPS = torch.tensor([0, 400, 999])


def clean_and_noise(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (3, 2, 4, 5, 6)
    return tuple(torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))  # pyright: ignore


def test_forward_process_is_equation_4():
    clean, noise = clean_and_noise()
    noisy = add_noise(SCHEDULE, clean, noise, TIMESTEPS)
    for row, t in enumerate(TIMESTEPS.tolist()):
        want = SCHEDULE.alpha_bar(t) ** 0.5 * clean[row] + (1 - SCHEDULE.alpha_bar(t)) ** 0.5 * noise[row]
        torch.testing.assert_close(noisy[row], want)


@pytest.mark.parametrize(
    ("kind", "schedule"), [("epsilon", SCHEDULE), ("v", SCHEDULE), ("sample", SCHEDULE), ("v", PURE), ("sample", PURE)]
)
def test_exact_prediction_inverts_forward_process(kind, schedule):
    """Also at the last timestep of zero terminal SNR, which is pure noise."""
    clean, noise = clean_and_noise()
    noisy = add_noise(schedule, clean, noise, TIMESTEPS)
    target = training_target(schedule, kind, clean, noise, TIMESTEPS)
    back = clean_from_prediction(schedule, kind, noisy, target, TIMESTEPS)
    torch.testing.assert_close(back, clean, atol=1e-10, rtol=1e-9)
    for row, t in enumerate(TIMESTEPS.tolist()):
        level = NoiseLevel(t, schedule.alpha_bar(t))
        for coefficients, want in ((clean_coefficients, clean), (noise_coefficients, noise)):
            of_noisy, of_prediction = coefficients(level, kind)
            got = of_noisy * noisy[row] + of_prediction * target[row]
            torch.testing.assert_close(got, want[row], atol=1e-10, rtol=1e-9)


def test_v_is_a_rotation():
    clean, noise = clean_and_noise()
    noisy = add_noise(SCHEDULE, clean, noise, TIMESTEPS)
    v = training_target(SCHEDULE, "v", clean, noise, TIMESTEPS)
    torch.testing.assert_close(noisy.square() + v.square(), clean.square() + noise.square())


def test_add_noise_preserves_dtype():
    clean, noise = clean_and_noise(torch.float32)
    assert add_noise(SCHEDULE, clean, noise, TIMESTEPS).dtype == torch.float32


def noise_at(positions, purpose="condition"):
    return training_noise(list(positions), seed=3, purpose=purpose, device="cpu")


def test_condition_dropout_is_per_sample():
    condition = torch.ones(4000, 2, 3)
    dropped = drop_condition(condition, noise_at(range(4000)), 0.1)
    share = (dropped == 0).float().mean(dim=(1, 2))
    assert set(share.tolist()) == {0.0, 1.0}, "complete samples are dropped"
    assert share.mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 4000) ** 0.5)
    part = drop_condition(condition[100:130], noise_at(range(100, 130)), 0.1)
    assert torch.equal(part, dropped[100:130]), "independent of the batch"
    assert torch.equal(drop_condition(condition, noise_at(range(4000)), 0.0), condition)
    with pytest.raises(ValueError, match="condition_dropout=1"):
        drop_condition(condition, noise_at(range(4000)), 1)


def test_timesteps_are_uniform_and_depend_only_on_position():
    timesteps = sample_timesteps(noise_at(range(8000), "timestep"), 1000)
    assert 0 <= timesteps.min() < 5 and 994 < timesteps.max() < 1000
    assert timesteps.float().mean().item() == pytest.approx(499.5, abs=4 * 289 / 8000**0.5)
    assert torch.equal(sample_timesteps(noise_at([7, 2**33 + 1], "timestep"), 1000)[:1], timesteps[7:8])
    assert not torch.equal(sample_timesteps(noise_at(range(50), "noise"), 1000), timesteps[:50])


def test_positions_beyond_32_bits_have_distinct_streams():
    far = noise_at([5, 5 + 2**32])
    assert not torch.equal(*far.normal((8,)).unbind())


def test_streams_of_seeds_and_purposes_differ():
    keys = {stream_key(seed, purpose) for seed in (0, 1, 2**40) for purpose in ("noise", "member")}
    assert len(keys) == 6 and all(0 <= key < 2**63 for key in keys)


def test_guidance():
    conditional, unconditional = torch.tensor([3.0]), torch.tensor([1.0])
    assert guided(conditional, unconditional, 1.0).item() == 3
    assert guided(conditional, unconditional, 2.0).item() == 5
    check_guidance(1.0, 0.0)
    check_guidance(2.0, 0.1)
    with pytest.raises(ValueError, match="trained with condition_dropout=0"):
        check_guidance(2.0, 0.0)


@pytest.mark.parametrize(
    "use",
    [
        lambda kind, x: training_target(SCHEDULE, kind, x, x, TIMESTEPS),
        lambda kind, x: clean_from_prediction(SCHEDULE, kind, x, x, TIMESTEPS),
        lambda kind, _x: clean_coefficients(NoiseLevel(5, 0.9), kind),
        lambda kind, _x: noise_coefficients(NoiseLevel(5, 0.9), kind),
        lambda kind, _x: plan_steps("ddpm", SCHEDULE, [999, 0], prediction=kind),
        lambda kind, _x: plan_steps("ddim", SCHEDULE, [999, 0], prediction=kind),
        lambda kind, _x: plan_steps("dpm_solver", SCHEDULE, [0], prediction=kind),
    ],
)
@pytest.mark.parametrize("kind", ["nonsense", "eps", "V", "x0", ""])
def test_rejects_unknown_prediction(use, kind):
    with pytest.raises(ValueError, match=f"prediction '{kind}' is unknown; choose epsilon, v or sample"):
        use(kind, torch.zeros(3, 2, 4))


@pytest.mark.parametrize(
    "use",
    [
        lambda x: training_target(PURE, "epsilon", x, x, TIMESTEPS),
        lambda x: clean_from_prediction(PURE, "epsilon", x, x, TIMESTEPS),
        lambda _x: clean_coefficients(NoiseLevel(999, 0.0), "epsilon"),
        lambda _x: plan_steps("ddim", PURE, [999, 0]),
    ],
)
def test_rejects_epsilon_with_zero_terminal_snr(use):
    with pytest.raises(ValueError, match=r"'epsilon' does not determine the clean latent at timestep 999.*v or sample"):
        use(torch.zeros(3, 2, 4))
