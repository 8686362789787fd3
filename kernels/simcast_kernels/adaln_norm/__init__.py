"""``adaln_norm``: gated residual, layer norm and modulation, what stands between two branches of a DiT block.

Source: Peebles and Xie, Scalable diffusion models with transformers (2023), section 3.2 (adaLN-Zero), as in CasCast's
CasFormer (Gong et al. 2024, section 3.3).
"""

import torch
from torch import Tensor

from simcast_kernels.dispatch import are_twins_inlined, body_for

from . import reference

__all__ = ["adaln_norm"]

_OP = "adaln_norm"


def adaln_norm(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return ``(modulated, carried)`` with ``carried = x + gate branch``, ``modulated = norm(carried) (1 + scale) +
    shift``.

    ``norm`` is layer norm over the features without weights of its own. Without a branch ``carried`` is ``x``. So a
    chain of blocks reads and writes the stream of tokens once between any two branches. Computed in float32, float64
    input in float64 (by the twin everywhere). Result and gradients are the same to the bit at every call with the same
    input on the same device. Under autocast, where layers return its dtype and sums may stay wider, what comes with
    ``x`` is cast to the dtype of ``x``.

    Args:
        x: the stream, ``[N, L, D]``, float32, bfloat16 or float64; N samples that are modulated alike along L.
        shift: ``[N, D]``, dtype of ``x``.
        scale: ``[N, D]``, dtype of ``x``; 0 changes nothing.
        branch: what attention or feed-forward made, shape and dtype of ``x``.
        gate: its weight, ``[N, D]``, dtype of ``x``; given with ``branch``.
        eps: added to the variance.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, no elements, or one of branch and gate without the other.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """  # noqa: D205
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # the meta device knows no autocast
        shift, scale = shift.to(x.dtype), scale.to(x.dtype)
        branch, gate = (None if tensor is None else tensor.to(x.dtype) for tensor in (branch, gate))
    _check(x, shift, scale, branch, gate)
    if are_twins_inlined():
        modulated, carried, *_ = reference.forward(x, shift, scale, branch, gate, eps)
        return modulated, x if carried is None else carried
    modulated, carried, _, _ = torch.ops.simcast_kernels.adaln_norm(x, shift, scale, branch, gate, eps)
    return modulated, x if branch is None else carried


@torch.library.custom_op("simcast_kernels::adaln_norm", mutates_args=())
def _forward(
    x: Tensor, shift: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    modulated, carried, mean, rstd = _body(x).forward(x, shift, scale, branch, gate, eps)
    empty = x.new_empty(0) if carried is None else carried.contiguous()
    return modulated.contiguous(), empty, mean.contiguous(), rstd.contiguous()


@_forward.register_fake
def _(x, shift, scale, branch, gate, eps):
    def like(shape, dtype):
        return torch.empty(shape, dtype=dtype, device=x.device)

    wide = torch.promote_types(x.dtype, torch.float32)
    carried = like((0,) if branch is None else x.shape, x.dtype)
    return like(x.shape, x.dtype), carried, like(x.shape[:2], wide), like(x.shape[:2], wide)


@torch.library.custom_op("simcast_kernels::adaln_norm_backward", mutates_args=())
def _backward(
    grad_modulated: Tensor,
    grad_carried: Tensor | None,
    carried: Tensor,
    scale: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _body(carried).backward(grad_modulated, grad_carried, carried, scale, branch, gate, mean, rstd)
    # An operator cannot return None: an empty tensor stands for the gradient of an input that is not there.
    x_, shift_, scale_, branch_, gate_ = (carried.new_empty(0) if g is None else g.contiguous() for g in grads)
    return x_, shift_, scale_, branch_, gate_


@_backward.register_fake
def _(grad_modulated, grad_carried, carried, scale, branch, gate, mean, rstd):
    return tuple(
        carried.new_empty(0) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in (carried, scale, scale, branch, gate)
    )


def _save(ctx, inputs, output) -> None:
    x, _, scale, branch, gate, _ = inputs
    _, carried, mean, rstd = output
    ctx.set_materialize_grads(False)  # the stream after the last norm is used by nobody
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x if branch is None else carried, scale, branch, gate, mean, rstd)


def _gradients(ctx, grad_modulated, grad_carried, *_):
    carried, scale, branch, gate, mean, rstd = ctx.saved_tensors
    if grad_modulated is None:
        grad_modulated = torch.zeros_like(carried)
    if branch is None:
        grad_carried = None  # it stands for the empty tensor
    grads = torch.ops.simcast_kernels.adaln_norm_backward(
        grad_modulated, grad_carried, carried, scale, branch, gate, mean, rstd
    )
    present = (True, True, True, branch is not None, gate is not None)
    return *(g if there else None for g, there in zip(grads, present, strict=True)), None


_forward.register_autograd(_gradients, setup_context=_save)


def _body(x: Tensor):
    if body_for(_OP, x.device) == "reference":
        return reference
    from . import kernel  # late: the twin needs no Triton

    return reference if kernel.refusal(x) else kernel


def _check(x: Tensor, shift: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None) -> None:
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise TypeError(f"{_OP}: x is {x.dtype}; it must be float32, bfloat16 or float64")
    if x.ndim != 3 or x.numel() == 0:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}; it must be [N, L, D] and hold something")
    if (branch is None) != (gate is None):
        raise ValueError(f"{_OP}: branch and gate come together; one of them is None")
    modulation = (x.shape[0], x.shape[2])
    wanted = [("shift", shift, modulation), ("scale", scale, modulation)]
    if branch is not None and gate is not None:
        wanted += [("branch", branch, tuple(x.shape)), ("gate", gate, modulation)]
    for name, tensor, shape in wanted:
        if tensor.dtype != x.dtype:
            raise TypeError(f"{_OP}: {name} is {tensor.dtype}, x {x.dtype}; they must agree")
        if tuple(tensor.shape) != shape or tensor.device != x.device:
            raise ValueError(
                f"{_OP}: {name} is {tuple(tensor.shape)} on {tensor.device}; for x {tuple(x.shape)} on {x.device} it "
                f"must be {shape} there"
            )
