"""The forecasting network and its sizes; ``kind`` selects the network, and a bare name selects its defaults."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PlainValidator, PositiveInt, Tag, model_validator

from .stage_sections import FORECASTING, Added, Operational, Section, StrictModel, Unit

BaseKind = Literal["none", "persistence", "extrapolation"]
Activation = Literal["gelu", "leaky", "relu", "silu"]
Probability = Annotated[float, Field(ge=0, lt=1)]


class SimVPConfig(Section, read_by=FORECASTING):
    """SimVP with the Inception-UNet translator (Gao et al. 2022); the default is the SEVIR size, 9.25 M parameters."""

    kind: Literal["simvp"] = "simvp"
    """Selects SimVP."""
    base: Added[BaseKind] = "none"
    """Base forecast that is added to the output of the network and is also an input: none (`none`), the last frame
    (`persistence`), or the last frame advected along the optical flow of the input frames (`extrapolation`)."""
    noise_channels: Added[Annotated[int, Unit("channels")]] = Field(default=0, ge=0)
    """Number of input channels of standard normal noise. With noise each forward pass is one ensemble member; it
    requires ``loss.crps_weight`` and the stage `direct` or `student`."""
    hidden_spatial: Annotated[PositiveInt, Unit("channels")] = 64
    """Channels of encoder and decoder."""
    hidden_temporal: Annotated[PositiveInt, Unit("channels")] = 256
    """Channels of the translator."""
    spatial_blocks: Annotated[PositiveInt, Unit("blocks")] = 2
    """Number of convolution blocks in the encoder and in the decoder; every second block halves or doubles the grid."""
    temporal_blocks: Annotated[PositiveInt, Unit("blocks")] = 4
    """Number of blocks of the translator."""
    spatial_kernel: Annotated[PositiveInt, Unit("pixels")] = 3
    """Kernel size of the convolutions in encoder and decoder."""
    inception_kernels: Annotated[tuple[PositiveInt, ...], Unit("pixels")] = (3, 5, 7, 11)
    """Kernel sizes of the parallel convolutions of the translator."""
    groups: Annotated[PositiveInt, Unit("groups")] = 8
    """Number of groups in the grouped convolutions and the group normalization of the translator."""
    channels_last: Operational[bool] = True
    """Store activations with channels last (NHWC)."""

    @property
    def title(self) -> str:
        """Name of the network, and of its base forecast if it has one."""
        return "SimVP" if self.base == "none" else f"SimVP + {self.base}"


class StackConvStem(StrictModel):
    """Downsampling in stages, each of 3x3 convolutions and a patch merge; the head mirrors it."""

    kind: Literal["stack_conv"] = "stack_conv"
    """Selects the stem with several stages."""
    widths: Annotated[tuple[PositiveInt, ...], Unit("channels")] = (16, 64, 128)
    """Channels per stage; the last value must equal ``model.width``."""
    scales: Annotated[tuple[PositiveInt, ...], Unit("1")] = (3, 2, 2)
    """Downsampling factor per stage."""
    convolutions: Annotated[tuple[PositiveInt, ...], Unit("layers")] = (2, 2, 2)
    """Number of convolutions per stage."""
    activation: Activation = "leaky"
    """Activation function."""

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        lengths = {len(self.widths), len(self.scales), len(self.convolutions)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"model.stem.widths, scales and convolutions have {len(self.widths)}, {len(self.scales)} and "
                f"{len(self.convolutions)} values; give each the same number of values, one per stage"
            )
        return self


class ConvStem(StrictModel):
    """Downsampling in one stage of 3x3 convolutions and a patch merge; the head upsamples and convolves."""

    kind: Literal["conv"] = "conv"
    """Selects the stem with one stage."""
    scale: Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], Unit("1")] = 4
    """Downsampling factor of both axes, or factors of H and W."""
    convolutions: Annotated[PositiveInt, Unit("layers")] = 1
    """Number of convolutions before the patch merge."""
    head_convolutions: Annotated[int, Unit("layers")] = Field(default=2, ge=0)
    """Number of convolutions after upsampling."""
    activation: Activation = "leaky"
    """Activation function."""


class NoStem(StrictModel):
    """No downsampling: every pixel is a token, projected to the width of the finest level."""

    kind: Literal["none"] = "none"
    """Selects no stem."""


def _stem_kind(value: Any) -> Any:
    return value.get("kind", "stack_conv") if isinstance(value, dict) else getattr(value, "kind", None)


_STEMS = "kind is unknown; known kinds are conv, none, stack_conv"
StemConfig = Annotated[
    Annotated[StackConvStem, Tag("stack_conv")] | Annotated[ConvStem, Tag("conv")] | Annotated[NoStem, Tag("none")],
    Discriminator(_stem_kind, custom_error_type="unknown_kind", custom_error_message=_STEMS),
]


class GlobalVectorConfig(StrictModel):
    """Global vectors, to which all cuboids attend."""

    count: Annotated[int, Unit("vectors")] = Field(default=8, ge=0)
    """Number of global vectors; 0 disables them."""
    separate_projections: bool = True
    """Use separate projection weights for each of the three kinds of attention that involve global vectors."""
    self_attention: bool = True
    """Let global vectors attend to one another."""
    feed_forward: bool = False
    """Apply a feed-forward layer to global vectors."""
    in_decoder: bool = False
    """Let the self-attention of the decoder attend to global vectors."""
    updated_in_decoder: bool = True
    """Pass the global vectors that a decoder block updated to the next block."""
    in_cross_attention: bool = False
    """Let the cross-attention of the decoder attend to global vectors."""


class EarthformerConfig(Section, read_by=FORECASTING):
    """Earthformer (Gao et al. 2022); the default is the released SEVIR configuration, 8.66 M parameters."""

    kind: Literal["earthformer"] = "earthformer"
    """Selects Earthformer."""
    base: Added[BaseKind] = "none"
    """Base forecast that is added to the output of the network and is also an input: none (`none`), the last frame
    (`persistence`), or the last frame advected along the optical flow of the input frames (`extrapolation`)."""
    noise_channels: Added[Annotated[int, Unit("channels")]] = Field(default=0, ge=0)
    """Number of input channels of standard normal noise. With noise each forward pass is one ensemble member; it
    requires ``loss.crps_weight`` and the stage `direct` or `student`."""
    grid: Operational[Annotated[tuple[PositiveInt, PositiveInt] | None, Unit("pixels")]] = None
    """Height and width of the grid for position encodings and cuboids; null uses the grid of the data."""
    width: Annotated[PositiveInt, Unit("channels")] = 128
    """Channels of the finest level; level i has ``width * downsampling**i`` channels."""
    heads: Annotated[PositiveInt, Unit("heads")] = 4
    """Number of attention heads; must divide ``width``."""
    encoder_depth: Annotated[tuple[PositiveInt, ...], Unit("blocks")] = (1, 1)
    """Number of blocks per level of the encoder, finest level first."""
    decoder_depth: Annotated[tuple[PositiveInt, ...], Unit("blocks")] = (1, 1)
    """Number of blocks per level of the decoder, finest level first."""
    downsampling: Annotated[int, Unit("1")] = Field(default=2, ge=2)
    """Downsampling factor between levels."""
    encoder_pattern: str | tuple[str, ...] = "axial"
    """Cuboid pattern of the encoder, one for all levels or one per level (``models/earthformer/patterns.py``)."""
    decoder_pattern: str | tuple[str, ...] = "axial"
    """Cuboid pattern of the self-attention of the decoder, one for all levels or one per level."""
    cross_pattern: str | tuple[str, ...] = "cross_1x1"
    """Cuboid pattern of the cross-attention, one for all levels or one per level."""
    stem: StemConfig = StackConvStem()
    """Downsampling before the encoder and upsampling after the decoder."""
    global_vectors: GlobalVectorConfig = GlobalVectorConfig()
    """Vectors that exchange information between all cuboids."""
    encoder_feed_forward_between: bool = True
    """Apply a feed-forward layer after each cuboid attention of an encoder block, not only after the last."""
    decoder_feed_forward_between: bool = True
    """Apply a feed-forward layer after each cuboid attention of a decoder block, not only after the last."""
    activation: Activation = "gelu"
    """Activation function of the feed-forward layers."""
    gated: bool = False
    """Use gated feed-forward layers."""
    attention_dropout: Annotated[Probability, Unit("1")] = 0.1
    """Dropout probability of the attention weights."""
    projection_dropout: Annotated[Probability, Unit("1")] = 0.1
    """Dropout probability after the output projection of an attention layer."""
    feed_forward_dropout: Annotated[Probability, Unit("1")] = 0.1
    """Dropout probability in the feed-forward layers."""
    padding: Literal["ignore", "zeros", "nearest"] = "zeros"
    """How a grid is padded to a multiple of the cuboid size."""
    positions: Literal["t+h+w", "t+hw"] = "t+h+w"
    """Position encoding: one table per axis (`t+h+w`), or one for time and one for the grid (`t+hw`)."""
    relative_bias: bool = True
    """Add a learned bias that depends on the relative position of two tokens."""
    decoder_first_self_attention: bool = False
    """Start the decoder with self-attention before the first cross-attention."""
    decoder_positions: bool = False
    """Add a position encoding at every level of the decoder."""
    decoder_query: Literal["zeros", "nearest_interp", "last", "mean"] = "zeros"
    """Initial query of the decoder: only position encodings (`zeros`), or the encoder output repeated to the output
    frames (`nearest_interp`), its last frame (`last`), or its mean over frames (`mean`)."""
    cross_last_frames: Annotated[PositiveInt | None, Unit("frames")] = None
    """Number of last encoder frames to which the cross-attention attends; null uses all frames."""
    checkpoint_levels: Operational[Annotated[tuple[int, ...], Unit("1")]] = ()
    """Indices of the levels, 0 is the finest, whose activations are recomputed in the backward pass (activation
    checkpointing)."""

    @property
    def title(self) -> str:
        """Name of the network, and of its base forecast if it has one."""
        return "Earthformer" if self.base == "none" else f"Earthformer + {self.base}"

    @property
    def levels(self) -> int:
        """Number of levels of the hierarchy."""
        return len(self.encoder_depth)

    def width_at(self, level: int) -> int:
        """Return the features of a token at ``level``, 0 the finest."""
        return self.width * self.downsampling**level

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.encoder_depth)
        if levels == 0 or len(self.decoder_depth) != levels:
            raise ValueError(
                f"model.encoder_depth={list(self.encoder_depth)} and model.decoder_depth={list(self.decoder_depth)} "
                "must have the same number of values, one number of blocks per level"
            )
        for name in ("encoder_pattern", "decoder_pattern", "cross_pattern"):
            pattern = getattr(self, name)
            if not isinstance(pattern, str) and len(pattern) != levels:
                raise ValueError(f"model.{name} has {len(pattern)} names for {levels} levels; give 1 or {levels}")
        outside = [level for level in self.checkpoint_levels if not 0 <= level < levels]
        if outside:
            raise ValueError(f"model.checkpoint_levels contains {outside[0]}; levels are 0 (finest) to {levels - 1}")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width} must be a multiple of model.heads={self.heads}")
        if isinstance(self.stem, StackConvStem) and self.stem.widths[-1] != self.width:
            raise ValueError(
                f"model.stem.widths ends in {self.stem.widths[-1]}; it must end in model.width={self.width}"
            )
        vectors = self.global_vectors
        if (vectors.in_decoder or vectors.in_cross_attention) and not vectors.count:
            raise ValueError(
                "model.global_vectors.count=0 has no vectors for the decoder to attend to; set it to at least 1"
            )
        if vectors.in_cross_attention and vectors.separate_projections:
            raise ValueError(
                "model.global_vectors.in_cross_attention=true requires model.global_vectors.separate_projections=false"
            )
        return self


_KINDS: dict[str, type[SimVPConfig] | type[EarthformerConfig]] = {
    "earthformer": EarthformerConfig,
    "simvp": SimVPConfig,
}
_UNKNOWN = f"kind is unknown; known kinds are {', '.join(sorted(_KINDS))}"


def _kind(value: Any) -> Any:
    if isinstance(value, str):
        return "name"
    return value.get("kind", "simvp") if isinstance(value, dict) else getattr(value, "kind", None)


def _defaults(name: str) -> SimVPConfig | EarthformerConfig:
    if name not in _KINDS:
        raise ValueError(f"model: {_UNKNOWN}, got {name!r}")
    return _KINDS[name]()


ModelConfig = Annotated[
    Annotated[SimVPConfig, Tag("simvp")]
    | Annotated[EarthformerConfig, Tag("earthformer")]
    | Annotated[SimVPConfig, PlainValidator(_defaults), Tag("name")],
    Discriminator(_kind, custom_error_type="unknown_kind", custom_error_message=_UNKNOWN),
]
