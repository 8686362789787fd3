"""``bias_activation``: bias, activation, dropout and residual sum after a matmul, in one pass over memory.

Source: GELU of Hendrycks and Gimpel (arXiv 1606.08415), dropout of Srivastava et al. (JMLR 15, 2014).
"""

import torch
from torch import Tensor, nn

from simcast_kernels.dispatch import runs_kernel

from .checks import check
from .operators import apply

__all__ = ["bias_activation", "replaces"]


def bias_activation(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "gelu",
    slope: float = 0.01,
    dropout: float = 0.0,
    seed: int = 0,
    residual: Tensor | None = None,
) -> Tensor:
    """Return ``residual + dropout(activation(x + bias))``, of the shape and dtype of ``x``.

    The forward pass reads ``x`` once, the backward pass reads ``x`` and the gradient once and adds up the gradient of
    the bias. Only ``x`` and ``bias`` are saved for backward, and neither without an activation: the dropout mask is a
    function of seed, row and column and is recomputed. Computed in float32, float64 input in float64 (always by the
    reference). Result and gradients are bitwise reproducible on one device. Autocast does not change the dtypes.

    Args:
        x: ``[..., C]``, float32, bfloat16, float16 or float64; rows are counted in row-major order of the leading axes.
        bias: ``[C]``, float32, bfloat16, float16 or float64.
        activation: ``gelu``, ``gelu_tanh`` (the approximation by tanh), ``silu``, ``leaky_relu`` or ``none``.
        slope: of ``leaky_relu`` below 0; 0 is ReLU.
        dropout: probability of a zero, rounded to a multiple of 2^-16; kept values are divided by the probability of
            keeping them, so the mean is exact.
        seed: key of the dropout, 0 <= seed < 2^63; calls with different masks need different seeds.
        residual: added to the result, shape and dtype of ``x``.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: an unknown activation, a dropout outside of [0, 1), a seed outside of its range, shapes or devices
            that do not match, or more than 2^31 - 1 rows.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    check(x, bias, activation, dropout, seed, residual)
    return apply(x, bias, residual, activation, float(slope), float(dropout), seed)


def replaces(x: Tensor, *layers: nn.Module) -> bool:
    """Return whether this op is the faster choice after ``layers``, applied to ``x`` as a product without their bias.

    It is where the kernel runs, for all dtypes but float64, and the layers are ``torch.nn.Linear`` with a bias or
    ``torch.nn.Dropout`` themselves (a subclass may compute something else, such as the mask of a sharded grid).
    """
    if torch.compiler.is_exporting() or x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x.numel() == 0:
        return False
    for layer in layers:
        if type(layer) is not nn.Dropout and (type(layer) is not nn.Linear or layer.bias is None):
            return False
    if torch.compiler.is_compiling():  # the environment is not traced
        return x.device.type == "cuda"
    return runs_kernel("bias_activation", x)
