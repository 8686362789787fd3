"""Nearest up-sampling and a 3x3 convolution as one operation on the coarse grid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_kernels.dispatch import are_twins_inlined

from .merge import Grid

KERNEL = 3


class UpSample(nn.Module):
    """Repeat tokens to a finer grid and convolve 3x3: ``[..., h, w, D] -> [..., H, W, E]``."""

    def __init__(self, width_in: int, width_out: int, *, grid: Grid):
        super().__init__()
        self.conv = UpConv(width_in, width_out, grid=grid)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens on the finer grid."""
        leading = x.shape[:-3]
        finer = self.conv(x.flatten(0, -4).permute(0, 3, 1, 2))
        return finer.permute(0, 2, 3, 1).unflatten(0, leading)


class UpConv(nn.Conv2d):
    """Nearest up-sampling to ``grid``, then this 3x3 convolution: ``[N, C, h, w] -> [N, E, H, W]``.

    Where H and W are whole multiples of h and w, at least twice, no up-sampled tensor is made.
    """

    def __init__(self, width_in: int, width_out: int, *, grid: Grid):
        super().__init__(width_in, width_out, KERNEL, padding=1)
        self.grid = grid

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolved finer grid."""
        coarse = input.shape[-2:]
        rows, columns = self.grid[0] // coarse[0], self.grid[1] // coarse[1]
        whole = min(rows, columns) > 1 and (rows * coarse[0], columns * coarse[1]) == self.grid
        # A program that leaves this project has the plain operations: ONNX knows no mean with a divisor of its own.
        if whole and not are_twins_inlined():
            return _UpConv.apply(input, self.weight, self.bias, (rows, columns))  # pyright: ignore[reportReturnType]
        return super().forward(F.interpolate(input, size=self.grid))


class _UpConv(torch.autograd.Function):
    """Repeating s times and convolving is a transposed convolution of stride s, whose kernel is s + 2 wide.

    Along one axis the forecast at ``s i + r`` is the sum over k of ``w[k] x[floor((s i + r + k - 1) / s)]``: of the 3
    taps those that fall on the same coarse token may be added beforehand. For s = 3 that leaves 25 of 81 products in
    two dimensions, for s = 2 16 of 36. Backward, the gradient is first added up over the s x s places that the taps of
    one coarse token touch, three shifts along each axis; what is left are 9 products on the coarse grid.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scales: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scales = scales
        rows, columns = scales
        padded = F.pad(weight.flip(2, 3), (columns - 1, columns - 1, rows - 1, rows - 1))
        kernel = F.avg_pool2d(padded, scales, stride=1, divisor_override=1).transpose(0, 1)
        finer = F.conv_transpose2d(x, kernel, bias, stride=scales, padding=1)
        return finer.contiguous(memory_format=torch.channels_last)  # as it is but on the meta device

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        taps = weight.to(grad.dtype)
        tokens = x.to(grad.dtype).permute(0, 2, 3, 1).flatten(0, 2)
        d_tokens, d_taps = torch.zeros_like(tokens), torch.empty_like(taps)
        for column, along in enumerate(_touched(grad.permute(0, 2, 3, 1), axis=2, scale=ctx.scales[1])):
            for row, both in enumerate(_touched(along, axis=1, scale=ctx.scales[0])):
                sums = both.flatten(0, 2)
                d_tokens.addmm_(sums, taps[:, :, row, column])
                d_taps[:, :, row, column] = sums.T @ tokens
        batch, _, height, width = x.shape
        d_x = d_tokens.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return d_x.to(x.dtype), d_taps.to(weight.dtype), grad.sum((0, 2, 3)).to(weight.dtype), None


def _touched(grad: Tensor, *, axis: int, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each tap and coarse place along ``axis`` the sum of ``grad`` over the fine places that read it.

    These are the ``scale`` places from ``scale * i + 1 - tap`` on; what lies outside the grid does not count.
    """
    coarse = grad.shape[axis] // scale
    first, *inner, last = grad.unflatten(axis, (coarse, scale)).unbind(axis + 1)
    without_last = sum(inner, start=first) if inner else first.clone()
    without_first = sum(inner, start=last) if inner else last.clone()
    middle = without_last + last
    without_first.narrow(axis, 0, coarse - 1).add_(first.narrow(axis, 1, coarse - 1))
    without_last.narrow(axis, 1, coarse - 1).add_(last.narrow(axis, 0, coarse - 1))
    return without_first, middle, without_last
