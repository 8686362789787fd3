"""Losses of forecasts (pixel-weighted MSE and MAE, adjusted MSE, almost-fair CRPS) and of the autoencoder.

Every loss of a forecast takes prediction ``[B, T', C, H, W]`` in [0, 1], target of the same shape (uint8 encoded values
or encoded value / 255 in float32) and ``valid`` (bool, or None), and returns a scalar. Missing pixels contribute 0, but
the denominator is the constant B T' C H W, so that the loss of a batch is the mean of the losses of its samples. The
CRPS takes members ``[B, M, T', C, H, W]``.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_hpc.config import DataError, LossConfig
from simcast_hpc.data.dataset_spec import DatasetSpec, ZRRelation
from simcast_hpc.data.encoding import code_to_unit
from simcast_kernels.weighted_mse import weighted_mse
from simcast_kernels.weighted_mse.reference import comparison_values

# Classes of the balanced weights in mm/h (Shi et al. 2017, section 3.3).
_BALANCED_RAIN_RATES = (2.0, 5.0, 10.0, 30.0)
_MARSHALL_PALMER = ZRRelation(a=200.0, b=1.6)
# Liquid water content 3.44e-6 Z^(4/7) kg/m^3 (Greene and Clark 1972), in a uniform column of 5 km, the height of the
# melting layer in summer. The depth is our choice: VIL has no unique relation to a rain rate.
_VIL_FACTOR, _VIL_EXPONENT, _COLUMN_M = 3.44e-6, 4 / 7, 5000.0
# Variance of the rounding to encoded values, in units of [0, 1].
_ROUNDING_VARIANCE = (1 / 255) ** 2 / 12


class Loss(Protocol):
    """A loss of forecasts; see the module docstring."""

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss, scalar."""
        ...


def build_loss(config: LossConfig, spec: DatasetSpec) -> "ForecastLoss":
    """Return the loss of a forecasting stage.

    Raises:
        DataError: the thresholds do not apply to the data set.
    """
    terms: dict[str, tuple[float, torch.nn.Module]] = {}
    if config.mse_weight:
        terms["mse"] = config.mse_weight, WeightedMSE(config, spec)
    if config.mae_weight:
        terms["mae"] = config.mae_weight, WeightedMAE(config, spec)
    if config.amse_weight:
        terms["amse"] = config.amse_weight, AdjustedMSE()
    if config.pinball_weight:
        terms["pinball"] = config.pinball_weight, ThresholdPinballLoss(config, spec)
    if config.crps_weight:
        terms["crps"] = config.crps_weight, AlmostFairCRPS(config, pixel_thresholds(config, spec))
    return ForecastLoss(terms)


class ForecastLoss(torch.nn.Module):
    """Sum of loss terms, each times its coefficient. The terms of training are recorded for the metrics."""

    def __init__(self, terms: dict[str, tuple[float, torch.nn.Module]]):
        """Keep the terms, by name: (coefficient, loss)."""
        super().__init__()
        self.coefficients = {name: coefficient for name, (coefficient, _) in terms.items()}
        self.terms = torch.nn.ModuleDict({name: term for name, (_, term) in terms.items()})
        self._sum: Tensor | None = None
        self._count = 0

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss, fp32 scalar; see the module docstring for the arguments."""
        values = [term(prediction, target, valid) for term in self.terms.values()]
        if len(values) == 1:
            (coefficient,) = self.coefficients.values()
            return coefficient * values[0]
        if torch.is_grad_enabled():
            recorded = torch.stack([value.detach() for value in values])
            self._sum = recorded if self._sum is None else self._sum + recorded
            self._count += 1
        return sum(
            (coefficient * value for coefficient, value in zip(self.coefficients.values(), values, strict=True)),
            start=prediction.new_zeros(()),
        )

    def take_terms(self) -> Tensor | None:
        """Return the mean of each term since the last call, without its coefficient, ``[terms]`` on the device.

        None if the loss has one term, or none was computed with gradients.
        """
        mean = None if self._sum is None else self._sum / self._count
        self._sum, self._count = None, 0
        return mean


class WeightedMSE(torch.nn.Module):
    """Weighted MSE: the sum over valid pixels of w(y) (f - y)^2, divided by the constant B T' C H W.

    The weight w is a step function of the target. In the paper it is 1 up to the highest evaluation threshold of the
    data set and 10 above; here thresholds and weights are configurable.
    """

    def __init__(self, config: LossConfig, spec: DatasetSpec):
        """Convert the thresholds to encoded values.

        Raises:
            DataError: ``loss.unit`` is not the unit of the data set, or a threshold is outside its range.
        """
        super().__init__()
        self.thresholds = pixel_thresholds(config, spec)
        self.weights, self.inclusive = config.pixel_weights, config.inclusive or config.weighting == "balanced"

    def forward(self, prediction: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return the loss, fp32 scalar.

        Args:
            prediction: fp32 ``[B, T', C, H, W]`` in [0, 1] (encoded value / 255).
            target: encoded value, uint8, or encoded value / 255, float32; same shape.
            valid: bool, same shape, False where the target is missing; or None.
        """
        return weighted_mse(
            prediction,
            target,
            thresholds=self.thresholds,
            weights=self.weights,
            inclusive=self.inclusive,
            mask=valid,
        )


class WeightedMAE(WeightedMSE):
    """Weighted MAE: the sum over valid pixels of w(y) |f - y|, divided by the constant B T' C H W.

    The weights are those of :class:`WeightedMSE`. With balanced weights it is the B-MAE of Shi et al. 2017 (NeurIPS 30,
    section 3.3) in units of [0, 1].
    """

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss, scalar of the prediction's dtype (fp32 or float64); arguments as in :class:`WeightedMSE`."""
        weight = torch.full_like(target, self.weights[0], dtype=prediction.dtype)
        values = comparison_values(self.thresholds, target.dtype, inclusive=self.inclusive, code_scale=255.0)
        for value, step in zip(values, self.weights[1:], strict=True):
            weight = weight.masked_fill_(target >= value if self.inclusive else target > value, step)
        error = (prediction - _as_unit(target)).abs()
        if valid is not None:
            error = error.masked_fill(~valid, 0.0)
        return (weight * error).sum() / prediction.numel()


class ThresholdPinballLoss(torch.nn.Module):
    """Pinball loss of smoothed exceedances: ``rho(g(y) - g(f))`` with ``rho(d) = max(q d, (q - 1) d)``.

    ``g(x) = sum_k w_k Phi((x - t_k) / s)`` is a weighted count of the thresholds t_k below x, smoothed by a normal
    distribution of standard deviation s. Without smoothing the loss is ``q`` per weighted miss and ``1 - q`` per
    weighted false alarm: the mixture of elementary scoring functions of the q-quantile at the thresholds (Ehm et al.
    2016, doi 10.1111/rssb.12154). The CSI is linear in both around a forecast of CSI c, with a miss 1 / c times as
    costly as a false alarm, hence q = 1 / (1 + c) (compare Lipton et al. 2014, arXiv 1402.1892, for the F1 score).
    """

    def __init__(self, config: LossConfig, spec: DatasetSpec):
        """Read the evaluation thresholds of the data set.

        Raises:
            DataError: ``loss.pinball_threshold_weights`` does not have one value per threshold.
        """
        super().__init__()
        self.thresholds = [code / 255 for code in spec.threshold_codes()]
        self.weights = config.pinball_threshold_weights or (1.0,) * len(self.thresholds)
        if len(self.weights) != len(self.thresholds):
            raise DataError(
                f"loss.pinball_threshold_weights has {len(self.weights)} values, and {spec.name} has "
                f"{len(self.thresholds)} thresholds ({', '.join(spec.threshold_labels())} {spec.thresholds.unit}); "
                "give one value per threshold"
            )
        self.level, self.width = config.pinball_level, config.pinball_width

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss, scalar of the prediction's dtype (fp32 or float64)."""
        observed = _as_unit(target).to(prediction.dtype)
        if valid is not None:
            observed, prediction = observed.masked_fill(~valid, 0.0), prediction.masked_fill(~valid, 0.0)
        difference = self._exceedances(observed) - self._exceedances(prediction)
        return torch.maximum(self.level * difference, (self.level - 1) * difference).mean()

    def _exceedances(self, values: Tensor) -> Tensor:
        total = torch.zeros_like(values)
        for threshold, weight in zip(self.thresholds, self.weights, strict=True):
            total = total + weight * torch.special.ndtr((values - threshold) / self.width)
        return total


class AdjustedMSE(torch.nn.Module):
    """Adjusted MSE (AMSE) of Subich et al. 2025 (arXiv 2501.19374, Eq. 6), for the 2-D Fourier spectrum of each frame.

    By Parseval's theorem the MSE is the sum over wavenumbers k of ``D_k``, the power of the difference of forecast and
    observation. With the amplitudes A_k and B_k (square roots of their powers) and their coherence c_k,

        D_k = (A_k - B_k)^2 + 2 A_k B_k (1 - c_k).

    Where the position of small scales is uncertain, a lower A_k lowers the MSE: the forecast is blurred. The AMSE has
    ``max(A_k^2, B_k^2)`` in place of ``A_k B_k``: the cost of decorrelation does not fall with the amplitude, and the
    best amplitude is the observed one. The paper uses spherical harmonics on the globe. Here k is the radius of the
    frequency, rounded, in cycles per longer side. The fields are not periodic; no window function is applied.

    A_k^2 and B_k^2 include the power of rounding to encoded values. It bounds the gradient where the forecast has no
    power, as if both fields had the same small component there, so the AMSE of equal fields remains 0.
    """

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss, scalar of the prediction's dtype (fp32 or float64); missing pixels are 0 in both fields."""
        observed = _as_unit(target).to(prediction.dtype)
        difference = prediction - observed
        if valid is not None:
            observed, difference = observed.masked_fill(~valid, 0.0), difference.masked_fill(~valid, 0.0)
        spectra = torch.fft.rfft2(torch.stack([observed + difference, observed, difference]), norm="forward")
        power = spectra.real.square() + spectra.imag.square()
        rings = _Rings.of(prediction.shape[-2], prediction.shape[-1], prediction.device)
        forecast, reference, error = _RingSum.apply(power.flatten(-2) * rings.multiplicity, rings.slots, rings.ring)
        floor = _ROUNDING_VARIANCE * rings.share
        forecast, reference = (forecast + floor).sqrt(), (reference + floor).sqrt()
        amplitude = (forecast - reference).square()
        ratio = torch.maximum(forecast, reference) / torch.minimum(forecast, reference)
        return (amplitude + ratio * (error - amplitude)).sum(-1).mean()


class _Rings:
    """Rings of frequencies of ``rfft2`` on an H x W grid, on a device.

    Attributes:
        multiplicity: how often a coefficient occurs in the full plane, 1 or 2, float32 ``[F]``, F = H (W // 2 + 1).
        ring: of each coefficient, int64 ``[F]``.
        slots: flat indices of the coefficients of each ring, int64 ``[R, max]``, padded by F.
        share: coefficients of each ring in the full plane, divided by H W, float32 ``[R]``.
    """

    def __init__(self, height: int, width: int, device: torch.device):
        """Compute the tables on the host."""
        longest = max(height, width)
        rows, columns = np.fft.fftfreq(height, 1 / longest), np.fft.rfftfreq(width, 1 / longest)
        ring = np.rint(np.hypot(rows[:, None], columns[None])).astype(np.int64).ravel()
        # Radii of a very long grid may skip a ring; number those that occur.
        ring = np.unique(ring, return_inverse=True)[1].reshape(-1)
        counts = np.bincount(ring)
        slots = np.full((len(counts), counts.max()), len(ring))
        order = np.argsort(ring, kind="stable")
        slots[np.arange(counts.max()) < counts[:, None]] = order
        double = np.arange(width // 2 + 1)
        multiplicity = np.tile(np.where((double == 0) | (2 * double == width), 1.0, 2.0), height)
        share = np.bincount(ring, weights=multiplicity) / (height * width)
        self.multiplicity = torch.tensor(multiplicity, dtype=torch.float32, device=device)
        self.share = torch.tensor(share, dtype=torch.float32, device=device)
        self.ring, self.slots = torch.tensor(ring, device=device), torch.tensor(slots, device=device)

    @staticmethod
    @cache
    def of(height: int, width: int, device: torch.device) -> "_Rings":
        """Return the tables, computed once per grid and device."""
        with torch.inference_mode(False):  # validation may be the first to need them
            return _Rings(height, width, device)


class _RingSum(torch.autograd.Function):
    """Sum over the coefficients of each ring, ``[..., F]`` to ``[..., R]``.

    A gather and a sum have the same order on every device, in forward and backward; index_add_ has none on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, power: Tensor, slots: Tensor, ring: Tensor) -> Tensor:
        ctx.save_for_backward(ring)
        return F.pad(power, (0, 1))[..., slots].sum(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (ring,) = ctx.saved_tensors
        return grad_outputs[0][..., ring], None, None


class AlmostFairCRPS(torch.nn.Module):
    """Almost-fair, threshold-weighted CRPS of members: its sum over valid pixels, divided by the constant B T' C H W.

    Almost fair: Lang et al. 2024 (AIFS-CRPS, arXiv 2412.15832), Eq. 4. Fair: Ferro 2014. Threshold weights: Gneiting
    and Ranjan 2011; by a chaining function: Allen et al. 2023 (SIAM/ASA J. Uncertainty Quantification 11).

    Members and observation are first mapped by the chaining function v, whose slope between two thresholds is the
    weight of the values there. The CRPS of v(x) and v(y) is the integral of ``w(z) (F(z) - 1{y <= z})^2`` over z: a
    proper score, unlike a CRPS times a weight of the observation. With one weight of 1 it is the CRPS itself.
    """

    def __init__(self, config: LossConfig, thresholds: Sequence[float]):
        """Convert the thresholds, encoded values, to [0, 1]."""
        super().__init__()
        self.thresholds, self.weights = tuple(code / 255.0 for code in thresholds), config.pixel_weights
        self.alpha = config.crps_alpha

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss, scalar of the prediction's dtype (fp32 or float64).

        Args:
            prediction: members ``[B, M, T', C, H, W]`` in [0, 1] (encoded value / 255).
            target: encoded value, uint8, or encoded value / 255, float32; ``[B, T', C, H, W]``.
            valid: bool, in the shape of the target, False where the target is missing; or None.
        """
        observed = (code_to_unit(target) if target.dtype == torch.uint8 else target).to(prediction.dtype)
        if valid is not None:  # before any arithmetic: the gradient of a masked NaN would be NaN
            prediction, observed = torch.where(valid[:, None], prediction, 0.0), torch.where(valid, observed, 0.0)
        scores = almost_fair_crps(self.chained(prediction), self.chained(observed), alpha=self.alpha)
        return scores.sum() / target.numel()

    def chained(self, values: Tensor) -> Tensor:
        """Return v of values in [0, 1]: the integral of the weights from 0, continued linearly outside."""
        result = self.weights[0] * values
        for threshold, (below, above) in zip(self.thresholds, itertools.pairwise(self.weights), strict=True):
            result = result + (above - below) * torch.relu(values - threshold)
        return result


def almost_fair_crps(members: Tensor, observed: Tensor, *, alpha: float) -> Tensor:
    """Return the almost-fair CRPS of each pixel, ``alpha`` times the fair plus ``1 - alpha`` times the standard CRPS.

    The fair CRPS alone is degenerate: if M - 1 members equal the observation, the last one has no influence. The
    sum over pairs j < k of ``|x_j - y| + |x_k - y| - (1 - (1 - alpha) / M) |x_j - x_k|`` has no negative terms, so
    rounding errors do not cancel.

    Args:
        members: x, ``[B, M, ...]``, M at least 2.
        observed: y, ``[B, ...]``.
        alpha: 1 is the fair CRPS, 0 the standard one.

    Returns:
        ``[B, ...]``, in the units of the members.
    """
    count = members.shape[1]
    error = (members - observed[:, None]).abs()
    scale = 1.0 - (1.0 - alpha) / count
    pairs = torch.zeros_like(error[:, 0])
    for j in range(count):
        for k in range(j + 1, count):
            pairs = pairs + error[:, j] + error[:, k] - scale * (members[:, j] - members[:, k]).abs()
    return pairs / (count * (count - 1))


def pixel_thresholds(config: LossConfig, spec: DatasetSpec) -> tuple[float, ...]:
    """Return the thresholds between the pixel weights, on the code axis of the data set.

    The rain rates of the balanced weights are converted to dBZ by the Z-R relation of the data set (by default of
    Marshall and Palmer), and then to VIL by the liquid water content of Greene and Clark (1972) in a uniform column of
    5 km: 0.67, 1.5, 2.9 and 8.0 kg/m^2.

    Raises:
        DataError: ``loss.unit`` is not the unit of the data set, a threshold is outside its range, or rain rates cannot
            be converted to the unit of the data set.
    """
    if config.weighting != "balanced":
        if config.thresholds is None:
            return spec.threshold_codes()[-1:]
        return spec.codes_of(config.thresholds, unit=config.unit or "code")
    unit = spec.encoding.unit
    reflectivity = [(spec.z_r or _MARSHALL_PALMER).reflectivity(rate) for rate in _BALANCED_RAIN_RATES]
    if unit == "mm/h":
        values = _BALANCED_RAIN_RATES
    elif unit == "dBZ":
        values = tuple(reflectivity)
    elif unit == "kg/m^2":
        values = tuple(_COLUMN_M * _VIL_FACTOR * 10 ** (dbz / 10 * _VIL_EXPONENT) for dbz in reflectivity)
    else:
        raise DataError(
            f"loss.weighting=balanced needs a data set in mm/h, dBZ or kg/m^2, and {spec.name} is encoded in {unit!r}; "
            "set loss.thresholds and loss.weights instead"
        )
    return spec.codes_of(values, unit=unit)


def _as_unit(target: Tensor) -> Tensor:
    return code_to_unit(target) if target.dtype == torch.uint8 else target


def reconstruction_loss(frames: Tensor, reconstruction: Tensor, valid: Tensor, log_variance: Tensor) -> Tensor:
    """Return the negative log-likelihood of a Laplacian error with one learned log-scale, over valid pixels.

    ``sum (|x - r| / exp(s) + s) / N``, as in the code of Rombach et al.; s is ``log_variance``.

    Args:
        frames: x, fp32 ``[N, C, H, W]``.
        reconstruction: r, same shape.
        valid: bool, same shape, False where x is missing.
        log_variance: s, fp32 ``[1]``.
    """
    error = torch.where(valid, (frames - reconstruction).abs(), 0.0).sum()
    return (error * torch.exp(-log_variance) + log_variance * valid.sum()).squeeze() / len(frames)


def hinge_loss(real: Tensor, reconstructed: Tensor) -> Tensor:
    """Return the hinge loss of the discriminator from its logits (Lim and Ye 2017, Eq. 4 and 5, halved)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + reconstructed).mean())
