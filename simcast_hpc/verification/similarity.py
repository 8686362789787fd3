"""Structural similarity (SSIM) with a Gaussian window of 11 pixels (Wang, Bovik, Sheikh and Simoncelli 2004)."""

import torch
from torch import Tensor

_SIDE, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def ssim(
    observed: Tensor,
    predicted: Tensor,
    *,
    data_range: float = 1.0,
    hidden: Tensor | None = None,
    reflect: bool = False,
) -> Tensor:
    """Return the mean SSIM of each frame, float64 ``[T]``; NaN if no window contains only valid pixels.

    ((2 m_x m_y + c1)(2 s_xy + c2)) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2)), c1 = (0.01 L)^2, c2 = (0.03 L)^2,
    averaged over windows within the frame, as in the original implementation and in scikit-image.

    Args:
        observed: floats ``[T, H, W]``.
        predicted: floats of the same shape.
        data_range: L, the range of the values: 1 for [0, 1] fields (equal to 255 for uint8 values).
        hidden: True where either field is missing; windows with such a pixel are excluded.
        reflect: whether to reflect the frame at its edges and average over a window around every pixel, as in
            torchmetrics.
    """
    if min(observed.shape[1:]) < _SIDE:
        return torch.full((observed.shape[0],), torch.nan, dtype=torch.float64, device=observed.device)
    if reflect:
        edges = (_SIDE // 2,) * 4
        observed, predicted = (
            torch.nn.functional.pad(field[None], edges, mode="reflect")[0] for field in (observed, predicted)
        )
        if hidden is not None:
            hidden = torch.nn.functional.pad(hidden[None].float(), edges, mode="reflect")[0] > 0
    return torch.stack(
        [
            _frame(x.double(), y.double(), data_range, None if hidden is None else hidden[frame])
            for frame, (x, y) in enumerate(zip(observed, predicted, strict=True))
        ]
    )


def _frame(x: Tensor, y: Tensor, data_range: float, hidden: Tensor | None) -> Tensor:
    if hidden is not None:
        x, y = x.masked_fill(hidden, 0.0), y.masked_fill(hidden, 0.0)
    mean_x, mean_y = _smooth(x), _smooth(y)
    products = mean_x * mean_y
    squares = mean_x.square_().add_(mean_y.square_())
    # Rounding can make the variance of a constant field slightly negative.
    variances = (_smooth(x * x + y * y) - squares).clamp_(min=0.0)
    covariance = _smooth(x * y).sub_(products)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    index = (2 * products + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    if hidden is None:
        return index.mean()
    windows = torch.nn.functional.max_pool2d(hidden.float()[None, None], _SIDE, stride=1)[0, 0] == 0
    return index.masked_fill(~windows, 0.0).sum() / windows.sum()


def _smooth(field: Tensor) -> Tensor:
    return _smooth_rows(_smooth_rows(field, dim=0), dim=1)


def _smooth_rows(field: Tensor, *, dim: int) -> Tensor:
    weights = _window()
    length = field.shape[dim] - _SIDE + 1
    smooth = field.narrow(dim, _SIDE // 2, length) * weights[_SIDE // 2]
    for reach in range(1, _SIDE // 2 + 1):
        pair = field.narrow(dim, _SIDE // 2 - reach, length) + field.narrow(dim, _SIDE // 2 + reach, length)
        smooth.add_(pair, alpha=weights[_SIDE // 2 + reach])
    return smooth


def _window() -> list[float]:
    offsets = torch.arange(_SIDE, dtype=torch.float64) - _SIDE // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    return (weights / weights.sum()).tolist()
