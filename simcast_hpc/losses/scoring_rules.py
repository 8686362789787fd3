"""Losses that are proper scoring rules: pinball loss of exceedances, and CRPS of ensemble members."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_hpc.config import DataError, LossConfig
from simcast_hpc.data.dataset_spec import DatasetSpec

from .pixel_weighted_loss import as_unit


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
        observed = as_unit(target).to(prediction.dtype)
        if valid is not None:
            observed, prediction = observed.masked_fill(~valid, 0.0), prediction.masked_fill(~valid, 0.0)
        difference = self._exceedances(observed) - self._exceedances(prediction)
        return torch.maximum(self.level * difference, (self.level - 1) * difference).mean()

    def _exceedances(self, values: Tensor) -> Tensor:
        total = torch.zeros_like(values)
        for threshold, weight in zip(self.thresholds, self.weights, strict=True):
            total = total + weight * torch.special.ndtr((values - threshold) / self.width)
        return total


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
        observed = as_unit(target).to(prediction.dtype)
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
