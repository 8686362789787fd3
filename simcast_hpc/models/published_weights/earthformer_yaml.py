"""Conversion of the public Earthformer configuration to ours."""

from collections.abc import Mapping
from typing import Any

from simcast_hpc.config import ConvStem, EarthformerConfig, GlobalVectorConfig, StackConvStem

from .architecture import ForecasterSpec, build_config, check_integers, check_lists

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

# Fields that determine the network. All are required, so that nothing depends on public defaults.
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
# Unsupported options with their only supported value.
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
# The released YAML files have one pattern for all levels, which the public scripts repeat.
_PATTERNS = {
    "enc_attn_patterns": "self_pattern",
    "dec_self_attn_patterns": "cross_self_pattern",
    "dec_cross_attn_patterns": "cross_pattern",
}
# Fields that only the network with auxiliary channels has.
_AUXILIARY = ("auxiliary_channels", "unet_dec_cross_mode")
# Initialization, activation checkpointing, and cuboids that the official implementation reads only without patterns.
_IGNORED = frozenset(
    {
        "checkpoint_level", "attn_linear_init_mode", "ffn_linear_init_mode", "conv_init_mode",
        "down_up_linear_init_mode", "norm_init_mode", "data_channels", "enc_cuboid_size", "enc_cuboid_strategy",
        "enc_shift_size", "dec_self_cuboid_size", "dec_self_cuboid_strategy", "dec_self_shift_size",
        "dec_cross_cuboid_hw", "dec_cross_cuboid_strategy", "dec_cross_shift_hw", "dec_cross_n_temporal",
    }
)  # fmt: skip

_PUBLIC_NAMES = {
    "separate_projections": "separate_global_qkv",
    "self_attention": "use_global_self_attn",
    "feed_forward": "use_global_vector_ffn",
    "in_decoder": "use_dec_self_global",
    "updated_in_decoder": "dec_self_update_global",
    "in_cross_attention": "use_dec_cross_global",
    "encoder_feed_forward_between": "enc_use_inter_ffn",
    "decoder_feed_forward_between": "dec_use_inter_ffn",
    "gated": "gated_ffn",
    "attention_dropout": "attn_drop",
    "projection_dropout": "proj_drop",
    "feed_forward_dropout": "ffn_drop",
    "padding": "padding_type",
    "positions": "pos_embed_type",
    "relative_bias": "use_relative_pos",
    "decoder_first_self_attention": "dec_use_first_self_attn",
    "decoder_positions": "dec_hierarchical_pos_embed",
    "decoder_query": "z_init_method",
    "activation": "ffn_activation or initial_downsample_activation",
}


def earthformer_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a public configuration, with lists as tuples and shapes split by axis.

    Raises:
        ValueError: a field is missing, unknown or not supported; the message contains it.
    """
    _reject_auxiliary_model(config)
    _check_supported(config)
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }
    for names in _REQUIRED_BY_STEM.values():
        for name in names:
            fields.setdefault(name, None)
    for name in ("input_shape", "target_shape"):
        shape = fields[name]
        if not isinstance(shape, tuple) or len(shape) != 4:
            raise ValueError(f"{name}={shape!r} of the public Earthformer must be [T, H, W, C]")
        fields |= {f"{name} {axis}": length for axis, length in zip("THWC", shape, strict=True)}
    for name, short in _PATTERNS.items():
        fields[name] = fields.get(name) or fields[short]
    _check_sizes(fields)
    _check_consistent(fields)
    return fields


def earthformer_spec(config: Mapping[str, Any]) -> ForecasterSpec:
    """Return our configuration of a public one.

    Raises:
        ValueError: as :func:`earthformer_fields`, or the sizes are inconsistent.
    """
    fields = earthformer_fields(config)
    return ForecasterSpec(
        model=_earthformer_config(fields),
        frames_in=fields["input_shape T"],
        frames_out=fields["target_shape T"],
        channels=fields["input_shape C"],
    )


def _reject_auxiliary_model(config: Mapping[str, Any]) -> None:
    """Raise an error for the configuration of EarthNet2021, whose network is another class."""
    given = [f"{name}={config[name]!r}" for name in _AUXILIARY if name in config]
    if given:
        raise ValueError(
            f"{' and '.join(given)} belongs to CuboidTransformerAuxModel, the network of the EarthNet2021 release, "
            "which also reads auxiliary channels (weather and elevation) and is not supported; only "
            "CuboidTransformerModel is, the network of the releases for SEVIR and ENSO"
        )


def _check_supported(config: Mapping[str, Any]) -> None:
    stem = config.get("initial_downsample_type", "stack_conv")
    if stem not in _REQUIRED_BY_STEM:
        raise ValueError(f"initial_downsample_type={stem!r} is not supported; choose 'stack_conv' or 'conv'")
    for name in (*_REQUIRED, *_REQUIRED_BY_STEM[stem]):
        if name not in config:
            raise ValueError(f"the public configuration lacks {name}; every field of the model is required")
    for name, short in _PATTERNS.items():
        if not (config.get(name) or config.get(short)):
            raise ValueError(f"the public configuration lacks {name} (or {short}); explicit cuboids are not supported")
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name}={config[name]!r} is not supported; only {value!r} is")
    stem_fields = {name for names in _REQUIRED_BY_STEM.values() for name in names}
    known = {*_REQUIRED, *stem_fields, *_FIXED, *_IGNORED, *_PATTERNS, *_PATTERNS.values()}
    for name in config:
        if name not in known:
            raise ValueError(f"{name}={config[name]!r} is an unknown field of the public model; remove it")


def _check_sizes(fields: Mapping[str, Any]) -> None:
    """Check the types of the sizes, so that no message is one of our own configuration's fields."""
    sizes = [f"{shape} {axis}" for shape in ("input_shape", "target_shape") for axis in "THWC"]
    check_lists(fields, ("enc_depth", "dec_depth"))
    check_integers(fields, (*sizes, "base_units", "num_heads", "enc_depth", "dec_depth", "downsample"))
    check_integers(fields, ("num_global_vectors",), least=0)
    if fields["dec_cross_last_n_frames"] is not None:
        check_integers(fields, ("dec_cross_last_n_frames",))
    if fields["initial_downsample_type"] == "stack_conv":
        lists = [name for name in _REQUIRED_BY_STEM["stack_conv"] if name.endswith("_list")]
        check_lists(fields, lists)
        check_integers(fields, (*lists, "initial_downsample_stack_conv_num_layers"))
        return
    check_integers(fields, ("initial_downsample_scale", "initial_downsample_conv_layers"))
    check_integers(fields, ("final_upsample_conv_layers",), least=0)


def _check_consistent(fields: Mapping[str, Any]) -> None:
    if fields["input_shape"][1:] != fields["target_shape"][1:]:
        raise ValueError(
            f"input_shape={list(fields['input_shape'])} and target_shape={list(fields['target_shape'])} must be equal "
            "except for T"
        )
    if fields["use_dec_cross_global"] and fields["separate_global_qkv"] and fields["num_global_vectors"]:
        raise ValueError(
            "use_dec_cross_global=True with separate_global_qkv=True is not supported; set one of them to False"
        )
    layers = fields.get("initial_downsample_stack_conv_num_layers")
    lists = [fields.get(f"initial_downsample_stack_conv_{name}_list") for name in ("dim", "downscale", "num_conv")]
    if fields["initial_downsample_type"] == "stack_conv" and any(len(values or ()) != layers for values in lists):
        raise ValueError(
            f"initial_downsample_stack_conv_num_layers={layers} must equal the length of the dim, downscale and "
            f"num_conv lists, {lists}"
        )
    depths = fields["enc_depth"], fields["dec_depth"]
    patterns = {name: fields[name] for name in _PATTERNS}
    if len(depths[0]) != len(depths[1]):
        raise ValueError(
            f"enc_depth={list(depths[0])} and dec_depth={list(depths[1])} must have one entry per level each"
        )
    for name, pattern in patterns.items():
        names = pattern if isinstance(pattern, tuple) else (pattern,)
        if not all(isinstance(item, str) for item in names) or len(names) not in (1, len(depths[0])):
            raise ValueError(
                f"{name}={pattern!r} must be the name of a pattern, or one name for each of the {len(depths[0])} levels"
            )
    if fields["base_units"] % fields["num_heads"]:
        raise ValueError(f"base_units={fields['base_units']} must be a multiple of num_heads={fields['num_heads']}")
    if fields["initial_downsample_type"] == "stack_conv" and (lists[0] or ())[-1:] != (fields["base_units"],):
        raise ValueError(
            f"initial_downsample_stack_conv_dim_list={list(lists[0] or ())} must end in base_units="
            f"{fields['base_units']}"
        )


def _earthformer_config(fields: Mapping[str, Any]) -> EarthformerConfig:
    count = fields["num_global_vectors"]
    return build_config(
        EarthformerConfig,
        _PUBLIC_NAMES,
        grid=fields["input_shape"][1:3],
        width=fields["base_units"],
        heads=fields["num_heads"],
        encoder_depth=fields["enc_depth"],
        decoder_depth=fields["dec_depth"],
        downsampling=_scale(fields, "downsample"),
        encoder_pattern=fields["enc_attn_patterns"],
        decoder_pattern=fields["dec_self_attn_patterns"],
        cross_pattern=fields["dec_cross_attn_patterns"],
        stem=_stem_config(fields),
        global_vectors=build_config(
            GlobalVectorConfig,
            _PUBLIC_NAMES,
            count=count,
            separate_projections=fields["separate_global_qkv"],
            self_attention=fields["use_global_self_attn"],
            feed_forward=fields["use_global_vector_ffn"],
            in_decoder=fields["use_dec_self_global"] and count > 0,
            updated_in_decoder=fields["dec_self_update_global"],
            in_cross_attention=fields["use_dec_cross_global"] and count > 0,
        ),
        encoder_feed_forward_between=fields["enc_use_inter_ffn"],
        decoder_feed_forward_between=fields["dec_use_inter_ffn"],
        activation=fields["ffn_activation"],
        gated=fields["gated_ffn"],
        attention_dropout=fields["attn_drop"],
        projection_dropout=fields["proj_drop"],
        feed_forward_dropout=fields["ffn_drop"],
        padding=fields["padding_type"],
        positions=fields["pos_embed_type"],
        relative_bias=fields["use_relative_pos"],
        decoder_first_self_attention=fields["dec_use_first_self_attn"],
        decoder_positions=fields["dec_hierarchical_pos_embed"],
        decoder_query=fields["z_init_method"],
        cross_last_frames=fields["dec_cross_last_n_frames"],
    )


def _stem_config(fields: Mapping[str, Any]) -> StackConvStem | ConvStem:
    activation = fields["initial_downsample_activation"]
    if fields["initial_downsample_type"] == "stack_conv":
        return build_config(
            StackConvStem,
            _PUBLIC_NAMES,
            widths=fields["initial_downsample_stack_conv_dim_list"],
            scales=fields["initial_downsample_stack_conv_downscale_list"],
            convolutions=fields["initial_downsample_stack_conv_num_conv_list"],
            activation=activation,
        )
    return build_config(
        ConvStem,
        _PUBLIC_NAMES,
        scale=_scales(fields, "initial_downsample_scale"),
        convolutions=fields["initial_downsample_conv_layers"],
        head_convolutions=fields["final_upsample_conv_layers"],
        activation=activation,
    )


def _scale(fields: Mapping[str, Any], name: str) -> int:
    """Return the scale of H and W, configured as one number or as (1, s, s)."""
    value = fields[name]
    if isinstance(value, tuple) and len(value) == 3 and value[0] == 1 and value[1] == value[2]:
        return value[1]
    if isinstance(value, int):
        return value
    raise ValueError(f"{name}={value!r} is not supported; use one number for H and W, or [1, s, s]")


def _scales(fields: Mapping[str, Any], name: str) -> int | tuple[int, int]:
    """Return the scale of H and W, or one of each, configured as one number, (h, w) or (1, h, w)."""
    value = fields[name]
    if isinstance(value, int):
        return value
    if len(value) not in (2, 3) or (len(value) == 3 and value[0] != 1):
        raise ValueError(f"{name}={list(value)} is not supported; use one number for H and W, or [1, h, w]")
    rows, columns = value[-2:]
    return rows if rows == columns else (rows, columns)
