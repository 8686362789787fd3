"""SimVP: a convolutional model of a spatial encoder, a translator over time and a spatial decoder.

Source: Gao et al., "SimVP: Simpler yet Better Video Prediction" (CVPR 2022), in the variant that
OpenSTL calls IncepU and SimCast (arXiv 2510.07953) uses as its backbone. The encoder and decoder process frames as a
batch; the translator has the frames of a sample in its channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import SimVPConfig
from simcast_kernels.dispatch import follows_cuda

from .group_norm_silu import channels_last_on_cuda, group_norm_leaky_relu, group_norm_silu
from .layers import Fp32Conv2d

SPATIAL_NORM_GROUPS = 2
LEAKY_SLOPE = 0.2


class SpatialBlock(nn.Module):
    """Convolution, group norm, SiLU; ``stride`` 2 halves H and W. ``[N, C, H, W] -> [N, D, H/s, W/s]``."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, stride: int, channels_last: bool):
        super().__init__()
        self.channels_last = channels_last
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.GroupNorm(SPATIAL_NORM_GROUPS, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        return group_norm_silu(self.conv(_with_layout(x, self.channels_last)), self.norm)


class UpsamplingBlock(nn.Module):
    """Convolution to 4D channels, pixel shuffle, group norm, SiLU: ``[N, D, H, W] -> [N, D, 2H, 2W]``."""

    def __init__(self, channels: int, *, kernel: int, channels_last: bool):
        super().__init__()
        self.channels_last = channels_last
        self.expand = nn.Conv2d(channels, 4 * channels, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(SPATIAL_NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features on the finer grid."""
        expanded = self.expand(_with_layout(x, self.channels_last))
        return group_norm_silu(_pixel_shuffle(expanded, self.channels_last), self.norm)


class SpatialEncoder(nn.Module):
    """Encode frames; every second block halves the grid: ``[N, C, H, W] -> [N, D, H/f, W/f]``."""

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
        """Return the latents of all frames, and the features of the first block for the skip connection.

        Args:
            x: ``[N, C, H, W]``, the frames of ``batch`` consecutive samples.
            batch: B.
            keep: K, number of frames of each sample whose features are returned.

        Returns:
            ``[N, D, H/f, W/f]`` and ``[B * K, D, H, W]``.
        """
        first, *rest = self.blocks
        features = latent = first(x)
        for block in rest:
            latent = block(latent)
        return latent, features.unflatten(0, (batch, -1))[:, :keep].flatten(0, 1)


class SpatialDecoder(nn.Module):
    """Mirror of the encoder; its last block also receives the first features of the encoder: ``-> [N, D, H, W]``."""

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
        return last(latent.add_(skip))  # in place: the previous block saves only its input for backward


class InceptionBranch(nn.Module):
    """Grouped convolution, group norm, leaky ReLU, sum with other branches: ``[N, C, H, W] -> [N, D, H, W]``."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups)
        self.norm = nn.GroupNorm(groups, channels_out)

    def forward(self, x: Tensor, total: Tensor | None = None, *, in_place: bool = False) -> Tensor:
        """Return the activated features, added to ``total``, which may be overwritten with ``in_place``."""
        return group_norm_leaky_relu(self.conv(x), self.norm, slope=LEAKY_SLOPE, total=total, in_place=in_place)


class InceptionBlock(nn.Module):
    """A 1x1 convolution to fewer channels, followed by the sum of branches with several kernel sizes."""

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
        x = self.reduce(_with_layout(x, self.channels_last))
        first, *rest = self.branches
        total = first(x, None, in_place=False)
        for i, branch in enumerate(rest):
            # The first sum allocates, because a branch may save its output for backward; the others are in place.
            total = branch(x, total, in_place=i > 0)
        return total


class Translator(nn.Module):
    """A UNet of inception blocks on one grid: ``[B, T * D, h, w] -> [B, T * D, h, w]``.

    It maps the features of the input frames to those of the next T frames. Decoder block i > 0 also reads encoder block
    ``blocks - 1 - i``.
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
        """Return the features of the next frames."""
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        skips.pop()  # the deepest features are the input of the decoder
        first, *rest = self.decoder
        x = first(x)
        for block in rest:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return x


class SimVP(nn.Module):
    """SimVP with the Inception-UNet translator: ``[B, T, C, H, W] -> [B, T', C', H, W]``, fp32 out.

    One pass predicts T frames from T. For T' < T only the first T' are decoded. For T' > T the model is rolled out on
    its own predictions and the last block is truncated (as in OpenSTL's SimVP method), which requires C' = C.
    Predictions are unbounded: no activation follows the head.

    Args:
        config: the ``model`` section of a run's configuration.
        frames_in: T.
        frames_out: T'.
        channels_in: C.
        channels_out: C'.

    Raises:
        ValueError: the sizes are inconsistent; the message names the field and a valid value.

    Source: Gao et al. (CVPR 2022, arXiv 2206.05099). SimCast (arXiv 2510.07953) specifies 2 spatial and 4
    temporal blocks; the widths are those of OpenSTL's SEVIR configuration. Weights have torch's default initialization
    of ``Conv2d``, from its global generator.
    """

    def __init__(
        self, config: SimVPConfig, *, frames_in: int, frames_out: int, channels_in: int = 1, channels_out: int = 1
    ):
        super().__init__()
        sizes = {"frames_in": frames_in, "frames_out": frames_out}
        _check_sizes(config, **sizes, channels_in=channels_in, channels_out=channels_out)
        self.frames_in, self.frames_out, self.channels_in = frames_in, frames_out, channels_in
        self.channels_last = config.channels_last
        self.downsampling = 2 ** (config.spatial_blocks // 2)
        self.encoder = SpatialEncoder(config, channels=channels_in)
        self.translator = Translator(config, channels=frames_in * config.hidden_spatial)
        self.decoder = SpatialDecoder(config)
        self.head = Fp32Conv2d(config.hidden_spatial, channels_out, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Forecast the next frames.

        Args:
            frames: ``[B, T, C, H, W]``, floating point, in [0, 1]; H and W multiples of ``downsampling``. Cast to
                the dtype of the weights.

        Returns:
            ``[B, T', C', H, W]``, fp32, in the units of the input.

        Raises:
            TypeError: ``frames`` is not floating point.
            ValueError: ``frames`` has the wrong number of axes, frames or channels, or a grid that is not divisible.
        """
        self._check_frames(frames)
        blocks: list[Tensor] = []
        remaining = self.frames_out
        while remaining > 0:
            frames = self._next_frames(frames, keep=min(remaining, self.frames_in))
            blocks.append(frames)
            remaining -= self.frames_in
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _next_frames(self, frames: Tensor, *, keep: int) -> Tensor:
        """Return the first ``keep`` of the T frames that follow ``[B, T, C, H, W]``."""
        batch = frames.shape[0]
        frames = frames.to(next(self.encoder.parameters()).dtype)
        latent, skip = self.encoder(frames.flatten(0, 1), batch=batch, keep=keep)
        translated = self.translator(_frames_to_channels(latent, batch, self.channels_last))
        translated = translated.unflatten(1, (self.frames_in, -1))[:, :keep]
        features = self.decoder(translated.flatten(0, 1), skip)
        return self.head(features).unflatten(0, (batch, keep))

    def _check_frames(self, frames: Tensor) -> None:
        shape, factor = tuple(frames.shape), self.downsampling
        if frames.ndim != 5:
            raise ValueError(
                f"frames of shape {shape} have {frames.ndim} axes; SimVP requires "
                f"[B, {self.frames_in}, {self.channels_in}, H, W]"
            )
        if not frames.is_floating_point():
            raise TypeError(
                f"frames have dtype {frames.dtype}; SimVP requires floating point in [0, 1]: divide uint8 values by 255"
            )
        if shape[1] != self.frames_in:
            raise ValueError(
                f"frames of shape {shape} have {shape[1]} frames; SimVP requires frames_in={self.frames_in}"
            )
        if shape[2] != self.channels_in:
            raise ValueError(
                f"frames of shape {shape} have {shape[2]} channels; SimVP requires channels_in={self.channels_in}"
            )
        if shape[3] % factor or shape[4] % factor or 0 in shape:
            raise ValueError(
                f"frames of shape {shape} do not fit SimVP; it requires H and W to be positive multiples of {factor}, "
                "and B at least 1"
            )


def _with_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` in channels-last memory if requested; free if it already is.

    Called in every block, because PyTorch's GroupNorm on CUDA returns channels-first memory. After the kernel that
    replaces it, which keeps channels-last memory, nothing is copied. The weights keep their layout: under ZeRO they are
    views of one flat buffer, and convolutions follow the layout of their input.
    """
    if not channels_last:
        return x
    return channels_last_on_cuda(x) if follows_cuda(x) else x.contiguous(memory_format=torch.channels_last)


def _pixel_shuffle(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``[N, 4D, H, W]`` as ``[N, D, 2H, 2W]``, on CUDA in channels-last memory, unlike PyTorch."""
    if not channels_last or not follows_cuda(x) or torch.compiler.is_exporting():
        return F.pixel_shuffle(x, 2)
    pixels = x.permute(0, 2, 3, 1).unflatten(3, (-1, 2, 2))
    return pixels.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _frames_to_channels(x: Tensor, batch: int, channels_last: bool) -> Tensor:
    """Return ``[B * T, D, h, w]`` as ``[B, T * D, h, w]``, in one copy instead of a flatten and a change of layout."""
    frames = x.unflatten(0, (batch, -1))
    if not channels_last:
        return frames.flatten(1, 2)
    return frames.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)


def _check_sizes(config: SimVPConfig, *, frames_in: int, frames_out: int, channels_in: int, channels_out: int) -> None:
    sizes = {"frames_in": frames_in, "frames_out": frames_out, "channels_in": channels_in, "channels_out": channels_out}
    # 1. Lower bounds, channels of a model whose forecasts are fed back
    for name, value in (*sizes.items(), ("model.temporal_blocks", config.temporal_blocks)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if frames_out > frames_in and channels_in != channels_out:
        raise ValueError(
            f"frames_out={frames_out} is more than frames_in={frames_in}, so forecasts are fed back, which requires "
            f"channels_out={channels_out} to equal channels_in={channels_in}"
        )
    if config.spatial_blocks % 2 or config.spatial_blocks < 2:
        raise ValueError(
            f"model.spatial_blocks={config.spatial_blocks} must be even and at least 2, because every second block "
            "halves the grid"
        )
    if not config.inception_kernels:
        raise ValueError("model.inception_kernels is empty; the paper uses (3, 5, 7, 11)")
    for name, kernel in (
        ("spatial_kernel", config.spatial_kernel),
        *(("inception_kernels", kernel) for kernel in config.inception_kernels),
    ):
        if kernel % 2 == 0 or kernel < 1:
            raise ValueError(f"model.{name} contains {kernel}; kernel sizes must be odd to preserve the grid")

    # 2. Divisibility by the groups of norms and convolutions
    if config.hidden_spatial % SPATIAL_NORM_GROUPS:
        raise ValueError(
            f"model.hidden_spatial={config.hidden_spatial} must be a multiple of {SPATIAL_NORM_GROUPS}, the groups of "
            "the spatial group norm"
        )
    if config.hidden_temporal % (2 * config.groups):
        raise ValueError(
            f"model.hidden_temporal={config.hidden_temporal} must be a multiple of 2 x model.groups = "
            f"{2 * config.groups}"
        )
    if (frames_in * config.hidden_spatial) % config.groups:
        raise ValueError(
            f"frames_in x model.hidden_spatial = {frames_in} x {config.hidden_spatial} must be a multiple of "
            f"model.groups={config.groups}; use a hidden_spatial that is a multiple of it"
        )
