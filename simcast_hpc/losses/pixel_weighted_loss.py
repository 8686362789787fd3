"""Squared and absolute errors, weighted by a step function of the observed value."""

import torch
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
        error = (prediction - as_unit(target)).abs()
        if valid is not None:
            error = error.masked_fill(~valid, 0.0)
        return (weight * error).sum() / prediction.numel()


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


def as_unit(target: Tensor) -> Tensor:
    """Return a target in [0, 1]: uint8 encoded values are divided by 255."""
    return code_to_unit(target) if target.dtype == torch.uint8 else target
