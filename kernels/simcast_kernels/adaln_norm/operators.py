"""Custom operators of ``adaln_norm``: implementation, fake tensors, gradient."""

import torch
from torch import Tensor

from simcast_kernels.direct_call import custom_operator
from simcast_kernels.dispatch import select_implementation

from . import reference


def normalize(
    x: Tensor, shift: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``(modulated, carried)`` of validated inputs, differentiable."""
    if torch.compiler.is_exporting():
        modulated, carried, *_ = reference.forward(x, shift, scale, branch, gate, eps)
        return modulated, x if carried is None else carried
    modulated, carried, _, _ = forward_operator(x, shift, scale, branch, gate, eps)
    return modulated, x if branch is None else carried


@custom_operator("simcast_kernels::adaln_norm")
def forward_operator(
    x: Tensor, shift: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return modulated, carried (empty without a branch), mean and reciprocal standard deviation of each row."""
    modulated, carried, mean, rstd = _implementation(x).forward(x, shift, scale, branch, gate, eps)
    empty = x.new_empty(0) if carried is None else carried.contiguous()
    return modulated.contiguous(), empty, mean.contiguous(), rstd.contiguous()


@forward_operator.register_fake
def _(x, shift, scale, branch, gate, eps):
    def like(shape, dtype):
        return torch.empty(shape, dtype=dtype, device=x.device)

    wide = torch.promote_types(x.dtype, torch.float32)
    carried = like((0,) if branch is None else x.shape, x.dtype)
    return like(x.shape, x.dtype), carried, like(x.shape[:2], wide), like(x.shape[:2], wide)


@custom_operator("simcast_kernels::adaln_norm_backward")
def backward_operator(
    grad_modulated: Tensor,
    grad_carried: Tensor | None,
    carried: Tensor,
    scale: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, shift, scale, branch and gate."""
    grads = _implementation(carried).backward(grad_modulated, grad_carried, carried, scale, branch, gate, mean, rstd)
    # An operator cannot return None: the gradient of an absent input is an empty tensor.
    x_, shift_, scale_, branch_, gate_ = (carried.new_empty(0) if g is None else g.contiguous() for g in grads)
    return x_, shift_, scale_, branch_, gate_


@backward_operator.register_fake
def _(grad_modulated, grad_carried, carried, scale, branch, gate, mean, rstd):
    return tuple(
        carried.new_empty(0) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in (carried, scale, scale, branch, gate)
    )


def _save(ctx, inputs, output) -> None:
    x, _, scale, branch, gate, _ = inputs
    _, carried, mean, rstd = output
    ctx.set_materialize_grads(False)  # the last block does not use the residual stream
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x if branch is None else carried, scale, branch, gate, mean, rstd)


def _gradients(ctx, grad_modulated, grad_carried, *_):
    carried, scale, branch, gate, mean, rstd = ctx.saved_tensors
    if grad_modulated is None:
        grad_modulated = torch.zeros_like(carried)
    if branch is None:
        grad_carried = None  # the gradient of the empty tensor
    grads = backward_operator(grad_modulated, grad_carried, carried, scale, branch, gate, mean, rstd)
    present = (True, True, True, branch is not None, gate is not None)
    return *(g if exists else None for g, exists in zip(grads, present, strict=True)), None


forward_operator.register_autograd(_gradients, setup_context=_save)


def _implementation(x: Tensor):
    if select_implementation("adaln_norm", x.device) == "reference":
        return reference
    from . import kernel  # imports Triton

    return reference if kernel.unsupported(x) else kernel
