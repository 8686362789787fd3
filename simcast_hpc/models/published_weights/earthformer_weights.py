"""Earthformer as its authors publish it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from simcast_hpc.models.earthformer.attention import RelativeBias

from .architecture import PublicArchitecture, Shape, pattern_of
from .earthformer_yaml import RELEASED, earthformer_stated, our_earthformer

# Convolutions and norms of a stem stand in one list with their activations: three places for each convolution.
_PLACES_PER_CONVOLUTION = 3
_MOST_CONVOLUTIONS = 8

Names = Iterable[tuple[str, str]]

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
_POSITIONS_OF_SPACE = (("space", "HW_embed.weight"),)


def _below(ours: str, theirs: str, names: Names) -> tuple[tuple[str, str], ...]:
    return tuple((f"{ours}.{own}", f"{theirs}.{public}") for own, public in names)


def _block(ours: str, theirs: str, attention: Names) -> tuple[tuple[str, str], ...]:
    return (
        *_below(f"{ours}.attentions.{{k}}", f"{theirs}.attn_l.{{k}}", attention),
        *_below(f"{ours}.feed_forwards.{{k}}", f"{theirs}.ffn_l.{{k}}", _FEED_FORWARD),
        *_below(f"{ours}.global_feed_forwards.{{k}}", f"{theirs}.global_ffn_l.{{k}}", _FEED_FORWARD),
    )


def _conv_block(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    places = [(place, _PLACES_PER_CONVOLUTION * place) for place in range(_MOST_CONVOLUTIONS)]
    return (
        *((f"{ours}.convs.{own}.{{leaf}}", f"{theirs}.{public}.{{leaf}}") for own, public in places),
        *((f"{ours}.norms.{own}.{{leaf}}", f"{theirs}.{public + 1}.{{leaf}}") for own, public in places),
    )


_NAMES = (
    ("global_vectors", "init_global_vectors"),
    *_conv_block("stem.stages.{i}.block", "initial_encoder.conv_block_list.{i}"),
    *_below("stem.stages.{i}.merge", "initial_encoder.patch_merge_list.{i}", _MERGE),
    *_conv_block("stem.block", "initial_encoder.conv_block"),
    *_below("stem.merge", "initial_encoder.patch_merge", _MERGE),
    *_conv_block("head_stages.stages.{i}.block", "final_decoder.conv_block_list.{i}"),
    ("head_stages.stages.{i}.up.conv.{leaf}", "final_decoder.upsample_list.{i}.conv.{leaf}"),
    *_conv_block("head_stages.block", "final_decoder.conv_block"),
    ("head_stages.up.conv.{leaf}", "final_decoder.upsample.conv.{leaf}"),
    ("head.{leaf}", "dec_final_proj.{leaf}"),
    *_below("positions", "enc_pos_embed", _POSITIONS + _POSITIONS_OF_SPACE),
    *_below("query.positions", "dec_pos_embed", _POSITIONS + _POSITIONS_OF_SPACE),
    ("query.project.{leaf}", "z_proj.{leaf}"),
    *_below("encoder.merges.{i}", "encoder.down_layers.{i}", _MERGE),
    ("encoder.vector_merges.{i}.{leaf}", "encoder.down_layer_global_proj.{i}.{leaf}"),
    *_block("encoder.levels.{i}.{j}", "encoder.blocks.{i}.{j}", _SELF_ATTENTION),
    *_block("decoder.levels.{i}.self_blocks.{j}", "decoder.self_blocks.{i}.{j}", _SELF_ATTENTION),
    *_block("decoder.levels.{i}.cross_blocks.{j}", "decoder.cross_blocks.{i}.{j}", _CROSS_ATTENTION),
    ("decoder.ups.{i}.conv.{leaf}", "decoder.upsample_layers.{i}.conv.{leaf}"),
    *_below("decoder.positions.{i}", "decoder.hierarchical_pos_embed_l.{i}", _POSITIONS + _POSITIONS_OF_SPACE),
)


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """Return the rows of the bias tables that pairs of tokens read: a buffer of each public attention."""
    blocks = [pattern_of(f"{ours}.attentions.{{k}}.bias") for ours, _ in _ATTENTION_PLACES]
    constants: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not isinstance(module, RelativeBias):
            continue
        for pattern, (_, theirs) in zip(blocks, _ATTENTION_PLACES, strict=True):
            found = pattern.fullmatch(name)
            if found:
                key = f"{theirs}.attn_l.{{k}}.relative_position_index".format(**found.groupdict())
                constants[key] = module.index()
    return constants


_ATTENTION_PLACES = (
    ("encoder.levels.{i}.{j}", "encoder.blocks.{i}.{j}"),
    ("decoder.levels.{i}.self_blocks.{j}", "decoder.self_blocks.{i}.{j}"),
    ("decoder.levels.{i}.cross_blocks.{j}", "decoder.cross_blocks.{i}.{j}"),
)


def _measured(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    measured: dict[str, Any] = {
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
            measured[field] = shapes[key][axis]
    measured["pos_embed_type"] = "t+hw" if "enc_pos_embed.HW_embed.weight" in shapes else "t+h+w"
    if measured["num_global_vectors"]:
        measured["separate_global_qkv"] = f"{first}.l2g_q_net.weight" in shapes
        measured["use_global_vector_ffn"] = any(".global_ffn_l." in key for key in shapes)
    stages = _stack(shapes)
    measured["initial_downsample_type"] = "stack_conv" if stages else "conv"
    if stages:
        measured["initial_downsample_stack_conv_dim_list"] = stages
    return measured


def _depths(prefix: str, shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """Return the number of blocks of each level, by the first attention of each block."""
    pattern = re.compile(rf"{re.escape(prefix)}\.([0-9]+)\.([0-9]+)\.attn_l\.0\.norm\.weight")
    levels = [int(found[1]) for key in shapes if (found := pattern.fullmatch(key))]
    return tuple(levels.count(level) for level in range(max(levels, default=-1) + 1))


def _stack(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    keys = (f"initial_encoder.conv_block_list.{stage}.0.weight" for stage in range(len(shapes)))
    return tuple(shapes[key][0] for key in keys if key in shapes)


EARTHFORMER = PublicArchitecture(
    source="CuboidTransformerModel of amazon-science/earth-forecasting-transformer, commit 7732b03",
    names=_NAMES,
    ours=our_earthformer,
    released=RELEASED,
    stated=earthformer_stated,
    measured=_measured,
    constants=_constants,
)
