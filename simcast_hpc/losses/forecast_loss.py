"""The loss of a forecasting stage: a weighted sum of terms."""

from typing import Protocol

import torch
from torch import Tensor

from simcast_hpc.config import LossConfig
from simcast_hpc.data.dataset_spec import DatasetSpec

from .pixel_weighted_loss import WeightedMAE, WeightedMSE, pixel_thresholds
from .scoring_rules import AlmostFairCRPS, ThresholdPinballLoss
from .spectral_amplitude import AdjustedMSE


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

    @property
    def needs_whole_frames(self) -> bool:
        """Whether a term is not a mean over pixels, so that it cannot be computed on a part of each frame."""
        return "amse" in self.terms

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None, *, share: float = 1.0) -> Tensor:
        """Return the loss, fp32 scalar, times ``share``; see the module docstring for the other arguments."""
        values = [term(prediction, target, valid) for term in self.terms.values()]
        if share != 1.0:
            values = [share * value for value in values]
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
