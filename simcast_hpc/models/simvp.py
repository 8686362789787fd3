"""SimVP: a spatial encoder, a translator that mixes time, a spatial decoder; convolutions only.

Source: Gao et al., "SimVP: Simpler yet Better Video Prediction" (CVPR 2022), in the form that OpenSTL calls
IncepU and SimCast (arXiv 2510.07953) takes as its backbone. Time is folded into the batch in the encoder and
decoder, and into the channels in the translator.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import SimVPConfig

from .group_norm_silu import normed_silu
from .shared_features import shared_with_first

SPATIAL_NORM_GROUPS = 2
LEAKY_SLOPE = 0.2


class SpatialBlock(nn.Module):
    """Convolution, group normalisation, SiLU; ``stride`` 2 halves H and W. ``[N, C, H, W] -> [N, D, H/s, W/s]``."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, stride: int, channels_last: bool):
        super().__init__()
        self.channels_last = channels_last
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.GroupNorm(SPATIAL_NORM_GROUPS, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        return normed_silu(self.conv(_laid_out(x, self.channels_last)), self.norm)


class UpsamplingBlock(nn.Module):
    """Convolution to 4D channels, pixel shuffle, group normalisation, SiLU: ``[N, D, H, W] -> [N, D, 2H, 2W]``."""

    def __init__(self, channels: int, *, kernel: int, channels_last: bool):
        super().__init__()
        self.channels_last = channels_last
        self.expand = nn.Conv2d(channels, 4 * channels, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(SPATIAL_NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features on the finer grid."""
        return normed_silu(F.pixel_shuffle(self.expand(_laid_out(x, self.channels_last)), 2), self.norm)


class SpatialEncoder(nn.Module):
    """Frame by frame to features; every second block halves the grid. ``[N, C, H, W] -> [N, D, H/f, W/f]``."""

    def __init__(self, config: SimVPConfig, *, channels: int):
        super().__init__()
        width = config.hidden_spatial
        self.blocks = nn.ModuleList(
            SpatialBlock(
                width if i else channels,
                width,
                kernel=config.spatial_kernel,
                stride=2 if i % 2 else 1,
                channels_last=config.channels_last,
            )
            for i in range(config.spatial_blocks)
        )

    def forward(self, x: Tensor, *, batch: int, keep: int) -> tuple[Tensor, Tensor]:
        """Return latents and features of the first block.

        Args:
            x: ``[N, C, H, W]``, the frames of ``batch`` samples one after another.
            batch: B.
            keep: of how many frames of each sample the features are wanted: K.

        Returns:
            ``[N, D, H/f, W/f]`` and ``[B * K, D, H, W]``.
        """
        first, *rest = self.blocks
        latent, skip = shared_with_first(first(x), batch, keep)
        for block in rest:
            latent = block(latent)
        return latent, skip


class SpatialDecoder(nn.Module):
    """The encoder backwards; the last block sees the encoder's first features added. ``-> [N, D, H, W]``."""

    def __init__(self, config: SimVPConfig):
        super().__init__()
        width, kernel, channels_last = config.hidden_spatial, config.spatial_kernel, config.channels_last
        self.blocks = nn.ModuleList(
            SpatialBlock(width, width, kernel=kernel, stride=1, channels_last=channels_last)
            if i % 2
            else UpsamplingBlock(width, kernel=kernel, channels_last=channels_last)
            for i in range(config.spatial_blocks)
        )

    def forward(self, latent: Tensor, skip: Tensor) -> Tensor:
        """Return features ``[N, D, H, W]`` from ``latent [N, D, H/f, W/f]`` and ``skip [N, D, H, W]``."""
        *front, last = self.blocks
        for block in front:
            latent = block(latent)
        return last(latent.add_(skip))  # in place: the block before keeps its input alone


class InceptionBranch(nn.Module):
    """Grouped convolution, group normalisation, leaky ReLU: ``[N, C, H, W] -> [N, D, H, W]``."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups)
        self.norm = nn.GroupNorm(groups, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        # In place: the translator's activations are most of the model's memory, and no backward needs the norm's output
        return F.leaky_relu(self.norm(self.conv(x)), LEAKY_SLOPE, inplace=True)


class InceptionBlock(nn.Module):
    """A 1x1 convolution to fewer channels, then the sum of branches of several kernel sizes."""

    def __init__(self, channels_in: int, channels_out: int, *, config: SimVPConfig):
        super().__init__()
        self.channels_last = config.channels_last
        reduced = config.hidden_temporal // 2
        self.reduce = nn.Conv2d(channels_in, reduced, 1)
        self.branches = nn.ModuleList(
            InceptionBranch(reduced, channels_out, kernel=kernel, groups=config.groups)
            for kernel in config.inception_kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, channels_out, H, W]`` from ``[N, channels_in, H, W]``."""
        x = self.reduce(_laid_out(x, self.channels_last))
        first, *rest = self.branches
        total = first(x)
        for place, branch in enumerate(rest):
            # The first sum is a tensor of its own, since a branch keeps its output; the others are added into it.
            total = total + branch(x) if place == 0 else total.add_(branch(x))
        return total


class Translator(nn.Module):
    """A UNet of inception blocks on one grid: features of all frames to features of all next frames.

    ``[B, T * D, h, w] -> [B, T * D, h, w]``. Decoder block i > 0 also reads encoder block ``blocks - 1 - i``.
    """

    def __init__(self, config: SimVPConfig, *, channels: int):
        super().__init__()
        hidden, blocks = config.hidden_temporal, config.temporal_blocks
        self.encoder = nn.ModuleList(
            InceptionBlock(hidden if i else channels, hidden, config=config) for i in range(blocks)
        )
        self.decoder = nn.ModuleList(
            InceptionBlock(2 * hidden if i else hidden, hidden if i < blocks - 1 else channels, config=config)
            for i in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the translated features."""
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        skips.pop()  # the deepest features go straight into the decoder's first block
        first, *rest = self.decoder
        x = first(x)
        for block in rest:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return x


class Head(nn.Conv2d):
    """The last 1x1 projection: ``[N, D, H, W] -> [N, C, H, W]``, in fp32 or wider whatever it was cast to.

    One bf16 step near 1 is up to half of a radar code out of 255, so everything from here on stays fp32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the frames, fp32 (float64 for a model cast to float64)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        # The meta device, on which a run is checked before any device is touched, knows no autocast.
        wide_only = nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False)
        with wide_only:
            return F.conv2d(input.to(wide), self.weight.to(wide), bias)


class SimVP(nn.Module):
    """SimVP with the Inception-UNet translator: ``[B, T, C, H, W] -> [B, T', C, H, W]``, fp32 out.

    The network proper makes T frames from T. For T' < T only the first T' are decoded; for T' > T the predicted
    block is fed back until T' frames stand, and the last block is cut (the rule of OpenSTL's SimVP method).
    Predictions are not bounded: no activation follows the head.

    Args:
        config: the ``model`` section of a run's configuration.
        frames_in: T.
        frames_out: T'.
        channels: C.

    Raises:
        ValueError: the sizes do not fit one another; the message names the field and a value that would do.

    Source: Gao et al. (CVPR 2022, arXiv 2206.05099). SimCast (arXiv 2510.07953) states 2 spatial and 4 temporal
    blocks; the widths are those of OpenSTL's SEVIR configuration. Weights are drawn as torch's ``Conv2d`` draws
    them, from its global generator alone.
    """

    def __init__(self, config: SimVPConfig, *, frames_in: int, frames_out: int, channels: int = 1):
        super().__init__()
        _check_sizes(config, frames_in=frames_in, frames_out=frames_out, channels=channels)
        self.frames_in, self.frames_out, self.channels = frames_in, frames_out, channels
        self.channels_last = config.channels_last
        self.downsampling = 2 ** (config.spatial_blocks // 2)
        self.encoder = SpatialEncoder(config, channels=channels)
        self.translator = Translator(config, channels=frames_in * config.hidden_spatial)
        self.decoder = SpatialDecoder(config)
        self.head = Head(config.hidden_spatial, channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Forecast the next frames.

        Args:
            frames: ``[B, T, C, H, W]``, floating point, in [0, 1]; H and W multiples of ``downsampling``. Cast to
                the dtype of the weights inside.

        Returns:
            ``[B, T', C, H, W]``, fp32, in the units of the input.

        Raises:
            TypeError: ``frames`` holds integers.
            ValueError: ``frames`` has the wrong number of axes, frames or channels, or a grid that cannot be halved.
        """
        self._check_frames(frames)
        blocks: list[Tensor] = []
        missing = self.frames_out
        while missing > 0:
            frames = self._next_frames(frames, keep=min(missing, self.frames_in))
            blocks.append(frames)
            missing -= self.frames_in
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _next_frames(self, frames: Tensor, *, keep: int) -> Tensor:
        """Return the first ``keep`` of the T frames that follow ``[B, T, C, H, W]``."""
        batch = frames.shape[0]
        frames = frames.to(next(self.encoder.parameters()).dtype)
        latent, skip = self.encoder(frames.flatten(0, 1), batch=batch, keep=keep)
        mixed = self.translator(_time_in_channels(latent, batch, self.channels_last))
        mixed = mixed.unflatten(1, (self.frames_in, -1))[:, :keep]
        features = self.decoder(mixed.flatten(0, 1), skip)
        return self.head(features).unflatten(0, (batch, keep))

    def _check_frames(self, frames: Tensor) -> None:
        shape, factor = tuple(frames.shape), self.downsampling
        wanted = f"[B, {self.frames_in}, {self.channels}, H, W]"
        if frames.ndim != 5:
            raise ValueError(f"SimVP wants frames {wanted}, got {frames.ndim} axes: {shape}")
        if not frames.is_floating_point():
            raise TypeError(
                f"SimVP wants floating-point frames in [0, 1], got {frames.dtype}; divide codes by 255 first"
            )
        if shape[1] != self.frames_in:
            raise ValueError(f"SimVP was built for frames_in={self.frames_in}, got {shape[1]} frames in {shape}")
        if shape[2] != self.channels:
            raise ValueError(f"SimVP was built for channels={self.channels}, got {shape[2]} channels in {shape}")
        if shape[3] % factor or shape[4] % factor or 0 in shape:
            raise ValueError(
                f"SimVP halves the grid {factor.bit_length() - 1} time(s), so H and W must be positive multiples of "
                f"{factor} and B at least 1; got shape {shape}"
            )


def _laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` in channels-last memory if asked; free where it already is.

    Asked of every block, because GroupNorm on CUDA returns channels-first memory. The weights stay as they are:
    under ZeRO they are views of one flat buffer, and convolutions take the layout of their input.
    """
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _time_in_channels(x: Tensor, batch: int, channels_last: bool) -> Tensor:
    """Return ``[B * T, D, h, w]`` as ``[B, T * D, h, w]``: one copy where ``flatten`` and a layout would make two."""
    frames = x.unflatten(0, (batch, -1))
    if not channels_last:
        return frames.flatten(1, 2)
    return frames.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)


def _check_sizes(config: SimVPConfig, *, frames_in: int, frames_out: int, channels: int) -> None:
    for name, value in (("frames_in", frames_in), ("frames_out", frames_out), ("channels", channels)):
        if value < 1:
            raise ValueError(f"SimVP: {name}={value} must be at least 1")
    if config.spatial_blocks % 2 or config.spatial_blocks < 2:
        raise ValueError(
            f"model.spatial_blocks={config.spatial_blocks} must be even and at least 2: every second block halves "
            "the grid"
        )
    if config.temporal_blocks < 1:
        raise ValueError(f"model.temporal_blocks={config.temporal_blocks} must be at least 1")
    if not config.inception_kernels:
        raise ValueError("model.inception_kernels is empty; the paper's kernels are (3, 5, 7, 11)")
    for name, kernel in (
        ("spatial_kernel", config.spatial_kernel),
        *(("inception_kernels", kernel) for kernel in config.inception_kernels),
    ):
        if kernel % 2 == 0 or kernel < 1:
            raise ValueError(f"model.{name} holds {kernel}; kernels must be odd so that the grid keeps its size")
    if config.hidden_spatial % SPATIAL_NORM_GROUPS:
        raise ValueError(
            f"model.hidden_spatial={config.hidden_spatial} must be a multiple of {SPATIAL_NORM_GROUPS}, the groups of "
            "the spatial normalisation"
        )
    if config.hidden_temporal % (2 * config.groups):
        raise ValueError(
            f"model.hidden_temporal={config.hidden_temporal} must be a multiple of 2 x model.groups = "
            f"{2 * config.groups}"
        )
    if (frames_in * config.hidden_spatial) % config.groups:
        raise ValueError(
            f"frames_in x model.hidden_spatial = {frames_in} x {config.hidden_spatial} must be a multiple of "
            f"model.groups={config.groups}; a hidden_spatial that is one always does"
        )
