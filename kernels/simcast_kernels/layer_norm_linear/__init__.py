"""``layer_norm_linear``: a layer norm and the linear layers that read it, without the normed tensor in memory.

Source: layer norm of Ba et al. (arXiv 1607.06450), in the pre-norm residual blocks of Earthformer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .operators import project
from .reference import Inputs

__all__ = ["layer_norm_linear"]

_OP = "layer_norm_linear"
DTYPES = (torch.float32, torch.bfloat16)


def layer_norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> list[Tensor]:
    """Return ``linear(layer_norm(x))`` of each of ``weights``, each ``[..., F]``, D normalised.

    Several layers may read one norm: query, key and value of tokens and global vectors, or a gate beside what it
    gates. Only the inputs are kept for the backward, which normalises again. Result and gradients are the same to the
    bit at every call with the same input on the same device.

    Under autocast the layers are computed in autocast's dtype and the norm in float32, as PyTorch's own are.

    Args:
        x: ``[..., D]``, float32 or bfloat16.
        norm_weight: ``[D]``, float32 or bfloat16.
        norm_bias: ``[D]``, dtype of ``norm_weight``.
        weights: at least one, each ``[F, D]``, all float32 or all bfloat16; the results have their dtype.
        biases: none, or one ``[F]`` for each of ``weights``, of their dtype.
        eps: added to the variance.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that do not fit one another.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    weights, biases = list(weights), list(biases)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # the meta device knows no autocast
        dtype = torch.get_autocast_dtype(x.device.type)
        weights, biases = [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    inputs = Inputs(x, norm_weight, norm_bias, weights, biases)
    _check(inputs)
    return project(inputs, eps)


def _check(inputs: Inputs) -> None:
    x, norm_weight, norm_bias, weights, biases = inputs
    if not weights:
        raise ValueError(f"{_OP}: weights is empty; it must hold at least one [F, D]")
    for name, tensor in (("x", x), ("norm_weight", norm_weight), ("weights", weights[0])):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{_OP}: {name} is {tensor.dtype}; it must be float32 or bfloat16")
    if x.ndim == 0 or 0 in x.shape:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}; it must be [..., D], no axis empty")
    width = x.shape[-1]
    _check_tensor("norm_weight", norm_weight, (width,), norm_weight.dtype, x)
    _check_tensor("norm_bias", norm_bias, (width,), norm_weight.dtype, x)
    for i, weight in enumerate(weights):
        features = weight.shape[0] if weight.ndim == 2 else 0
        if not features:
            raise ValueError(f"{_OP}: weights[{i}] has shape {tuple(weight.shape)}; it must be [F, {width}]")
        _check_tensor(f"weights[{i}]", weight, (features, width), weights[0].dtype, x)
    if biases and len(biases) != len(weights):
        raise ValueError(f"{_OP}: {len(biases)} biases for {len(weights)} weights; give none, or one for each")
    for i, (bias, weight) in enumerate(zip(biases, weights, strict=False)):
        _check_tensor(f"biases[{i}]", bias, (weight.shape[0],), weights[0].dtype, x)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{_OP}: {name} has shape {tuple(tensor.shape)}; it must be {list(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{_OP}: {name} is {tensor.dtype}; it must be {dtype} as the others")
    if tensor.device != x.device:
        raise ValueError(f"{_OP}: {name} is on {tensor.device}; it must be on {x.device} as x")
