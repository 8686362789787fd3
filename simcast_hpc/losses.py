"""The losses: SimCast's weighted MSE (Eq. 1-2), bound to a data set's code, and those of the autoencoder."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_hpc.config import LossConfig
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_kernels.weighted_mse import weighted_mse


class WeightedMSE(torch.nn.Module):
    """Sum over valid pixels of w(y) (f - y)^2, over B T' C H W: a constant denominator.

    w is a step function of the target: 1 up to the data set's highest evaluation threshold and 10 above it in
    the paper; any table of thresholds and weights here.
    """

    def __init__(self, config: LossConfig, spec: DatasetSpec):
        """Turn the thresholds into code.

        Raises:
            DataError: ``loss.unit`` is not the data set's unit, or a threshold lies outside its code.
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
            prediction: fp32 ``[B, T', C, H, W]`` in units of code / 255.
            target: uint8 code or float32 code / 255, same shape.
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
    """Return the negative log-likelihood of a Laplace-like error with one learned variance, summed over valid pixels.

    ``sum (|x - r| / exp(s) + s) / N`` (as in Rombach et al.'s code; s is ``log_variance``).

    Args:
        frames: x, fp32 ``[N, C, H, W]``.
        reconstruction: r, same shape.
        valid: bool, same shape, False where x is missing.
        log_variance: s, fp32 ``[1]``.
    """
    error = torch.where(valid, (frames - reconstruction).abs(), 0.0).sum()
    return (error * torch.exp(-log_variance) + log_variance * valid.sum()).squeeze() / len(frames)


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of its logits (Lim and Ye 2017, Eq. 4 and 5, halved)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())
