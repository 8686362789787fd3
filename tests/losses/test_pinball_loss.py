"""The pinball loss of smoothed exceedances, compared with NumPy in float64, with counts and with the best forecast."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import norm

from simcast_hpc.config import DataError, LossConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.losses import ThresholdPinballLoss, build_loss

SHAPE = (2, 3, 1, 6, 7)
WEIGHTS = (1.0, 3.0, 8.0, 13.0, 28.0)


def fields() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a prediction, uint8 target and mask; the prediction is NaN where it is not valid."""
    rng = np.random.default_rng(0)
    valid = torch.from_numpy(rng.random(SHAPE) > 0.2)
    codes = torch.from_numpy(rng.integers(0, 255, SHAPE).astype(np.uint8))
    return torch.from_numpy(rng.random(SHAPE)).masked_fill(~valid, torch.nan), codes, valid


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_pinball_loss_and_gradient_equal_numpy(dtype):
    prediction, codes, valid = fields()
    spec = read_spec("mrms-4km")
    thresholds = 1 + (10 * np.log10([0.5, 2, 5, 10, 30]) + 10) / 0.15  # encoded values of the rain rates
    level, width = 0.7, 0.05
    smooth = [norm(threshold / 255, width) for threshold in thresholds]
    f, y = prediction.numpy(), codes.numpy() / 255
    d = sum(w * (one.cdf(y) - one.cdf(f)) for w, one in zip(WEIGHTS, smooth, strict=True))
    slope = sum(w * one.pdf(f) for w, one in zip(WEIGHTS, smooth, strict=True))
    expected = np.where(valid, np.where(d > 0, level * d, (level - 1) * d), 0).mean()
    gradient = np.where(valid, np.where(d > 0, -level, 1 - level) * slope, 0) / f.size

    config = LossConfig(
        mse_weight=0.0,
        pinball_weight=2.0,
        pinball_threshold_weights=WEIGHTS,
        pinball_level=level,
        pinball_width=width,
    )
    target = codes if dtype == torch.uint8 else codes.double() / 255
    prediction.requires_grad_()
    value = build_loss(config, spec)(prediction, target, valid)
    value.backward()
    assert value.item() == pytest.approx(2 * expected, rel=1e-6)
    assert prediction.grad is not None
    np.testing.assert_allclose(prediction.grad.numpy(), 2 * gradient, rtol=1e-5, atol=1e-9)


def test_without_smoothing_it_counts_misses_and_false_alarms():
    spec = read_spec("sevir")
    config = LossConfig(pinball_weight=1.0, pinball_level=0.75, pinball_width=1e-6)
    target = torch.tensor([[10, 100, 200]], dtype=torch.uint8)
    prediction = torch.tensor([[150.0, 20.0, 230.0]], dtype=torch.float64) / 255
    # Thresholds 16, 74, 133, 160, 181, 219: 3 false alarms; a miss of 74; a false alarm at 219.
    value = ThresholdPinballLoss(config, spec)(prediction, target, None)
    assert value.item() == pytest.approx((0.75 * 1 + 0.25 * (3 + 1)) / 3)


def test_best_forecast_exceeds_a_threshold_where_the_event_is_likely_enough():
    spec = read_spec("mrms-4km")
    config = LossConfig(pinball_weight=1.0, pinball_level=2 / 3)
    loss = ThresholdPinballLoss(config, spec)
    threshold = spec.threshold_codes()[2]
    forecasts = torch.linspace(0, 1, 256, dtype=torch.float64)
    for probability in (0.2, 0.3, 0.37, 0.5):
        wet = round(100 * probability)
        target = torch.tensor([60] * (100 - wet) + [200] * wet, dtype=torch.uint8)
        losses = [loss(torch.full((100,), float(f), dtype=torch.float64), target, None).item() for f in forecasts]
        best = forecasts[int(np.argmin(losses))].item() * 255
        assert (best >= threshold) == (probability > 1 / 3)


def test_rejects_wrong_numbers_of_weights_and_options_without_effect():
    with pytest.raises(DataError, match=r"has 2 values, and mrms-4km has 5 thresholds \(0\.5, 2, 5, 10, 30 mm/h\)"):
        build_loss(LossConfig(pinball_weight=1.0, pinball_threshold_weights=(1.0, 2.0)), read_spec("mrms-4km"))
    with pytest.raises(ValidationError, match=r"loss\.pinball_level has no effect with loss.pinball_weight=0"):
        LossConfig(pinball_level=0.8)
