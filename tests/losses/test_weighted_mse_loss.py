"""Weighted MSE: thresholds in the units of a data set, weights, mask and denominator."""

import numpy as np
import pytest
import torch

from simcast_hpc.config import DataError, LossConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.losses import WeightedMSE

SHAPE = (2, 3, 1, 4, 4)


def _loss(dataset: str, **loss) -> WeightedMSE:
    return WeightedMSE(LossConfig(**loss), read_spec(dataset))


def _weight(loss: WeightedMSE, target: torch.Tensor) -> float:
    """Return the weight of a constant target, from the loss of a prediction with error 0.5."""
    unit = target.float() / 255 if target.dtype == torch.uint8 else target
    return loss(unit + 0.5, target, None).item() / 0.25


def _full(value: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(SHAPE, value, dtype=dtype)


@pytest.mark.parametrize(("code", "weight"), [(0, 1), (181, 1), (218, 1), (219, 1), (220, 10), (254, 10)])
def test_sevir_weight_increases_above_219(code, weight):
    loss = _loss("sevir")
    assert loss.thresholds == (219.0,)
    assert _weight(loss, _full(code, torch.uint8)) == pytest.approx(weight, rel=1e-5)
    unit = np.float32(code) / np.float32(255)
    assert _weight(loss, _full(float(unit), torch.float32)) == pytest.approx(weight, rel=1e-5)


def test_float_target_just_above_threshold():
    above = float(np.nextafter(np.float32(219) / np.float32(255), np.float32(1)))
    assert _weight(_loss("sevir"), _full(above, torch.float32)) == pytest.approx(10, rel=1e-5)


def test_rain_rate_threshold_is_encoded():
    loss = _loss("mrms-4km", thresholds=(10.0,), unit="mm/h", weights=(1.0, 10.0))
    rates = read_spec("mrms-4km").encoding.decode(np.arange(255, dtype=np.uint8))
    last_below = int(np.flatnonzero(rates <= 10.0)[-1])
    assert rates[last_below] < 10 < rates[last_below + 1]
    assert _weight(loss, _full(last_below, torch.uint8)) == pytest.approx(1, rel=1e-5)
    assert _weight(loss, _full(last_below + 1, torch.uint8)) == pytest.approx(10, rel=1e-5)


def test_default_threshold_is_the_highest():
    spec = read_spec("mrms-4km")
    assert _loss("mrms-4km").thresholds == spec.threshold_codes()[-1:]


def test_one_weight_per_interval_and_inclusive_bounds():
    table = {"thresholds": (74.0, 133.0, 219.0), "unit": "code", "weights": (1.0, 2.0, 5.0, 10.0)}
    for inclusive, expected in ((False, (1, 1, 2, 2, 5, 10)), (True, (1, 2, 2, 5, 5, 10))):
        loss = _loss("sevir", **table, inclusive=inclusive)
        got = [_weight(loss, _full(code, torch.uint8)) for code in (73, 74, 75, 133, 218, 220)]
        assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_masked_sum_over_constant_denominator(dtype):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 255, SHAPE, dtype=torch.uint8, generator=generator)
    valid = torch.rand(SHAPE, generator=generator) > 0.3
    prediction = torch.rand(SHAPE, generator=generator).requires_grad_()
    target = codes if dtype == torch.uint8 else codes.float() / torch.full((), 255.0)
    loss = _loss("sevir")(prediction, target, valid)
    weight = np.where(codes.numpy() > 219, 10.0, 1.0) * valid.numpy()
    error = prediction.detach().double().numpy() - codes.numpy() / 255
    assert loss.item() == pytest.approx((weight * error**2).sum() / codes.numel(), rel=1e-5)
    loss.backward()
    assert prediction.grad is not None
    np.testing.assert_allclose(prediction.grad.numpy(), 2 * weight * error / codes.numel(), rtol=2e-5, atol=1e-9)


def test_batch_loss_is_mean_over_micro_batches():
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 255, (4, 3, 1, 4, 4), dtype=torch.uint8, generator=generator)
    valid = torch.ones_like(codes, dtype=torch.bool)
    valid[0] = False
    prediction = torch.rand(codes.shape, generator=generator)
    loss = _loss("sevir")
    parts = [loss(prediction[i : i + 1], codes[i : i + 1], valid[i : i + 1]) for i in range(4)]
    assert parts[0].item() == 0
    torch.testing.assert_close(torch.stack(parts).mean(), loss(prediction, codes, valid))


def test_no_thresholds_gives_uniform_weight():
    loss = _loss("sevir", thresholds=(), weights=(1.0,))
    assert _weight(loss, _full(250, torch.uint8)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("dataset", "thresholds", "unit", "message"),
    [
        ("sevir", (30.0,), "mm/h", r"are in 'mm/h', but sevir is encoded in 'kg/m\^2'"),
        ("mrms-4km", (40.0,), "dBZ", "are in 'dBZ', but mrms-4km is encoded in 'mm/h'"),
        ("mrms-4km", (2000.0,), "mm/h", "threshold 2000 mm/h .*check the unit"),
        ("sevir", (255.0,), "code", "threshold 255 code"),
    ],
)
def test_rejects_thresholds_in_wrong_unit(dataset, thresholds, unit, message):
    with pytest.raises(DataError, match=message):
        _loss(dataset, thresholds=thresholds, unit=unit)


def test_loss_has_no_state_that_an_engine_could_cast():
    assert not list(_loss("sevir").state_dict())
