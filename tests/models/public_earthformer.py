"""A small public Earthformer configuration and weights for it."""

from typing import Any

import torch

from simcast_hpc.models.published_weights import public_keys

PUBLIC: dict[str, Any] = {
    "input_shape": [3, 16, 8, 1],
    "target_shape": [2, 16, 8, 1],
    "base_units": 16,
    "enc_depth": [1, 1],
    "dec_depth": [1, 1],
    "enc_use_inter_ffn": True,
    "dec_use_inter_ffn": True,
    "dec_hierarchical_pos_embed": False,
    "downsample": 2,
    "num_global_vectors": 2,
    "use_dec_self_global": False,
    "dec_self_update_global": True,
    "use_dec_cross_global": False,
    "use_global_vector_ffn": False,
    "use_global_self_attn": True,
    "separate_global_qkv": True,
    "dec_cross_last_n_frames": None,
    "attn_drop": 0.1,
    "proj_drop": 0.1,
    "ffn_drop": 0.1,
    "num_heads": 2,
    "ffn_activation": "gelu",
    "gated_ffn": False,
    "padding_type": "zeros",
    "pos_embed_type": "t+h+w",
    "use_relative_pos": True,
    "dec_use_first_self_attn": False,
    "z_init_method": "zeros",
    "initial_downsample_type": "stack_conv",
    "initial_downsample_activation": "leaky",
    "initial_downsample_stack_conv_num_layers": 2,
    "initial_downsample_stack_conv_dim_list": [4, 16],
    "initial_downsample_stack_conv_downscale_list": [2, 2],
    "initial_downsample_stack_conv_num_conv_list": [1, 1],
    "self_pattern": "axial",
    "cross_self_pattern": "axial",
    "cross_pattern": "cross_1x1",
}


def public_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return random weights for ``config`` with the constants of its model."""
    generator = torch.Generator().manual_seed(5)
    shapes = public_keys("earthformer", config)
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for key in weights:
        if key.endswith("relative_position_index"):
            extent = shapes[key][0]  # the cuboids of these patterns are one-dimensional
            positions = torch.arange(extent)
            weights[key] = positions[:, None] - positions[None, :] + extent - 1
    return weights
