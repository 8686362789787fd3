"""Losses: the weighted MSE of SimCast (Eq. 1-2) with thresholds of a data set, and the autoencoder losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_hpc.config import LossConfig
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_kernels.weighted_mse import weighted_mse


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
        if config.thresholds is None:
            self.thresholds = spec.threshold_codes()[-1:]
        else:
            self.thresholds = spec.codes_of(config.thresholds, unit=config.unit or "code")
        self.weights, self.inclusive = config.weights, config.inclusive

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
