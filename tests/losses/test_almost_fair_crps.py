"""Almost-fair CRPS: hand-computed values, numerical integration, gradient, limits of alpha, mask and denominator."""

import itertools
import math
import re

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError, LossConfig, TrainConfig, from_mapping
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.losses import AlmostFairCRPS, almost_fair_crps, build_loss

CRPS = {"mse_weight": 0.0, "crps_weight": 1.0}


def _loss(thresholds: tuple[float, ...] = (), *, weights: tuple[float, ...] = (1.0,), **loss) -> AlmostFairCRPS:
    """Return the loss with thresholds in encoded values, by default the unweighted CRPS."""
    config = LossConfig(**{**CRPS, "thresholds": thresholds, "unit": "code", "weights": weights, **loss})
    return AlmostFairCRPS(config, thresholds)


@pytest.mark.parametrize(
    ("members", "observed", "fair", "standard"),
    [
        # mean error 0.2, distance of the pair 0.4: 0.2 - 0.4 / 2 and 0.2 - 0.4 / 4
        ((0.2, 0.6), 0.5, 0.0, 0.1),
        # errors 0.4, 0.1, 0.5; distances 0.3, 0.9, 0.6: 1 / 3 - 1.8 / 6 and 1 / 3 - 1.8 / 9
        ((0.0, 0.3, 0.9), 0.4, 1 / 30, 2 / 15),
        # errors 0.1, 0.1, 0.3, 0.7; distances 0.2, 0.4, 0.8, 0.2, 0.6, 0.4: 0.3 - 2.6 / 12 and 0.3 - 2.6 / 16
        ((0.1, 0.3, 0.5, 0.9), 0.2, 1 / 12, 0.1375),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_hand_computed_values(members, observed, fair, standard, alpha):
    x, y = torch.tensor([members], dtype=torch.float64), torch.tensor([observed], dtype=torch.float64)
    assert almost_fair_crps(x, y, alpha=alpha).item() == pytest.approx(alpha * fair + (1 - alpha) * standard, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_equals_its_definition_in_float64(count):
    generator = np.random.default_rng(count)
    x, y = generator.random((5, count, 2, 3)), generator.random((5, 2, 3))
    distances = sum(np.abs(x[:, j] - x[:, k]) for j, k in itertools.product(range(count), repeat=2))
    error = np.abs(x - y[:, None]).mean(1)
    fair, standard = error - distances / (2 * count * (count - 1)), error - distances / (2 * count**2)
    got = almost_fair_crps(torch.from_numpy(x), torch.from_numpy(y), alpha=0.95)
    np.testing.assert_allclose(got, 0.95 * fair + 0.05 * standard, rtol=1e-12, atol=1e-15)
    single = almost_fair_crps(torch.from_numpy(x).float(), torch.from_numpy(y).float(), alpha=0.95)
    np.testing.assert_allclose(single, got, atol=3e-7)


def test_fair_score_of_few_members_is_that_of_their_distribution():
    """For y = 0 and N(0, 1) it is 2 / sqrt(2 pi) - 1 / sqrt(pi); the standard CRPS of two members is larger."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((200_000, 2)))
    expected = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    fair, standard = (almost_fair_crps(x, torch.zeros(len(x)), alpha=alpha).mean().item() for alpha in (1.0, 0.0))
    assert fair == pytest.approx(expected, abs=0.005)  # about 4 standard errors
    assert standard == pytest.approx(expected + 1 / (2 * math.sqrt(math.pi)), abs=0.005)


def test_weights_of_values_equal_the_integral_over_thresholds():
    """The score is the integral of w(z) (F(z) - 1{y <= z})^2, here by summation over a fine grid."""
    loss = _loss((102.0, 204.0), weights=(1.0, 3.0, 10.0), crps_alpha=0.0)
    generator = np.random.default_rng(3)
    x, y = generator.random(4), generator.random()
    step = 1e-5
    z = np.arange(step / 2, 1, step)
    weight = np.select([z < 0.4, z < 0.8], [1.0, 3.0], 10.0)
    expected = (weight * ((x[:, None] <= z).mean(0) - (y <= z)) ** 2).sum() * step
    got = loss(torch.from_numpy(x).view(1, 4, 1, 1, 1, 1), torch.tensor(y).view(1, 1, 1, 1, 1), None)
    assert got.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_gradient(alpha):
    generator = np.random.default_rng(1)
    x = torch.from_numpy(generator.random((2, 3, 2, 1, 2, 2))).requires_grad_()
    y, valid = torch.from_numpy(generator.random((2, 2, 1, 2, 2))), torch.ones(2, 2, 1, 2, 2, dtype=torch.bool)
    valid[0, 0, 0, 0] = False
    loss = _loss((128.0,), weights=(1.0, 5.0), crps_alpha=alpha)
    assert torch.autograd.gradcheck(lambda members: loss(members, y, valid), (x,))


def test_missing_pixels_have_no_influence_and_remain_in_the_denominator():
    x, target = torch.rand(2, 3, 2, 1, 4, 4), torch.randint(0, 255, (2, 2, 1, 4, 4), dtype=torch.uint8)
    valid = torch.rand(2, 2, 1, 4, 4) < 0.5
    broken = torch.where(valid[:, None], x, torch.nan).requires_grad_()
    loss = _loss()(broken, target, valid)
    scores = almost_fair_crps(x.double(), target.double() / 255, alpha=0.95)
    assert loss.item() == pytest.approx((scores * valid).sum().item() / target.numel(), rel=1e-5)
    loss.backward()
    assert broken.grad is not None and not broken.grad[~valid[:, None].expand_as(x)].any()
    assert broken.grad[valid[:, None].expand_as(x)].abs().min() > 0


def test_loss_of_a_batch_is_the_mean_over_its_samples():
    x, target = torch.rand(4, 2, 2, 1, 4, 4), torch.randint(0, 255, (4, 2, 1, 4, 4), dtype=torch.uint8)
    valid = torch.rand(4, 2, 1, 4, 4) < 0.5
    halves = [_loss()(x[part], target[part], valid[part]) for part in (slice(0, 2), slice(2, 4))]
    assert _loss()(x, target, valid).item() == pytest.approx(torch.stack(halves).mean().item(), rel=1e-5)


def test_uint8_and_float_targets_give_the_same_loss():
    x, target = torch.rand(2, 2, 2, 1, 4, 4), torch.randint(0, 255, (2, 2, 1, 4, 4), dtype=torch.uint8)
    assert _loss()(x, target, None).item() == pytest.approx(_loss()(x, target.float() / 255, None).item(), rel=1e-6)


def test_equal_members_have_the_error_of_one_forecast():
    x, target = torch.rand(2, 1, 2, 1, 4, 4).expand(-1, 3, -1, -1, -1, -1), torch.rand(2, 2, 1, 4, 4)
    assert _loss()(x, target, None).item() == pytest.approx((x[:, 0] - target).abs().mean().item(), rel=1e-5)


def test_default_thresholds_are_those_of_the_data_set():
    loss = build_loss(LossConfig(**CRPS), read_spec("sevir")).terms["crps"]
    assert isinstance(loss, AlmostFairCRPS) and loss.alpha == 0.95
    assert loss.thresholds == (219 / 255,) and loss.weights == (1.0, 10.0)
    values = torch.tensor([-0.5, 0.5, 1.0], dtype=torch.float64)
    expected = [-0.5, 0.5, 219 / 255 + 10 * 36 / 255]
    np.testing.assert_allclose(loss.chained(values), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"crps_weight": 1.0}}, "loss.crps_weight=1 excludes other terms, .*; set loss.mse_weight=0"),
        ({"loss": {"mse_weight": 0.0}}, "loss.crps_weight are all 0; set one above 0"),
        ({"loss": {"members": 3}}, "loss.members=3 has no effect with loss.crps_weight=0; set loss.crps_weight"),
        ({"loss": {"crps_alpha": 1.0}}, "loss.crps_alpha=1.0 has no effect"),
        ({"loss": {**CRPS, "members": 1}}, "loss.members.*greater than or equal to 2"),
        ({"loss": CRPS}, "loss.crps_weight=1 requires model.noise_channels of at least 1"),
        ({"model": {"noise_channels": 2}}, "model.noise_channels=2 requires loss.crps_weight above 0"),
        (
            {"stage": "teacher", "loss": CRPS, "model": {"noise_channels": 2}},
            "model.noise_channels=2 is invalid in stage teacher",
        ),
        ({"sampling": {"members": 4}}, "sampling.members=4 has no effect in stage direct without model.noise_channels"),
        (
            {"loss": CRPS, "model": {"noise_channels": 1}, "sampling": {"steps": 4}},
            r"sampling.steps=4 has no effect on stage direct, a network with noise channels; set only members, chunk",
        ),
    ],
)
def test_rejects_settings_that_contradict_each_other(tmp_path, sections, message):
    run = {"name": "tiny", "run_dir": str(tmp_path), "stage": "direct"}
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        from_mapping(TrainConfig, run | sections)
