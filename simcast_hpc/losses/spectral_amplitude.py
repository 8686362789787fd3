"""Loss of the amplitudes of a forecast's spatial spectrum, against the blurring of uncertain scales."""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .pixel_weighted_loss import as_unit

# Variance of the rounding to encoded values, in units of [0, 1].
_ROUNDING_VARIANCE = (1 / 255) ** 2 / 12


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
        observed = as_unit(target).to(prediction.dtype)
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
