"""Which network, and its sizes; ``kind`` tells one from another, and a bare name stands for its defaults."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, PlainValidator, PositiveInt, Tag, model_validator

from .yaml_files import StrictModel

Activation = Literal["gelu", "leaky", "relu", "silu"]
Probability = Annotated[float, Field(ge=0, lt=1)]


class SimVPConfig(StrictModel):
    """SimVP with the Inception-UNet translator (Gao et al. 2022); by default the SEVIR size, 9.25 M parameters."""

    title: ClassVar[str] = "SimVP"
    kind: Literal["simvp"] = "simvp"
    hidden_spatial: PositiveInt = 64
    hidden_temporal: PositiveInt = 256
    spatial_blocks: PositiveInt = 2
    temporal_blocks: PositiveInt = 4
    spatial_kernel: PositiveInt = 3
    inception_kernels: tuple[PositiveInt, ...] = (3, 5, 7, 11)
    groups: PositiveInt = 8
    channels_last: bool = True


class StackConvStem(StrictModel):
    """Down-sampling in stages, each ``convolutions`` 3x3 convolutions and a patch merge by ``scales``.

    The head mirrors it. Stage ``i`` has ``widths[i]`` features; the last is the width of the finest level.
    """

    kind: Literal["stack_conv"] = "stack_conv"
    widths: tuple[PositiveInt, ...] = (16, 64, 128)
    scales: tuple[PositiveInt, ...] = (3, 2, 2)
    convolutions: tuple[PositiveInt, ...] = (2, 2, 2)
    activation: Activation = "leaky"

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        lengths = {len(self.widths), len(self.scales), len(self.convolutions)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"model.stem.widths, scales and convolutions hold {len(self.widths)}, {len(self.scales)} and "
                f"{len(self.convolutions)} values; give one of each per stage, such as 3"
            )
        return self


class ConvStem(StrictModel):
    """One stage: 3x3 convolutions and a patch merge by ``scale``; the head up-samples and convolves."""

    kind: Literal["conv"] = "conv"
    scale: PositiveInt = 4
    convolutions: PositiveInt = 1
    head_convolutions: PositiveInt = 2
    activation: Activation = "leaky"


class NoStem(StrictModel):
    """No down-sampling: a pixel is a token, projected to the width of the finest level."""

    kind: Literal["none"] = "none"


def _stem_kind(value: Any) -> Any:
    return value.get("kind", "stack_conv") if isinstance(value, dict) else getattr(value, "kind", None)


_STEMS = "kind is unknown; known kinds are conv, none, stack_conv"
StemConfig = Annotated[
    Annotated[StackConvStem, Tag("stack_conv")] | Annotated[ConvStem, Tag("conv")] | Annotated[NoStem, Tag("none")],
    Discriminator(_stem_kind, custom_error_type="unknown_kind", custom_error_message=_STEMS),
]


class GlobalVectorConfig(StrictModel):
    """The vectors that all cuboids attend to; ``count`` 0 is none.

    ``separate_projections`` gives the three kinds of attention that involve them their own weights.
    ``self_attention`` lets the vectors see one another, ``feed_forward`` gives them a feed-forward of their own.
    ``in_decoder`` and ``in_cross_attention`` show them to the decoder's attentions; ``updated_in_decoder`` hands on
    what a decoder block made of them.
    """

    count: int = Field(default=8, ge=0)
    separate_projections: bool = True
    self_attention: bool = True
    feed_forward: bool = False
    in_decoder: bool = False
    updated_in_decoder: bool = True
    in_cross_attention: bool = False


class EarthformerConfig(StrictModel):
    """Earthformer (Gao et al. 2022); by default the released SEVIR configuration, 8.66 M parameters.

    ``grid`` is (H, W) in pixels: positions and cuboids are made for one grid. Where it is not given a run takes its
    data's, and keeps it in its folder. Level ``i`` has ``width * downsampling**i`` features; depths count blocks per
    level, finest first. A pattern is one name for every level or a tuple of one per level;
    ``models/earthformer/patterns.py`` lists them. ``checkpoint_levels`` are the levels whose blocks are computed again
    in backward instead of kept.
    """

    title: ClassVar[str] = "Earthformer"
    kind: Literal["earthformer"] = "earthformer"
    grid: tuple[PositiveInt, PositiveInt] | None = None
    width: PositiveInt = 128
    heads: PositiveInt = 4
    encoder_depth: tuple[PositiveInt, ...] = (1, 1)
    decoder_depth: tuple[PositiveInt, ...] = (1, 1)
    downsampling: int = Field(default=2, ge=2)
    encoder_pattern: str | tuple[str, ...] = "axial"
    decoder_pattern: str | tuple[str, ...] = "axial"
    cross_pattern: str | tuple[str, ...] = "cross_1x1"
    stem: StemConfig = StackConvStem()
    global_vectors: GlobalVectorConfig = GlobalVectorConfig()
    encoder_feed_forward_between: bool = True
    decoder_feed_forward_between: bool = True
    activation: Activation = "gelu"
    gated: bool = False
    attention_dropout: Probability = 0.1
    projection_dropout: Probability = 0.1
    feed_forward_dropout: Probability = 0.1
    padding: Literal["ignore", "zeros", "nearest"] = "zeros"
    positions: Literal["t+h+w", "t+hw"] = "t+h+w"
    relative_bias: bool = True
    decoder_first_self_attention: bool = False
    decoder_positions: bool = False
    decoder_query: Literal["zeros", "nearest_interp", "last", "mean"] = "zeros"
    cross_last_frames: PositiveInt | None = None
    checkpoint_levels: tuple[int, ...] = ()

    @property
    def levels(self) -> int:
        """Levels of the hierarchy."""
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
                "must both hold one number of blocks per level"
            )
        for name in ("encoder_pattern", "decoder_pattern", "cross_pattern"):
            pattern = getattr(self, name)
            if not isinstance(pattern, str) and len(pattern) != levels:
                raise ValueError(f"model.{name} holds {len(pattern)} names for {levels} levels; give one or {levels}")
        outside = [level for level in self.checkpoint_levels if not 0 <= level < levels]
        if outside:
            raise ValueError(f"model.checkpoint_levels holds {outside[0]}; levels are 0 (finest) to {levels - 1}")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width} must be a multiple of model.heads={self.heads}")
        if isinstance(self.stem, StackConvStem) and self.stem.widths[-1] != self.width:
            raise ValueError(
                f"model.stem.widths ends in {self.stem.widths[-1]}; it must end in model.width={self.width}"
            )
        shown = self.global_vectors.in_decoder or self.global_vectors.in_cross_attention
        if shown and not self.global_vectors.count:
            raise ValueError("model.global_vectors.count=0 leaves nothing to show the decoder; set it to at least 1")
        if self.global_vectors.in_cross_attention and self.global_vectors.separate_projections:
            raise ValueError(
                "model.global_vectors.in_cross_attention=true needs separate_projections: false; no published "
                "result tells what separate ones would compute"
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
