"""``group_norm_activation``: group norm of channels-last features, activation, and sum of branches.

Source: group norm of Wu and He (arXiv 1803.08494); SiLU of Elfwing et al. (arXiv 1702.03118).
"""

import torch
from torch import Tensor, nn

from simcast_kernels.dispatch import runs_kernel

from .checks import check
from .operators import normalize

__all__ = ["group_norm_activation", "replaces"]


def group_norm_activation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    activation: str,
    slope: float = 0.01,
    eps: float = 1e-5,
    total: Tensor | None = None,
) -> Tensor:
    """Return ``total + activation(group_norm(x))`` in channels-last memory, of the shape and dtype of ``x``.

    The forward pass reads ``x`` twice, the backward pass reads ``x`` and the gradient twice. Only ``x`` and the
    statistics of its groups are saved for backward. Computed in float32, float64 input in float64 (always by the
    reference). Result and gradients are bitwise reproducible on one device. Autocast does not change the dtypes.

    Args:
        x: ``[N, C, H, W]``, float32, bfloat16 or float64; copied if it is not channels-last in memory.
        weight: ``[C]``, float32, bfloat16 or float64.
        bias: ``[C]``, dtype of ``weight``.
        groups: number of groups of channels, a divisor of C; mean and variance are over a group and the grid.
        activation: ``leaky_relu`` or ``silu``.
        slope: of ``leaky_relu`` below 0; 0 is ReLU, and 1 no activation.
        eps: added to the variance.
        total: sum of previous branches, shape and dtype of ``x``.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: an unknown activation, shapes or devices that do not match, no elements, or a number of groups that
            does not divide C.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    check(x, weight, bias, groups, activation, total)
    return normalize(x, weight, bias, total, groups, activation, float(slope), float(eps))


def replaces(x: Tensor, norm: nn.Module) -> bool:
    """Return whether this op is the faster choice for ``norm(x)`` and an activation.

    It is where the kernel runs, ``x`` is channels-last, and ``norm`` is PyTorch's group norm (a subclass may compute
    other statistics). PyTorch's group norm on CUDA returns channels-first memory, which costs two copies.
    """
    if type(norm) is not nn.GroupNorm or not norm.affine or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if torch.compiler.is_exporting() or not x.is_contiguous(memory_format=torch.channels_last) or x.numel() == 0:
        return False
    if torch.compiler.is_compiling():  # the environment is not traced
        return x.device.type == "cuda"
    return runs_kernel("group_norm_activation", x)
