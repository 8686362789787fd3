"""From pixels to tokens and back: the down-sampling stem and the stages of the head that mirror it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import ConvStem, EarthformerConfig, StackConvStem

LEAKY_SLOPE = 0.1


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE)


def _overwriting_leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE, inplace=True)


def _overwriting_relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "leaky": _leaky, "relu": F.relu, "silu": F.silu}
OVERWRITING = ACTIVATIONS | {"leaky": _overwriting_leaky, "relu": _overwriting_relu}


Grid = tuple[int, int]


def merged(grid: Grid, scale: int) -> Grid:
    """Return the grid after a merge of ``scale`` x ``scale`` patches; an incomplete patch counts."""
    return -(-grid[0] // scale), -(-grid[1] // scale)


class PatchMerge(nn.Module):
    """Join patches of ``scale`` x ``scale`` tokens: ``[..., H, W, D] -> [..., ceil(H/s), ceil(W/s), E]``.

    A grid that is no multiple is padded at its end, with zeros, or for ``nearest`` stretched to the next multiple.
    """

    def __init__(self, width_in: int, width_out: int, *, scale: int, padding: str):
        super().__init__()
        self.scale, self.padding = scale, padding
        self.norm = nn.LayerNorm(scale**2 * width_in)
        self.reduce = nn.Linear(scale**2 * width_in, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged tokens."""
        leading = x.shape[:-3]
        x = self._padded(x.flatten(0, -4))
        patches = x.unflatten(2, (-1, self.scale)).unflatten(1, (-1, self.scale)).transpose(2, 3).flatten(3)
        return self.reduce(self.norm(patches)).unflatten(0, leading)

    def _padded(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        grid = merged((height, width), self.scale)
        wanted = (grid[0] * self.scale, grid[1] * self.scale)
        if wanted == (height, width):
            return x
        if self.padding == "nearest":
            return F.interpolate(x.permute(0, 3, 1, 2), size=wanted).permute(0, 2, 3, 1)
        return F.pad(x, (0, 0, 0, wanted[1] - width, 0, wanted[0] - height))


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
        if whole and not torch.compiler.is_exporting():
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


STACK_CHANNELS_PER_GROUP = 4
CONV_GROUPS = 16


class ConvBlock(nn.Module):
    """3x3 convolutions, each with group norm and activation: ``[N, H, W, C] -> [N, H, W, D]``.

    In memory the features stay last, so the permutations around the convolutions move nothing.
    """

    def __init__(self, width_in: int, width_out: int, *, convolutions: int, groups: int, activation: str):
        super().__init__()
        self.activation = OVERWRITING[activation]
        self.convs = nn.ModuleList(
            nn.Conv2d(width_out if i else width_in, width_out, 3, padding=1) for i in range(convolutions)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width_out) for _ in range(convolutions))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        x = x.permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.activation(norm(conv(x)))
        return x.permute(0, 2, 3, 1)


class DownStage(nn.Module):
    """Convolutions, then a patch merge: ``[N, H, W, C] -> [N, ceil(H/s), ceil(W/s), D]``."""

    def __init__(self, block: ConvBlock, merge: PatchMerge):
        super().__init__()
        self.block, self.merge = block, merge

    def forward(self, x: Tensor) -> Tensor:
        """Return the features on the coarser grid."""
        return self.merge(self.block(x))


class UpStage(nn.Module):
    """Up-sampling to a finer grid, then convolutions: ``[N, h, w, D] -> [N, H, W, E]``."""

    def __init__(self, up: UpSample, block: ConvBlock):
        super().__init__()
        self.up, self.block = up, block

    def forward(self, x: Tensor) -> Tensor:
        """Return the features on the finer grid."""
        return self.block(self.up(x))


class Stages(nn.Module):
    """Stages one after another."""

    def __init__(self, stages: list[DownStage] | list[UpStage]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features after the last stage."""
        for stage in self.stages:
            x = stage(x)
        return x


def build_stem(config: EarthformerConfig, *, channels: int) -> nn.Module:
    """Return pixels to tokens of the finest level: ``[N, H, W, C] -> [N, h, w, D]``.

    Raises:
        ValueError: a width that its groups do not divide.
    """
    stem = config.stem
    if isinstance(stem, StackConvStem):
        stages = []
        for width, scale, count in zip(stem.widths, stem.scales, stem.convolutions, strict=True):
            block = _stack_block(channels, width, convolutions=count, activation=stem.activation)
            stages.append(DownStage(block, PatchMerge(width, width, scale=scale, padding=config.padding)))
            channels = width
        return Stages(stages)
    if isinstance(stem, ConvStem):
        _check_groups(config.width, CONV_GROUPS, name="width")
        block = ConvBlock(
            channels,
            config.width,
            convolutions=stem.convolutions,
            groups=CONV_GROUPS,
            activation=stem.activation,
        )
        return DownStage(block, PatchMerge(config.width, config.width, scale=stem.scale, padding=config.padding))
    return nn.Linear(channels, config.width)


def build_head_stages(config: EarthformerConfig) -> nn.Module:
    """Return tokens of the finest level to features of pixels: ``[N, h, w, D] -> [N, H, W, head_width]``."""
    stem, grids, width = config.stem, stem_grids(config), config.width
    if isinstance(stem, StackConvStem):
        stages = []
        for grid, narrower, count in zip(grids[-2::-1], stem.widths[::-1], stem.convolutions[::-1], strict=True):
            block = _stack_block(width, narrower, convolutions=count, activation=stem.activation)
            stages.append(UpStage(UpSample(width, width, grid=grid), block))
            width = narrower
        return Stages(stages)
    if isinstance(stem, ConvStem):
        block = ConvBlock(
            width, width, convolutions=stem.head_convolutions, groups=CONV_GROUPS, activation=stem.activation
        )
        return UpStage(UpSample(width, width, grid=grids[0]), block)
    return nn.Identity()


def head_width(config: EarthformerConfig) -> int:
    """Return the features of a pixel before the last projection."""
    return config.stem.widths[0] if isinstance(config.stem, StackConvStem) else config.width


def stem_scales(config: EarthformerConfig) -> tuple[int, ...]:
    """Return by how much each merge of the stem makes the grid coarser."""
    stem = config.stem
    return stem.scales if isinstance(stem, StackConvStem) else (stem.scale,) if isinstance(stem, ConvStem) else ()


def stem_grids(config: EarthformerConfig) -> list[Grid]:
    """Return the grids (H, W) of the pixels and after each merge of the stem.

    Raises:
        ValueError: the configuration leaves the grid open.
    """
    if config.grid is None:
        raise ValueError("model.grid is not set: Earthformer is built for one grid, (H, W) in pixels")
    grids: list[Grid] = [config.grid]
    for scale in stem_scales(config):
        grids.append(merged(grids[-1], scale))
    return grids


def _stack_block(width_in: int, width_out: int, *, convolutions: int, activation: str) -> ConvBlock:
    groups = max(1, width_out // STACK_CHANNELS_PER_GROUP)
    _check_groups(width_out, groups, name="stem.widths")
    return ConvBlock(width_in, width_out, convolutions=convolutions, groups=groups, activation=activation)


def _check_groups(width: int, groups: int, *, name: str) -> None:
    if width % groups:
        raise ValueError(f"model.{name} holds {width}, which {groups} groups of the stem's norm do not divide")
