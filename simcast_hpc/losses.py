"""The weighted MSE of SimCast (Eq. 1-2), bound to a data set's code."""

import torch

from simcast_hpc.config import LossConfig
from simcast_hpc.data.spec import DatasetSpec
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
