"""Earthformer as published by its authors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from simcast_hpc.models.earthformer.attention import RelativeBias

from .architecture import PublicArchitecture, Shape, key_pattern
from .earthformer_yaml import RELEASED, earthformer_fields, earthformer_spec

# A public stem has one list of convolution, norm and activation per convolution.
_ITEMS_PER_CONVOLUTION = 3
_MAX_CONVOLUTIONS = 8

KeyPairs = Iterable[tuple[str, str]]

_SELF_ATTENTION = (
    ("norm.{leaf}", "norm.{leaf}"),
    ("qkv.{leaf}", "qkv.{leaf}"),
    ("bias.table", "relative_position_bias_table"),
    ("project.{leaf}", "proj.{leaf}"),
    ("global_norm.{leaf}", "global_vec_norm.{leaf}"),
    ("global_attention.project.{leaf}", "global_proj.{leaf}"),
    ("global_projections.qkv.{leaf}", "global_qkv.{leaf}"),
    ("global_projections.seen_query.{leaf}", "l2g_q_net.{leaf}"),
    ("global_projections.seen_key_value.{leaf}", "l2g_global_kv_net.{leaf}"),
    ("global_projections.query.{leaf}", "g2l_global_q_net.{leaf}"),
    ("global_projections.key.{leaf}", "g2l_k_net.{leaf}"),
    ("global_projections.value.{leaf}", "g2l_v_net.{leaf}"),
    ("global_projections.self_qkv.{leaf}", "g2g_global_qkv_net.{leaf}"),
)
_CROSS_ATTENTION = (
    ("norm.{leaf}", "norm.{leaf}"),
    ("query.{leaf}", "q_proj.{leaf}"),
    ("key_value.{leaf}", "kv_proj.{leaf}"),
    ("bias.table", "relative_position_bias_table"),
    ("project.{leaf}", "proj.{leaf}"),
)
_FEED_FORWARD = (
    ("norm.{leaf}", "layer_norm.{leaf}"),
    ("widen.{leaf}", "ffn_1.{leaf}"),
    ("gate.{leaf}", "ffn_1_gate.{leaf}"),
    ("narrow.{leaf}", "ffn_2.{leaf}"),
)
_MERGE = (("norm.{leaf}", "norm.{leaf}"), ("reduce.{leaf}", "reduction.{leaf}"))
_POSITIONS = (("time", "T_embed.weight"), ("row", "H_embed.weight"), ("column", "W_embed.weight"))
_SPACE_POSITIONS = (("space", "HW_embed.weight"),)


def _prefixed(own: str, public: str, pairs: KeyPairs) -> tuple[tuple[str, str], ...]:
    return tuple((f"{own}.{own_key}", f"{public}.{public_key}") for own_key, public_key in pairs)


def _block(own: str, public: str, attention: KeyPairs) -> tuple[tuple[str, str], ...]:
    return (
        *_prefixed(f"{own}.attentions.{{k}}", f"{public}.attn_l.{{k}}", attention),
        *_prefixed(f"{own}.feed_forwards.{{k}}", f"{public}.ffn_l.{{k}}", _FEED_FORWARD),
        *_prefixed(f"{own}.global_feed_forwards.{{k}}", f"{public}.global_ffn_l.{{k}}", _FEED_FORWARD),
    )


def _conv_block(own: str, public: str) -> tuple[tuple[str, str], ...]:
    indices = [(i, _ITEMS_PER_CONVOLUTION * i) for i in range(_MAX_CONVOLUTIONS)]
    return (
        *((f"{own}.convs.{i}.{{leaf}}", f"{public}.{item}.{{leaf}}") for i, item in indices),
        *((f"{own}.norms.{i}.{{leaf}}", f"{public}.{item + 1}.{{leaf}}") for i, item in indices),
    )


_KEY_PAIRS = (
    ("global_vectors", "init_global_vectors"),
    *_conv_block("stem.stages.{i}.block", "initial_encoder.conv_block_list.{i}"),
    *_prefixed("stem.stages.{i}.merge", "initial_encoder.patch_merge_list.{i}", _MERGE),
    *_conv_block("stem.block", "initial_encoder.conv_block"),
    *_prefixed("stem.merge", "initial_encoder.patch_merge", _MERGE),
    *_conv_block("head_stages.stages.{i}.block", "final_decoder.conv_block_list.{i}"),
    ("head_stages.stages.{i}.up.conv.{leaf}", "final_decoder.upsample_list.{i}.conv.{leaf}"),
    *_conv_block("head_stages.block", "final_decoder.conv_block"),
    ("head_stages.up.conv.{leaf}", "final_decoder.upsample.conv.{leaf}"),
    ("head.{leaf}", "dec_final_proj.{leaf}"),
    *_prefixed("positions", "enc_pos_embed", _POSITIONS + _SPACE_POSITIONS),
    *_prefixed("query.positions", "dec_pos_embed", _POSITIONS + _SPACE_POSITIONS),
    ("query.project.{leaf}", "z_proj.{leaf}"),
    *_prefixed("encoder.merges.{i}", "encoder.down_layers.{i}", _MERGE),
    ("encoder.vector_merges.{i}.{leaf}", "encoder.down_layer_global_proj.{i}.{leaf}"),
    *_block("encoder.levels.{i}.{j}", "encoder.blocks.{i}.{j}", _SELF_ATTENTION),
    *_block("decoder.levels.{i}.self_blocks.{j}", "decoder.self_blocks.{i}.{j}", _SELF_ATTENTION),
    *_block("decoder.levels.{i}.cross_blocks.{j}", "decoder.cross_blocks.{i}.{j}", _CROSS_ATTENTION),
    ("decoder.ups.{i}.conv.{leaf}", "decoder.upsample_layers.{i}.conv.{leaf}"),
    *_prefixed("decoder.positions.{i}", "decoder.hierarchical_pos_embed_l.{i}", _POSITIONS + _SPACE_POSITIONS),
)


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """Return the row indices of the bias tables, a buffer of each public attention."""
    blocks = [key_pattern(f"{own}.attentions.{{k}}.bias") for own, _ in _ATTENTION_BLOCKS]
    constants: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not isinstance(module, RelativeBias):
            continue
        for pattern, (_, public) in zip(blocks, _ATTENTION_BLOCKS, strict=True):
            match = pattern.fullmatch(name)
            if match:
                key = f"{public}.attn_l.{{k}}.relative_position_index".format(**match.groupdict())
                constants[key] = module.index()
    return constants


_ATTENTION_BLOCKS = (
    ("encoder.levels.{i}.{j}", "encoder.blocks.{i}.{j}"),
    ("decoder.levels.{i}.self_blocks.{j}", "decoder.self_blocks.{i}.{j}"),
    ("decoder.levels.{i}.cross_blocks.{j}", "decoder.cross_blocks.{i}.{j}"),
)


def _shape_fields(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "enc_depth": _depths("encoder.blocks", shapes),
        "dec_depth": _depths("decoder.cross_blocks", shapes),
        "num_global_vectors": shapes.get("init_global_vectors", (0,))[0],
        "gated_ffn": "encoder.blocks.0.0.ffn_l.0.ffn_1_gate.weight" in shapes,
        "use_relative_pos": any(key.endswith("relative_position_bias_table") for key in shapes),
        "dec_use_first_self_attn": _depths("decoder.self_blocks", shapes) == _depths("decoder.cross_blocks", shapes),
    }
    first = "encoder.blocks.0.0.attn_l.0"
    for field, key, axis in (
        ("input_shape T", "enc_pos_embed.T_embed.weight", 0),
        ("base_units", "enc_pos_embed.T_embed.weight", 1),
        ("target_shape T", "dec_pos_embed.T_embed.weight", 0),
        ("target_shape C", "dec_final_proj.weight", 0),
        ("num_heads", f"{first}.relative_position_bias_table", 1),
    ):
        if key in shapes:
            fields[field] = shapes[key][axis]
    fields["pos_embed_type"] = "t+hw" if "enc_pos_embed.HW_embed.weight" in shapes else "t+h+w"
    if fields["num_global_vectors"]:
        fields["separate_global_qkv"] = f"{first}.l2g_q_net.weight" in shapes
        fields["use_global_vector_ffn"] = any(".global_ffn_l." in key for key in shapes)
    widths = _stem_widths(shapes)
    fields["initial_downsample_type"] = "stack_conv" if widths else "conv"
    if widths:
        fields["initial_downsample_stack_conv_dim_list"] = widths
    return fields


def _depths(prefix: str, shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """Return the number of blocks per level, counted by the first attention of each block."""
    pattern = re.compile(rf"{re.escape(prefix)}\.([0-9]+)\.([0-9]+)\.attn_l\.0\.norm\.weight")
    levels = [int(match[1]) for key in shapes if (match := pattern.fullmatch(key))]
    return tuple(levels.count(level) for level in range(max(levels, default=-1) + 1))


def _stem_widths(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    keys = (f"initial_encoder.conv_block_list.{stage}.0.weight" for stage in range(len(shapes)))
    return tuple(shapes[key][0] for key in keys if key in shapes)


EARTHFORMER = PublicArchitecture(
    source="CuboidTransformerModel of amazon-science/earth-forecasting-transformer, commit 7732b03",
    key_pairs=_KEY_PAIRS,
    to_spec=earthformer_spec,
    released=RELEASED,
    config_fields=earthformer_fields,
    shape_fields=_shape_fields,
    constants=_constants,
)
