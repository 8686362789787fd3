"""Losses of the autoencoder (reconstruction) and of its discriminator (hinge loss).

Rombach et al. 2022, section 3.1 and appendix G.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
