"""The configuration of Earthformer, ours and the public one: what is read, what is refused, and how it is said."""

from typing import Any

import pytest
import torch
import yaml

from simcast_hpc.config import ConfigError, ConvStem, EarthformerConfig, SimVPConfig, TrainConfig, from_mapping, to_yaml
from simcast_hpc.models.published_weights import load_public, public_keys
from tests.models.public_earthformer import PUBLIC, public_weights


def run_config(model: Any) -> TrainConfig:
    return from_mapping(TrainConfig, {"stage": "direct", "name": "t", "run_dir": "runs/t", "model": model})


def test_a_bare_name_stands_for_its_defaults():
    assert run_config("earthformer").model == EarthformerConfig()
    assert run_config("simvp").model == SimVPConfig()
    assert run_config({"hidden_spatial": 32}).model == SimVPConfig(hidden_spatial=32)


def test_a_configuration_survives_its_file():
    given = {"kind": "earthformer", "grid": [48, 32], "encoder_pattern": ["axial", "full"], "stem": {"kind": "conv"}}
    config = run_config(given)
    assert config.model == EarthformerConfig(grid=(48, 32), encoder_pattern=("axial", "full"), stem=ConvStem())
    assert from_mapping(TrainConfig, yaml.safe_load(to_yaml(config))) == config


def test_recomputation_is_no_science():
    plain, saving = run_config("earthformer"), run_config({"kind": "earthformer", "checkpoint_levels": [0]})
    assert plain != saving
    assert plain.science() == saving.science()


@pytest.mark.parametrize(
    ("model", "says"),
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
def test_a_wrong_key_is_named_as_the_file_has_it(model, says):
    with pytest.raises(ConfigError, match=says):
        run_config(model)


def test_one_pattern_may_be_named_per_level_or_for_all():
    per_level = {key: value for key, value in PUBLIC.items() if not key.endswith("_pattern")}
    per_level |= {f"{kind}_attn_patterns": ["axial", "axial"] for kind in ("enc", "dec_self")}
    per_level["dec_cross_attn_patterns"] = ["cross_1x1", "cross_1x1"]
    assert public_keys("earthformer", per_level) == public_keys("earthformer", PUBLIC)


def test_weights_load_and_constants_are_not_kept():
    weights = public_weights(PUBLIC)
    model = load_public("earthformer", PUBLIC, weights)
    table = "encoder.blocks.0.0.attn_l.1.relative_position_bias_table"
    assert torch.equal(model.get_parameter("encoder.levels.0.0.attentions.1.bias.table"), weights[table])
    assert not any("index" in key for key in model.state_dict())


def test_a_stem_of_another_kind_is_named():
    conv = {
        "initial_downsample_type": "conv",
        "initial_downsample_scale": 4,
        "initial_downsample_conv_layers": 1,
        "final_upsample_conv_layers": 2,
    }
    config = {key: value for key, value in PUBLIC.items() if "stack_conv_" not in key} | conv
    with pytest.raises(ValueError, match=r"initial_downsample_type='conv' .*, 'stack_conv' by the shapes"):
        load_public("earthformer", config, public_weights(PUBLIC))


def test_an_index_of_another_layout_is_rejected():
    weights = public_weights(PUBLIC)
    key = "encoder.blocks.0.0.attn_l.1.relative_position_index"
    weights[key] = weights[key].T
    with pytest.raises(ValueError, match=f"{key} of the state dict differs from what the configuration fixes"):
        load_public("earthformer", PUBLIC, weights)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_units": 32, "initial_downsample_stack_conv_dim_list": [4, 32]}, "base_units=32 .*, 16 by the shapes"),
        ({"enc_depth": [2, 1]}, r"enc_depth=\(2, 1\) .*, \(1, 1\) by the shapes"),
        ({"dec_depth": [1, 2]}, r"dec_depth=\(1, 2\) .*, \(1, 1\) by the shapes"),
        ({"num_global_vectors": 4}, "num_global_vectors=4 .*, 2 by the shapes"),
        ({"separate_global_qkv": False}, "separate_global_qkv=False .*, True by the shapes"),
        ({"gated_ffn": True}, "gated_ffn=True .*, False by the shapes"),
        ({"num_heads": 4}, "num_heads=4 .*, 2 by the shapes"),
        ({"pos_embed_type": "t+hw"}, "pos_embed_type='t\\+hw' .*, 't\\+h\\+w' by the shapes"),
        ({"use_relative_pos": False}, "use_relative_pos=False .*, True by the shapes"),
        ({"dec_use_first_self_attn": True}, "dec_use_first_self_attn=True .*, False by the shapes"),
        ({"target_shape": [4, 16, 8, 1]}, "target_shape T=4 .*, 2 by the shapes"),
        ({"input_shape": [4, 16, 8, 1]}, "input_shape T=4 .*, 3 by the shapes"),
    ],
)
def test_a_misfit_names_the_field_that_explains_it_and_no_other(change, says):
    with pytest.raises(ValueError, match=says) as refusal:
        load_public("earthformer", {**PUBLIC, **change}, public_weights(PUBLIC))
    explained = [line.split("=")[0].split()[0] for line in str(refusal.value).splitlines() if " by the shapes " in line]
    assert set(explained) == set(change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"global_dim_ratio": 2}, "global_dim_ratio=2 is not built here; only 1 is"),
        ({"norm_layer": "rms_norm"}, "norm_layer='rms_norm' is not built here; only 'layer_norm' is"),
        ({"scale_alpha": 0.5}, "scale_alpha=0.5 is not built here"),
        ({"self_attn_use_final_proj": False}, "self_attn_use_final_proj=False is not built here; only True is"),
        ({"downsample": [2, 2, 2]}, r"downsample=\(2, 2, 2\) is not built; give one number"),
        ({"initial_downsample_type": "interp"}, "initial_downsample_type='interp' is none that we build"),
        ({"use_dec_cross_global": True}, "use_dec_cross_global=True with separate_global_qkv=True is not built"),
        ({"use_dec_self_golbal": True}, "use_dec_self_golbal=True is no field of the public model that we know"),
        ({"self_pattern": None}, "lacks enc_attn_patterns"),
        ({"self_pattern": "random_8"}, "unknown attention pattern 'random_8'"),
        ({"target_shape": [2, 16, 4, 1]}, "must agree in all but T"),
        ({"input_shape": [16, 8, 1]}, r"input_shape=\(16, 8, 1\) of the public Earthformer must be \[T, H, W, C\]"),
        ({"initial_downsample_stack_conv_num_layers": 3}, "initial_downsample_stack_conv_num_layers=3 must be"),
    ],
)
def test_what_we_do_not_build_is_rejected_by_name(change, says):
    with pytest.raises(ValueError, match=says):
        public_keys("earthformer", {**PUBLIC, **change})


@pytest.mark.parametrize("field", ["base_units", "padding_type", "initial_downsample_stack_conv_dim_list"])
def test_a_field_that_is_not_stated_is_asked_for(field):
    with pytest.raises(ValueError, match=f"the public configuration lacks {field}"):
        public_keys("earthformer", {key: value for key, value in PUBLIC.items() if key != field})
