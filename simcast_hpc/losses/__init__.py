"""Losses of forecasts and of the autoencoder.

Every loss of a forecast takes prediction ``[B, T', C, H, W]`` in [0, 1], target of the same shape (uint8 encoded values
or encoded value / 255 in float32) and ``valid`` (bool, or None), and returns a scalar. Missing pixels contribute 0, but
the denominator is the constant B T' C H W, so that the loss of a batch is the mean of the losses of its samples. The
CRPS takes members ``[B, M, T', C, H, W]``.
"""

from .autoencoder_loss import hinge_loss, reconstruction_loss
from .forecast_loss import ForecastLoss, Loss, build_loss
from .pixel_weighted_loss import WeightedMAE, WeightedMSE, pixel_thresholds
from .scoring_rules import AlmostFairCRPS, ThresholdPinballLoss, almost_fair_crps
from .spectral_amplitude import AdjustedMSE

__all__ = [
    "AdjustedMSE",
    "AlmostFairCRPS",
    "ForecastLoss",
    "Loss",
    "ThresholdPinballLoss",
    "WeightedMAE",
    "WeightedMSE",
    "almost_fair_crps",
    "build_loss",
    "hinge_loss",
    "pixel_thresholds",
    "reconstruction_loss",
]
