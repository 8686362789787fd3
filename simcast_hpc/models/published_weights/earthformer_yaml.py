"""The public configuration of Earthformer, field by field, as ours."""

from collections.abc import Mapping
from typing import Any

from simcast_hpc.config import ConvStem, EarthformerConfig, GlobalVectorConfig, StackConvStem

from .architecture import OurForm

# The released SEVIR configuration (earthformer_sevir_v1.yaml), 8,659,677 parameters.
RELEASED: dict[str, Any] = {
    "input_shape": [13, 384, 384, 1],
    "target_shape": [12, 384, 384, 1],
    "base_units": 128,
    "num_heads": 4,
    "enc_depth": [1, 1],
    "dec_depth": [1, 1],
    "enc_use_inter_ffn": True,
    "dec_use_inter_ffn": True,
    "dec_hierarchical_pos_embed": False,
    "dec_use_first_self_attn": False,
    "dec_cross_last_n_frames": None,
    "downsample": 2,
    "self_pattern": "axial",
    "cross_self_pattern": "axial",
    "cross_pattern": "cross_1x1",
    "num_global_vectors": 8,
    "use_global_self_attn": True,
    "separate_global_qkv": True,
    "use_global_vector_ffn": False,
    "use_dec_self_global": False,
    "dec_self_update_global": True,
    "use_dec_cross_global": False,
    "attn_drop": 0.1,
    "proj_drop": 0.1,
    "ffn_drop": 0.1,
    "ffn_activation": "gelu",
    "gated_ffn": False,
    "padding_type": "zeros",
    "pos_embed_type": "t+h+w",
    "use_relative_pos": True,
    "z_init_method": "zeros",
    "initial_downsample_type": "stack_conv",
    "initial_downsample_activation": "leaky",
    "initial_downsample_stack_conv_num_layers": 3,
    "initial_downsample_stack_conv_dim_list": [16, 64, 128],
    "initial_downsample_stack_conv_downscale_list": [3, 2, 2],
    "initial_downsample_stack_conv_num_conv_list": [2, 2, 2],
}

# What shapes the network and may vary; all of it must be stated, so that nothing rests on a default of theirs.
_REQUIRED = (
    "input_shape", "target_shape", "base_units", "enc_depth", "dec_depth", "enc_use_inter_ffn", "dec_use_inter_ffn",
    "dec_hierarchical_pos_embed", "downsample", "num_global_vectors", "use_dec_self_global", "dec_self_update_global",
    "use_dec_cross_global", "use_global_vector_ffn", "use_global_self_attn", "separate_global_qkv",
    "dec_cross_last_n_frames", "attn_drop", "proj_drop", "ffn_drop", "num_heads", "ffn_activation", "gated_ffn",
    "padding_type", "pos_embed_type", "use_relative_pos", "dec_use_first_self_attn", "z_init_method",
    "initial_downsample_type", "initial_downsample_activation",
)  # fmt: skip
_REQUIRED_BY_STEM = {
    "stack_conv": (
        "initial_downsample_stack_conv_num_layers", "initial_downsample_stack_conv_dim_list",
        "initial_downsample_stack_conv_downscale_list", "initial_downsample_stack_conv_num_conv_list",
    ),
    "conv": ("initial_downsample_scale", "initial_downsample_conv_layers", "final_upsample_conv_layers"),
}  # fmt: skip
# Options that we do not build, and the one value of each that we do.
_FIXED: dict[str, Any] = {
    "scale_alpha": 1.0,
    "block_units": None,
    "downsample_type": "patch_merge",
    "upsample_type": "upsample",
    "upsample_kernel_size": 3,
    "global_dim_ratio": 1,
    "norm_layer": "layer_norm",
    "self_attn_use_final_proj": True,
    "dec_cross_start": 0,
}
# The released YAML files name one pattern for all levels, and their scripts repeat it.
_PATTERNS = {
    "enc_attn_patterns": "self_pattern",
    "dec_self_attn_patterns": "cross_self_pattern",
    "dec_cross_attn_patterns": "cross_pattern",
}
# How weights are drawn, what is kept for backward, and cuboids that the public code reads without patterns alone.
_IGNORED = frozenset(
    {
        "checkpoint_level", "attn_linear_init_mode", "ffn_linear_init_mode", "conv_init_mode",
        "down_up_linear_init_mode", "norm_init_mode", "data_channels", "enc_cuboid_size", "enc_cuboid_strategy",
        "enc_shift_size", "dec_self_cuboid_size", "dec_self_cuboid_strategy", "dec_self_shift_size",
        "dec_cross_cuboid_hw", "dec_cross_cuboid_strategy", "dec_cross_shift_hw", "dec_cross_n_temporal",
    }
)  # fmt: skip


def earthformer_stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a public configuration, lists as tuples; shapes by axis.

    Raises:
        ValueError: a field is missing, unknown, or asks for what we do not build; the message names it.
    """
    _reject_unbuilt(config)
    stated: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }
    for names in _REQUIRED_BY_STEM.values():
        for name in names:
            stated.setdefault(name, None)
    for name in ("input_shape", "target_shape"):
        shape = stated[name]
        if not isinstance(shape, tuple) or len(shape) != 4:
            raise ValueError(f"{name}={shape!r} of the public Earthformer must be [T, H, W, C]")
        stated |= {f"{name} {axis}": length for axis, length in zip("THWC", shape, strict=True)}
    stated["num_global_vectors"] = int(stated["num_global_vectors"])
    for name, short in _PATTERNS.items():
        stated[name] = stated.get(name) or stated[short]
    _reject_disagreement(stated)
    return stated


def our_earthformer(config: Mapping[str, Any]) -> OurForm:
    """Return our form of a public configuration.

    Raises:
        ValueError: as :func:`earthformer_stated`, or the sizes do not fit one another.
    """
    stated = earthformer_stated(config)
    return OurForm(
        model=_our_config(stated),
        frames_in=stated["input_shape T"],
        frames_out=stated["target_shape T"],
        channels=stated["input_shape C"],
    )


def _reject_unbuilt(config: Mapping[str, Any]) -> None:
    stem = config.get("initial_downsample_type", "stack_conv")
    if stem not in _REQUIRED_BY_STEM:
        raise ValueError(f"initial_downsample_type={stem!r} is none that we build; those are 'stack_conv' and 'conv'")
    wanted = (*_REQUIRED, *_REQUIRED_BY_STEM[stem])
    for name in wanted:
        if name not in config:
            raise ValueError(f"the public configuration lacks {name}; state every field of the model")
    for name, short in _PATTERNS.items():
        if not (config.get(name) or config.get(short)):
            raise ValueError(f"the public configuration lacks {name} (or {short}); explicit cuboids are not built")
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name}={config[name]!r} is not built here; only {value!r} is")
    stem_fields = {name for names in _REQUIRED_BY_STEM.values() for name in names}
    known = {*_REQUIRED, *stem_fields, *_FIXED, *_IGNORED, *_PATTERNS, *_PATTERNS.values()}
    for name in config:
        if name not in known:
            raise ValueError(f"{name}={config[name]!r} is no field of the public model that we know")


def _reject_disagreement(stated: Mapping[str, Any]) -> None:
    if stated["input_shape"][1:] != stated["target_shape"][1:]:
        raise ValueError(
            f"input_shape={list(stated['input_shape'])} and target_shape={list(stated['target_shape'])} must agree in "
            "all but T"
        )
    if stated["use_dec_cross_global"] and stated["separate_global_qkv"] and stated["num_global_vectors"]:
        raise ValueError("use_dec_cross_global=True with separate_global_qkv=True is not built; one of them is")
    layers = stated.get("initial_downsample_stack_conv_num_layers")
    lists = [stated.get(f"initial_downsample_stack_conv_{name}_list") for name in ("dim", "downscale", "num_conv")]
    if stated["initial_downsample_type"] == "stack_conv" and any(len(values or ()) != layers for values in lists):
        raise ValueError(
            f"initial_downsample_stack_conv_num_layers={layers} must be the length of the dim, downscale and num_conv "
            f"lists, {lists}"
        )


def _our_config(stated: Mapping[str, Any]) -> EarthformerConfig:
    count = stated["num_global_vectors"]
    return EarthformerConfig(
        grid=stated["input_shape"][1:3],
        width=stated["base_units"],
        heads=stated["num_heads"],
        encoder_depth=stated["enc_depth"],
        decoder_depth=stated["dec_depth"],
        downsampling=_scale(stated, "downsample"),
        encoder_pattern=stated["enc_attn_patterns"],
        decoder_pattern=stated["dec_self_attn_patterns"],
        cross_pattern=stated["dec_cross_attn_patterns"],
        stem=_our_stem(stated),
        global_vectors=GlobalVectorConfig(
            count=count,
            separate_projections=stated["separate_global_qkv"],
            self_attention=stated["use_global_self_attn"],
            feed_forward=stated["use_global_vector_ffn"],
            in_decoder=stated["use_dec_self_global"] and count > 0,
            updated_in_decoder=stated["dec_self_update_global"],
            in_cross_attention=stated["use_dec_cross_global"] and count > 0,
        ),
        encoder_feed_forward_between=stated["enc_use_inter_ffn"],
        decoder_feed_forward_between=stated["dec_use_inter_ffn"],
        activation=stated["ffn_activation"],
        gated=stated["gated_ffn"],
        attention_dropout=stated["attn_drop"],
        projection_dropout=stated["proj_drop"],
        feed_forward_dropout=stated["ffn_drop"],
        padding=stated["padding_type"],
        positions=stated["pos_embed_type"],
        relative_bias=stated["use_relative_pos"],
        decoder_first_self_attention=stated["dec_use_first_self_attn"],
        decoder_positions=stated["dec_hierarchical_pos_embed"],
        decoder_query=stated["z_init_method"],
        cross_last_frames=stated["dec_cross_last_n_frames"],
    )


def _our_stem(stated: Mapping[str, Any]) -> StackConvStem | ConvStem:
    activation = stated["initial_downsample_activation"]
    if stated["initial_downsample_type"] == "stack_conv":
        return StackConvStem(
            widths=stated["initial_downsample_stack_conv_dim_list"],
            scales=stated["initial_downsample_stack_conv_downscale_list"],
            convolutions=stated["initial_downsample_stack_conv_num_conv_list"],
            activation=activation,
        )
    return ConvStem(
        scale=_scale(stated, "initial_downsample_scale"),
        convolutions=stated["initial_downsample_conv_layers"],
        head_convolutions=stated["final_upsample_conv_layers"],
        activation=activation,
    )


def _scale(stated: Mapping[str, Any], name: str) -> int:
    """Return a scale of H and W, given as one number or as (1, s, s)."""
    value = stated[name]
    if isinstance(value, tuple) and len(value) == 3 and value[0] == 1 and value[1] == value[2]:
        return value[1]
    if isinstance(value, int):
        return value
    raise ValueError(f"{name}={value!r} is not built; give one number for H and W, or [1, s, s]")
