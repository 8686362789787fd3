"""Reference implementation of ``adaln_norm`` in PyTorch: the definition for the kernel, and the CPU path."""

import torch
from torch import Tensor


def adaln_norm_reference(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return ``(modulated, carried)``, computed and differentiated by PyTorch operations.

    Arguments as :func:`simcast_kernels.adaln_norm.adaln_norm`; computed in float32, float64 input in float64.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    carried = x
    if branch is not None and gate is not None:
        carried = (x.to(wide) + gate.to(wide)[:, None] * branch.to(wide)).to(x.dtype)
    normed = torch.nn.functional.layer_norm(carried.to(wide), x.shape[-1:], eps=eps)
    modulated = normed * (1.0 + scale.to(wide)[:, None]) + shift.to(wide)[:, None]
    return modulated.to(x.dtype), carried


def forward(
    x: Tensor, shift: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return modulated, carried (None without a branch), mean and reciprocal deviation of each row, ``[N, L]``.

    Takes fewer passes over memory than :func:`adaln_norm_reference`; a CPU is bound by memory here.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    carried = x
    if branch is not None and gate is not None:
        carried = torch.addcmul(x.to(wide), gate.to(wide)[:, None], branch.to(wide)).to(x.dtype)
    normed, mean, rstd = torch.native_layer_norm(carried.to(wide), x.shape[-1:], None, None, eps)
    modulated = normed.mul_((1.0 + scale.to(wide))[:, None]).add_(shift.to(wide)[:, None])
    return modulated.to(x.dtype), None if branch is None else carried, mean.squeeze(-1), rstd.squeeze(-1)


def backward(
    grad_modulated: Tensor,
    grad_carried: Tensor | None,
    carried: Tensor,
    scale: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, shift, scale, branch and gate, each in the dtype of its input."""
    wide, width = mean.dtype, carried.shape[-1]
    value, grad = carried.to(wide), grad_modulated.to(wide)
    inner = grad * (1.0 + scale.to(wide))[:, None]
    grad_x, *_ = torch.ops.aten.native_layer_norm_backward(
        inner, value, (width,), mean[..., None], rstd[..., None], None, None, (True, False, False)
    )
    if grad_carried is not None:
        grad_x = grad_x.add_(grad_carried.to(wide))
    normed = (value - mean[..., None]).mul_(rstd[..., None])
    shift_grad, scale_grad = grad.sum(dim=1), normed.mul_(grad).sum(dim=1)
    branch_grad = gate_grad = None
    if branch is not None and gate is not None:
        branch_grad = (gate.to(wide)[:, None] * grad_x).to(branch.dtype)
        gate_grad = (branch.to(wide) * grad_x).sum(dim=1).to(gate.dtype)
    return grad_x.to(carried.dtype), shift_grad.to(scale.dtype), scale_grad.to(scale.dtype), branch_grad, gate_grad
