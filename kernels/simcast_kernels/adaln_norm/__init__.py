"""``adaln_norm``: gated residual connection, layer norm and modulation, between two branches of a DiT block.

Source: Peebles and Xie, Scalable diffusion models with transformers (2023), section 3.2 (adaLN-Zero), as in CasCast's
CasFormer (Gong et al. 2024, section 3.3).
"""

import torch
from torch import Tensor

from .checks import check
from .operators import normalize

__all__ = ["adaln_norm"]


def adaln_norm(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return ``(modulated, carried)`` for a gated residual connection and an adaptive layer norm.

    ``carried = x + gate branch``, or ``x`` without a branch; ``modulated = norm(carried) (1 + scale) + shift``, where
    ``norm`` is layer norm over the features without weights. A chain of blocks therefore reads and writes the residual
    stream once between two branches. Computed in float32, float64 input in float64 (always by the reference). Result
    and gradients are bitwise reproducible on one device. Under autocast the other arguments are cast to the dtype of
    ``x``.

    Args:
        x: residual stream, ``[N, L, D]``, float32, bfloat16 or float64; N samples with one modulation each.
        shift: ``[N, D]``, dtype of ``x``.
        scale: ``[N, D]``, dtype of ``x``; 0 leaves the norm unchanged.
        branch: output of attention or feed-forward, shape and dtype of ``x``.
        gate: weight of ``branch``, ``[N, D]``, dtype of ``x``; required with ``branch``.
        eps: added to the variance.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, no elements, or only one of branch and gate.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # the meta device does not support autocast
        shift, scale = shift.to(x.dtype), scale.to(x.dtype)
        branch, gate = (None if tensor is None else tensor.to(x.dtype) for tensor in (branch, gate))
    check(x, shift, scale, branch, gate)
    return normalize(x, shift, scale, branch, gate, eps)
