"""Checks of Earthformer on row shards, by name: outputs and gradients against the whole field on one rank."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from simcast_hpc.config import EarthformerConfig
from simcast_hpc.distributed.row_shards import RowShards
from simcast_hpc.models import Earthformer
from simcast_hpc.models.earthformer.attention import CuboidCrossAttention, CuboidSelfAttention
from simcast_hpc.models.row_sharding import shard_rows
from tests.multi_rank.row_shard_checks import random
from tests.multi_rank.sharded_network_checks import compare_network

_DROPOUT = {"attention_dropout": 0.2, "projection_dropout": 0.2, "feed_forward_dropout": 0.2}
_CONV: dict[str, Any] = {"kind": "conv", "scale": 1}
# Name: rows of a rank, columns, kinds of exchange that occur, and fields of the configuration
_CASES: dict[str, tuple[int, int, set[str], dict[str, Any]]] = {
    "axial": (
        2, 10, {"local", "columns"},
        {"stem": {"kind": "stack_conv", "widths": (4, 8), "scales": (1, 2), "convolutions": (2, 1)}, "width": 8},
    ),
    "axial-levels": (
        6, 18, {"local", "columns"},
        {
            "stem": {"kind": "conv", "scale": 3}, "encoder_depth": (1, 2), "decoder_depth": (1, 2),
            "decoder_positions": True, "checkpoint_levels": (0, 1),
            "global_vectors": {"count": 2, "in_decoder": True},
        },
    ),
    "shifted": (
        4, 9, {"local", "shifted"},
        {
            "encoder_pattern": "video_swin_2x2", "decoder_pattern": "video_swin_2x4", "cross_pattern": "cross_2x2",
            "gated": True,
        },
    ),
    "shifted-odd": (
        3, 7, {"local", "shifted"},
        {
            "encoder_pattern": "video_swin_2x3", "decoder_pattern": "video_swin_1x3", "cross_pattern": "cross_3x3",
            "padding": "ignore", "positions": "t+hw", "decoder_query": "nearest_interp",
        },
    ),
    "frames": (
        3, 5, {"local", "frames", "gathered"},
        {
            "encoder_pattern": "divided_st", "decoder_pattern": "spatial_lg_2", "cross_pattern": "cross_2x2_heter",
            "padding": "ignore", "decoder_query": "last",
            "global_vectors": {"count": 1, "feed_forward": True, "self_attention": False},
        },
    ),
    "gathered": (
        3, 7, {"gathered"},
        {
            "encoder_pattern": "video_swin_2x4", "decoder_pattern": "full", "cross_pattern": "cross_2x2_lg",
            "padding": "nearest", "decoder_query": "mean", "relative_bias": False,
            "global_vectors": {"count": 2, "separate_projections": False, "in_cross_attention": True},
        },
    ),
}  # fmt: skip


def check_case(shards: RowShards, *, name: str) -> None:
    """Compare one configuration, with dropout, in float64."""
    rows, columns, kinds, fields = _CASES[name]
    settings: dict[str, Any] = {
        "width": 16, "heads": 2, "encoder_depth": (1,), "decoder_depth": (1,), "stem": _CONV, "activation": "silu",
        "decoder_first_self_attention": True, "global_vectors": {"count": 2}, "grid": (rows * shards.size, columns),
    } | _DROPOUT | fields  # fmt: skip
    torch.manual_seed(1)
    network = Earthformer(EarthformerConfig.model_validate(settings), frames_in=3, frames_out=4).double()
    for index, parameter in enumerate(network.parameters()):
        if parameter.ndim == 1:
            parameter.data = 0.5 + 0.3 * random(*parameter.shape, seed=index)
    compare_network(shards, network, random(2, 3, 1, rows * shards.size, columns).sigmoid(), _convert(kinds))


def _convert(kinds: set[str]) -> Callable[..., None]:
    """Return the conversion, which also checks that each kind of exchange occurs."""

    def convert(network: torch.nn.Module, shards: RowShards) -> None:
        shard_rows(network, shards)
        layers = [m for m in network.modules() if isinstance(m, (CuboidSelfAttention, CuboidCrossAttention))]
        found = {layer.row_sharded.kind for layer in layers if layer.row_sharded is not None}
        assert found == kinds or shards.size > 3, found

    return convert


CHECKS = {name: partial(check_case, name=name) for name in _CASES}
