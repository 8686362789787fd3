"""From pixels to tokens and back: the down-sampling stem and the stages of the head that mirror it."""

from torch import Tensor, nn

from simcast_hpc.config import ConvStem, EarthformerConfig, StackConvStem

from .activations import OVERWRITING
from .merge import Grid, PatchMerge, merged
from .upsample import UpSample

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
