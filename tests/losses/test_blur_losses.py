"""Balanced MSE and MAE and the adjusted MSE, compared with NumPy in float64, and their combination by configuration."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from simcast_hpc.config import DataError, LossConfig
from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec
from simcast_hpc.data.encoding import rain_rate_from_reflectivity
from simcast_hpc.losses import AdjustedMSE, WeightedMAE, WeightedMSE, build_loss
from tests.emulated_graphs import MetaDeviceOnly

SHAPE = (2, 3, 1, 11, 16)  # not square, an odd and an even side
BALANCED = (1.0, 2.0, 5.0, 10.0, 30.0)


def fields(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a smooth prediction, uint8 target and mask; a frame is entirely missing and NaN in the prediction."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(2, *SHAPE)), (0, 0, 0, 0, 1.5, 1.5))
    prediction, target = 0.4 + smooth - smooth.min(axis=(-1, -2), keepdims=True)
    codes = torch.from_numpy(np.clip(target * 160, 0, 254).astype(np.uint8))
    valid = torch.from_numpy(rng.random(SHAPE) > 0.2)
    valid[1, 2] = False
    return torch.from_numpy(prediction).float().masked_fill(~valid, torch.nan), codes, valid


def amse_by_rings(forecast: np.ndarray, observed: np.ndarray) -> float:
    """Return the AMSE of two frames ``[H, W]`` by its published formula, one coefficient at a time."""
    height, width = forecast.shape
    f, o = np.fft.fft2(forecast) / forecast.size, np.fft.fft2(observed) / forecast.size
    sums: dict[int, np.ndarray] = {}
    for row in range(height):
        for column in range(width):
            y, x = min(row, height - row) / height, min(column, width - column) / width
            ring = round(float(np.hypot(y, x)) * max(height, width))
            one, other = f[row, column], o[row, column]
            rounding = (1 / 255) ** 2 / 12 / forecast.size
            terms = [abs(one) ** 2 + rounding, abs(other) ** 2 + rounding, (one * other.conj()).real + rounding]
            sums[ring] = sums.get(ring, np.zeros(3)) + terms
    total = 0.0
    for power, reference, cross in sums.values():
        coherence = cross / np.sqrt(power * reference)
        total += (np.sqrt(power) - np.sqrt(reference)) ** 2 + 2 * max(power, reference) * (1 - coherence)
    return total


def gradient_of(loss: torch.nn.Module, prediction, target, valid) -> tuple[float, np.ndarray]:
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target, valid)
    value.backward()
    return value.item(), prediction.grad.numpy()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_balanced_mse_and_mae_equal_numpy(dtype):
    prediction, codes, valid = fields()
    target = codes if dtype == torch.uint8 else codes.float() / torch.full((), 255.0)
    rates = read_spec("mrms-4km").encoding.decode(codes.numpy())
    weight = np.array(BALANCED)[np.digitize(rates, [2, 5, 10, 30])] * valid.numpy()
    assert set(np.unique(weight)) == {0, *BALANCED}
    error = np.where(valid, prediction.double().numpy() - codes.numpy() / 255, 0)
    config = LossConfig(weighting="balanced", mae_weight=0.5)
    spec = read_spec("mrms-4km")
    mse, mse_gradient = (weight * error**2).mean(), 2 * weight * error / error.size
    mae, mae_gradient = (weight * np.abs(error)).mean(), weight * np.sign(error) / error.size
    for loss, expected, slope in (
        (WeightedMSE(config, spec), mse, mse_gradient),
        (WeightedMAE(config, spec), mae, mae_gradient),
        (build_loss(config, spec), mse + 0.5 * mae, mse_gradient + 0.5 * mae_gradient),
    ):
        value, gradient = gradient_of(loss, prediction, target, valid)
        assert value == pytest.approx(expected, rel=2e-6)
        np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("dataset", ["mrms-4km", "knmi", "mch", "meteonet-rain", "hko7", "meteonet", "fmi"])
def test_balanced_classes_are_rain_rates(dataset):
    spec = read_spec(dataset)
    loss = WeightedMAE(LossConfig(weighting="balanced"), spec)
    codes = torch.arange(255, dtype=torch.uint8)
    value = loss(torch.ones(255, 1), codes[:, None], None)
    rates = spec.encoding.decode(codes.numpy())
    if spec.encoding.unit == "dBZ":
        relation = spec.z_r.model_dump() if spec.z_r else {}
        rates = rain_rate_from_reflectivity(rates, **relation)
    weight = np.array(BALANCED)[np.digitize(rates, [2, 5, 10, 30])]
    assert value.item() == pytest.approx((weight * (1 - codes.numpy() / 255)).mean(), rel=1e-5)


def test_balanced_classes_of_hko7_are_the_published_pixel_values():
    thresholds = WeightedMSE(LossConfig(weighting="balanced"), read_spec("hko7-cascast")).thresholds
    assert [int(np.ceil(threshold)) for threshold in thresholds] == [118, 141, 158, 185]


def test_balanced_classes_of_vil_are_columns_of_rain():
    spec = read_spec("sevir")
    thresholds = WeightedMSE(LossConfig(weighting="balanced"), spec).thresholds
    vil = spec.encoding.value_of(np.array(thresholds))
    z = 200 * np.array([2.0, 5.0, 10.0, 30.0]) ** 1.6  # mm^6/m^3
    np.testing.assert_allclose(vil, 3.44e-6 * z ** (4 / 7) * 5000, rtol=1e-6)


def test_balanced_weights_need_a_convertible_unit():
    spec = read_spec("knmi").model_dump()
    spec["encoding"] = {"kind": "linear", "unit": "K", "gain": 1.0}
    spec["thresholds"] = {"values": (10.0,), "unit": "K"}
    with pytest.raises(
        DataError, match="balanced needs a data set in mm/h, dBZ or kg/m\\^2, and knmi is encoded in 'K'"
    ):
        build_loss(LossConfig(weighting="balanced"), DatasetSpec(**spec))


def test_amse_equals_the_published_formula():
    prediction, codes, valid = fields()
    forecast, observed = np.where(valid, prediction.double().numpy(), 0), np.where(valid, codes.numpy() / 255, 0)
    frames = zip(forecast.reshape(-1, *SHAPE[-2:]), observed.reshape(-1, *SHAPE[-2:]), strict=True)
    expected = np.mean([amse_by_rings(one, other) for one, other in frames])
    assert AdjustedMSE()(prediction, codes, valid).item() == pytest.approx(expected, rel=1e-5)
    target = codes.float() / torch.full((), 255.0)
    assert AdjustedMSE()(prediction.double(), target, valid).item() == pytest.approx(expected, rel=1e-5)


def test_gradients_of_amse_equal_finite_differences():
    prediction, codes, valid = fields()
    target, valid = codes[1:, :, :, :6, :5].double() / 255, valid[1:, :, :, :6, :5]
    prediction = prediction[1:, :, :, :6, :5].double().nan_to_num(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda field: AdjustedMSE()(field, target, valid), prediction)
    (gradient,) = torch.autograd.grad(AdjustedMSE()(prediction, target, valid), prediction)
    assert not gradient[~valid].any() and gradient[valid].all()


def test_gradient_of_amse_is_finite_without_power():
    flat = torch.zeros(SHAPE)
    value, gradient = gradient_of(AdjustedMSE(), flat, fields()[1], None)
    assert value > 0.1 and gradient.any() and np.isfinite(gradient).all()
    assert gradient_of(AdjustedMSE(), flat, torch.zeros_like(flat), None)[1].any() == 0


def test_amse_penalizes_blur_that_mse_rewards():
    rng = np.random.default_rng(3)
    observed, other = gaussian_filter(rng.normal(size=(2, 4, 1, 1, 64, 64)), (0, 0, 0, 0, 2, 2)) + 0.5
    weak = 0.5 + 0.4 * (other - 0.5)  # uncorrelated with the observation, with 16 % of its variance
    observed, other, weak = (torch.from_numpy(field) for field in (observed, other, weak))
    mse = torch.nn.functional.mse_loss
    assert mse(weak, observed) < 0.7 * mse(other, observed)
    assert AdjustedMSE()(weak, observed, None) > AdjustedMSE()(other, observed, None)


def test_amse_is_the_mse_at_equal_amplitude_and_zero_for_the_observation():
    observed = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shifted = observed.roll((3, -2), (-2, -1))  # the amplitudes of a periodic shift are unchanged
    torch.testing.assert_close(AdjustedMSE()(shifted, observed, None), (shifted - observed).square().mean())
    assert AdjustedMSE()(observed, observed, None) == 0
    assert AdjustedMSE()(0.9 * observed, observed, None) > (0.1 * observed).square().mean() * 0.999


def test_terms_are_added_with_their_coefficients():
    prediction, codes, valid = fields()
    spec, given = read_spec("sevir"), (prediction, codes, valid)
    config = LossConfig(mse_weight=0.5, mae_weight=2.0, amse_weight=3.0)
    loss = build_loss(config, spec)
    expected = 0.5 * WeightedMSE(config, spec)(*given) + 2 * WeightedMAE(config, spec)(*given)
    torch.testing.assert_close(loss(*given), expected + 3 * AdjustedMSE()(*given))
    assert list(build_loss(LossConfig(mse_weight=0.0, amse_weight=1.0), spec).terms) == ["amse"]
    assert torch.equal(build_loss(LossConfig(), spec)(*given), WeightedMSE(LossConfig(), spec)(*given))
    assert not list(loss.state_dict())


def test_terms_of_training_are_recorded_as_means():
    spec, (prediction, codes, valid) = read_spec("sevir"), fields()
    config = LossConfig(mae_weight=2.0)
    loss, alone = build_loss(config, spec), build_loss(LossConfig(mse_weight=3.0), spec)
    expected = []
    for sample in range(2):
        given = prediction[sample, None], codes[sample, None], valid[sample, None]
        loss(*given)
        alone(*given)
        expected.append([WeightedMSE(config, spec)(*given), WeightedMAE(config, spec)(*given)])
    with torch.no_grad():
        loss(torch.ones(SHAPE), codes, None)  # validation
    terms = loss.take_terms()
    assert terms is not None and terms.tolist() == pytest.approx(torch.tensor(expected).mean(0).tolist())
    assert loss.take_terms() is None and alone.take_terms() is None


def test_all_terms_stay_on_the_device():
    loss = build_loss(LossConfig(mae_weight=1.0, amse_weight=1.0, weighting="balanced"), read_spec("sevir"))
    prediction = torch.empty(SHAPE, device="meta", requires_grad=True)
    codes, valid = (
        torch.empty(SHAPE, dtype=torch.uint8, device="meta"),
        torch.empty(SHAPE, dtype=torch.bool, device="meta"),
    )
    loss(prediction, codes, valid)  # tables of the grid
    with MetaDeviceOnly() as mode:
        loss(prediction, codes, valid).backward()
    assert prediction.grad is not None and mode.operations > 30


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"mse_weight": 0.0}, "loss.amse_weight, loss.pinball_weight, loss.crps_weight are all 0"),
        ({"mae_weight": -1.0}, "greater than or equal to 0"),
        ({"weighting": "balanced", "weights": (1.0, 5.0)}, "loss.weights and loss.weighting=balanced exclude"),
        ({"weighting": "balanced", "thresholds": (10.0,), "unit": "mm/h"}, "loss.thresholds, loss.unit and"),
    ],
)
def test_rejects_losses_without_terms_and_two_tables(loss, message):
    with pytest.raises(ValidationError, match=message):
        LossConfig(**loss)
