"""``layer_norm_linear``: a layer norm and the linear layers that read it, without storing the normalized tensor.

Source: layer norm of Ba et al. (arXiv 1607.06450), in the pre-norm residual blocks of Earthformer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check
from .operators import project
from .reference import Inputs

__all__ = ["layer_norm_linear"]


def layer_norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> list[Tensor]:
    """Return ``linear(layer_norm(x))``, ``[..., F]``, for each of ``weights``; the norm is over D.

    Several layers may read one norm: query, key and value of tokens and global vectors, or the two layers of a gated
    feed-forward network. Only the inputs are saved for the backward pass, which recomputes the norm. Result and
    gradients are bitwise reproducible on one device. Under autocast the layers are computed in autocast's dtype and the
    norm in float32, as PyTorch does. With float64 arguments the reference always computes. On a GPU the kernel computes
    bfloat16 layers of up to 256 features D; others are PyTorch operations unless ``SIMCAST_KERNELS=triton``.

    Args:
        x: ``[..., D]``, float32, bfloat16 or float64.
        norm_weight: ``[D]``, float32, bfloat16 or float64.
        norm_bias: ``[D]``, dtype of ``norm_weight``.
        weights: at least one, each ``[F, D]``, all float32, all bfloat16 or all float64; the results have their dtype.
        biases: none, or one ``[F]`` for each of ``weights``, of their dtype.
        eps: added to the variance.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that do not match.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    weights, biases = list(weights), list(biases)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # the meta device does not support autocast
        dtype = torch.get_autocast_dtype(x.device.type)
        weights, biases = [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    inputs = Inputs(x, norm_weight, norm_bias, weights, biases)
    check(inputs)
    return project(inputs, eps)
