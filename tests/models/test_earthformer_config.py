"""Earthformer configuration, ours and the public one: accepted fields, rejected fields and error messages."""

from typing import Any

import pytest
import torch
import yaml

from simcast_hpc.config import ConfigError, ConvStem, EarthformerConfig, SimVPConfig, TrainConfig, from_mapping, to_yaml
from simcast_hpc.models.published_weights import forecaster_spec, load_public, public_keys
from tests.models.public_earthformer import PUBLIC, public_weights


def run_config(model: Any) -> TrainConfig:
    return from_mapping(TrainConfig, {"stage": "direct", "name": "t", "run_dir": "runs/t", "model": model})


def test_name_alone_selects_defaults():
    assert run_config("earthformer").model == EarthformerConfig()
    assert run_config("simvp").model == SimVPConfig()
    assert run_config({"hidden_spatial": 32}).model == SimVPConfig(hidden_spatial=32)


def test_configuration_survives_yaml_round_trip():
    given = {"kind": "earthformer", "grid": [48, 32], "encoder_pattern": ["axial", "full"], "stem": {"kind": "conv"}}
    config = run_config(given)
    assert config.model == EarthformerConfig(grid=(48, 32), encoder_pattern=("axial", "full"), stem=ConvStem())
    assert from_mapping(TrainConfig, yaml.safe_load(to_yaml(config))) == config


def test_checkpoint_levels_are_not_scientific():
    plain, checkpointed = run_config("earthformer"), run_config({"kind": "earthformer", "checkpoint_levels": [0]})
    assert plain != checkpointed
    assert plain.science() == checkpointed.science()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("simvq", "model: kind is unknown; known kinds are earthformer, simvp, got 'simvq'"),
        ({"kind": "simvq"}, "model: kind is unknown; known kinds are earthformer, simvp, got"),
        (3, "model: kind is unknown; known kinds are earthformer, simvp, got 3"),
        ({"kind": "earthformer", "widht": 64}, r"model\.widht: unknown key; did you mean model\.width\?"),
        ({"kind": "earthformer", "global_vectors": {"cuont": 1}}, r"model\.global_vectors\.cuont: .*vectors\.count\?"),
        ({"hidden_spatail": 64}, r"model\.hidden_spatail: unknown key; did you mean model\.hidden_spatial\?"),
        ({"kind": "earthformer", "stem": {"kind": "conv", "scal": 2}}, r"model\.stem\.scal: .*model\.stem\.scale\?"),
        ({"kind": "earthformer", "gated": "yes"}, r"model\.gated: Input should be a valid boolean, got 'yes'"),
    ],
)
def test_errors_name_the_key(model, message):
    with pytest.raises(ConfigError, match=message):
        run_config(model)


def test_pattern_per_level_or_for_all():
    per_level = {key: value for key, value in PUBLIC.items() if not key.endswith("_pattern")}
    per_level |= {f"{kind}_attn_patterns": ["axial", "axial"] for kind in ("enc", "dec_self")}
    per_level["dec_cross_attn_patterns"] = ["cross_1x1", "cross_1x1"]
    assert public_keys("earthformer", per_level) == public_keys("earthformer", PUBLIC)


def test_loads_weights_without_constants():
    weights = public_weights(PUBLIC)
    model = load_public("earthformer", PUBLIC, weights)
    table = "encoder.blocks.0.0.attn_l.1.relative_position_bias_table"
    assert torch.equal(model.get_parameter("encoder.levels.0.0.attentions.1.bias.table"), weights[table])
    assert not any("index" in key for key in model.state_dict())


CONV = {key: value for key, value in PUBLIC.items() if "stack_conv_" not in key} | {
    "initial_downsample_type": "conv",
    "initial_downsample_scale": 4,
    "initial_downsample_conv_layers": 1,
    "final_upsample_conv_layers": 2,
}
# earthformer_enso_v1.yaml: 1,394,325 parameters in the public implementation.
ENSO = CONV | {
    "input_shape": [12, 24, 48, 1],
    "target_shape": [14, 24, 48, 1],
    "base_units": 64,
    "num_heads": 4,
    "num_global_vectors": 0,
    "use_global_self_attn": False,
    "separate_global_qkv": False,
    "initial_downsample_scale": [1, 1, 2],
    "initial_downsample_conv_layers": 2,
    "final_upsample_conv_layers": 1,
}


def test_stem_of_the_enso_release_merges_columns_only():
    keys = public_keys("earthformer", ENSO)
    weights = [torch.Size(shape).numel() for key, shape in keys.items() if not key.endswith("position_index")]
    assert sum(weights) == 1_394_325
    assert keys["initial_encoder.patch_merge.reduction.weight"] == (64, 128)
    model = forecaster_spec("earthformer", ENSO).build()
    assert model(torch.rand(1, 12, 1, 24, 48)).shape == (1, 14, 1, 24, 48)


def test_stem_without_head_convolutions_only_upsamples():
    keys = public_keys("earthformer", {**CONV, "final_upsample_conv_layers": 0})
    assert {key for key in keys if key.startswith("final_decoder")} == {
        "final_decoder.upsample.conv.weight",
        "final_decoder.upsample.conv.bias",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_downsample_conv_layers": 0}, "initial_downsample_conv_layers=0 must be an integer of at least 1"),
        ({"final_upsample_conv_layers": -1}, "final_upsample_conv_layers=-1 must be an integer of at least 0"),
        (
            {"initial_downsample_scale": [2, 1, 2]},
            r"initial_downsample_scale=\[2, 1, 2\] .*use one number .* \[1, h, w\]",
        ),
        ({"initial_downsample_scale": "2"}, "initial_downsample_scale='2' must be an integer"),
        ({"enc_depth": 3}, "enc_depth=3 must be a list"),
        ({"enc_depth": [1]}, r"enc_depth=\[1\] and dec_depth=\[1, 1\] must have one entry per level"),
        ({"num_heads": 3}, "base_units=16 must be a multiple of num_heads=3"),
        ({"gated_ffn": "perhaps"}, "gated_ffn='perhaps' is not supported"),
        ({"padding_type": "reflect"}, "padding_type='reflect' is not supported: Input should be 'ignore'"),
        ({"input_shape": [3, "a", 8, 1]}, "input_shape H='a' must be an integer"),
        ({"auxiliary_channels": 7}, "auxiliary_channels=7 belongs to CuboidTransformerAuxModel, .* EarthNet2021"),
    ],
)
def test_message_names_the_public_field(change, message):
    with pytest.raises(ValueError, match=message) as error:
        public_keys("earthformer", {**CONV, **change})
    assert "pydantic" not in str(error.value) and "validation error" not in str(error.value)


def test_mismatch_names_kind_of_stem():
    config = CONV
    with pytest.raises(ValueError, match=r"initial_downsample_type='conv' .* 'stack_conv' in the state dict"):
        load_public("earthformer", config, public_weights(PUBLIC))


def test_rejects_index_of_another_layout():
    weights = public_weights(PUBLIC)
    key = "encoder.blocks.0.0.attn_l.1.relative_position_index"
    weights[key] = weights[key].T
    with pytest.raises(
        ValueError, match=f"{key} of the state dict differs from the value that the configuration determines"
    ):
        load_public("earthformer", PUBLIC, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"base_units": 32, "initial_downsample_stack_conv_dim_list": [4, 32]},
            "base_units=32 .* 16 in the state dict",
        ),
        ({"enc_depth": [2, 1]}, r"enc_depth=\(2, 1\) .* \(1, 1\) in the state dict"),
        ({"dec_depth": [1, 2]}, r"dec_depth=\(1, 2\) .* \(1, 1\) in the state dict"),
        ({"num_global_vectors": 4}, "num_global_vectors=4 .* 2 in the state dict"),
        ({"separate_global_qkv": False}, "separate_global_qkv=False .* True in the state dict"),
        ({"gated_ffn": True}, "gated_ffn=True .* False in the state dict"),
        ({"num_heads": 4}, "num_heads=4 .* 2 in the state dict"),
        ({"pos_embed_type": "t+hw"}, "pos_embed_type='t\\+hw' .* 't\\+h\\+w' in the state dict"),
        ({"use_relative_pos": False}, "use_relative_pos=False .* True in the state dict"),
        ({"dec_use_first_self_attn": True}, "dec_use_first_self_attn=True .* False in the state dict"),
        ({"target_shape": [4, 16, 8, 1]}, "target_shape T=4 .* 2 in the state dict"),
        ({"input_shape": [4, 16, 8, 1]}, "input_shape T=4 .* 3 in the state dict"),
    ],
)
def test_mismatch_names_exactly_the_fields_that_explain_it(change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_public("earthformer", {**PUBLIC, **change}, public_weights(PUBLIC))
    fields = [
        line.split("=")[0].split()[0] for line in str(error.value).splitlines() if " in the configuration but " in line
    ]
    assert set(fields) == set(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_dim_ratio": 2}, "global_dim_ratio=2 is not supported; only 1 is"),
        ({"norm_layer": "rms_norm"}, "norm_layer='rms_norm' is not supported; only 'layer_norm' is"),
        ({"scale_alpha": 0.5}, "scale_alpha=0.5 is not supported"),
        ({"self_attn_use_final_proj": False}, "self_attn_use_final_proj=False is not supported; only True is"),
        ({"downsample": [2, 2, 2]}, r"downsample=\(2, 2, 2\) is not supported; use one number"),
        ({"initial_downsample_type": "interp"}, "initial_downsample_type='interp' is not supported"),
        ({"use_dec_cross_global": True}, "use_dec_cross_global=True with separate_global_qkv=True is not supported"),
        ({"use_dec_self_golbal": True}, "use_dec_self_golbal=True is an unknown field of the public model"),
        ({"self_pattern": None}, "lacks enc_attn_patterns"),
        ({"self_pattern": "random_8"}, "unknown attention pattern 'random_8'"),
        ({"target_shape": [2, 16, 4, 1]}, "must be equal except for T"),
        ({"input_shape": [16, 8, 1]}, r"input_shape=\(16, 8, 1\) of the public Earthformer must be \[T, H, W, C\]"),
        ({"initial_downsample_stack_conv_num_layers": 3}, "initial_downsample_stack_conv_num_layers=3 must equal"),
    ],
)
def test_rejects_unsupported_field(change, message):
    with pytest.raises(ValueError, match=message):
        public_keys("earthformer", {**PUBLIC, **change})


@pytest.mark.parametrize("field", ["base_units", "padding_type", "initial_downsample_stack_conv_dim_list"])
def test_rejects_missing_field(field):
    with pytest.raises(ValueError, match=f"the public configuration lacks {field}"):
        public_keys("earthformer", {key: value for key, value in PUBLIC.items() if key != field})
