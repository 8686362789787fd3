"""The derived DeepSpeed configuration: batch sizes are consistent for every number of ranks."""

import json
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from simcast_hpc.config import ConfigError, EarthformerConfig, OptimizerConfig, StackConvStem
from simcast_hpc.distributed.engine import build_engine, deepspeed_config, parameter_groups, set_learning_rate
from simcast_hpc.models import build_model
from tests.archives import tiny_config


@pytest.mark.parametrize(("ranks", "micro"), list(product([1, 2, 3, 4, 8], [1, 2, 4])))
def test_batch_sizes_are_consistent(tmp_path, ranks, micro):
    config = tiny_config(tmp_path, batch={"global_size": 96, "micro_size": micro})
    derived = deepspeed_config(config, world_size=ranks)
    assert derived["train_batch_size"] == 96
    assert derived["train_micro_batch_size_per_gpu"] == micro
    assert micro * ranks * derived["gradient_accumulation_steps"] == 96


def test_ranks_that_do_not_divide_the_batch_are_rejected(tmp_path):
    config = tiny_config(tmp_path, batch={"global_size": 8, "micro_size": 2})
    with pytest.raises(
        ConfigError, match=r"batch\.global_size=8 is not a multiple of .* = 2 x 3; the number of ranks must divide"
    ):
        deepspeed_config(config, world_size=3)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_stage_precision_and_clipping_are_passed_on(tmp_path, stage, precision):
    config = tiny_config(
        tmp_path, engine={"zero_stage": stage, "precision": precision}, optimizer={"gradient_clip": 0.5}
    )
    derived = deepspeed_config(config, world_size=1)
    assert derived["zero_optimization"]["stage"] == stage
    assert derived["bf16"] == {"enabled": precision == "bf16"}
    assert derived["gradient_clipping"] == 0.5
    assert json.loads(json.dumps(derived)) == derived


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [
        ({}, set()),
        ({"zero_stage": 2, "offload": "optimizer"}, {"offload_optimizer"}),
        ({"zero_stage": 3, "offload": "parameters"}, {"offload_optimizer", "offload_param"}),
        ({"zero_stage": 3, "zero_hpz_partition_size": 2}, {"zero_hpz_partition_size"}),
    ],
)
def test_memory_options_are_passed_to_deepspeed(tmp_path, engine, wanted):
    derived = deepspeed_config(tiny_config(tmp_path, engine={"precision": "fp32", **engine}), world_size=2)
    zero = derived["zero_optimization"]
    assert zero.keys() - {"stage", "stage3_param_persistence_threshold", "parameter_alignment"} == wanted
    assert all(zero[key]["device"] == "cpu" for key in wanted if key.startswith("offload"))
    assert derived["zero_force_ds_cpu_optimizer"] is False, (
        "otherwise DeepSpeed compiles its CPU Adam at the first start"
    )


def test_gradients_are_reduced_in_fp32_by_default(tmp_path):
    config = tiny_config(tmp_path, engine={"precision": "bf16"})
    assert deepspeed_config(config, world_size=2)["communication_data_type"] == "fp32"
    config = tiny_config(tmp_path, engine={"precision": "bf16", "gradient_reduction": "bf16"})
    assert deepspeed_config(config, world_size=2)["communication_data_type"] == "bf16"
    with pytest.raises(ConfigError, match=r"gradient_reduction=bf16 requires engine\.precision=bf16 \(got fp32\)"):
        tiny_config(tmp_path, engine={"precision": "fp32", "gradient_reduction": "bf16"})


def test_further_options_are_passed_to_deepspeed(tmp_path):
    options = {
        "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 1000, "offload_optimizer": {"ratio": 1.0}},
        "comms_logger": {"enabled": True},
    }
    engine = {"zero_stage": 2, "precision": "fp32", "offload": "optimizer", "deepspeed": options}
    config = tiny_config(tmp_path, engine=engine)
    derived = deepspeed_config(config, world_size=2)
    zero = derived["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["reduce_bucket_size"]) == (2, True, 1000)
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True, "ratio": 1.0}
    assert derived["comms_logger"] == {"enabled": True}
    assert config.science() == tiny_config(tmp_path, engine=engine | {"deepspeed": {}}).science()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clipping": 1.0}, r"deepspeed\.gradient_clipping=1\.0 .*; set optimizer\.gradient_clip"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage=3 .*; set engine\.zero_stage"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled=True .*; set engine\.precision"),
        ({"bf16": {}}, r"bf16={} .*; set engine\.precision"),
        ({"zero_optimization": {"mics_shard_size": 8}}, r"set engine\.zero_hpz_partition_size: .* no MiCS"),
        ({"zero_optimization": {"offload_param": {"buffer_count": 9}}}, r"requires engine\.offload=parameters"),
        ({"communication_data_type": "bf16"}, r"set engine\.gradient_reduction"),
        ({"gradient_predivide_factor": "x" * 3, "steps_per_print": float("inf")}, r"not a finite number"),
    ],
)
def test_options_that_a_field_sets_are_rejected(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, engine={"zero_stage": 3, "deepspeed": options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_optimisation": {}}, r"zero_optimisation: unknown .*; did you mean zero_optimization\?"),
        ({"qqq": 1}, r"deepspeed\.qqq: unknown or without effect$"),
        (
            {"zero_optimization": {"overlap_com": True}},
            r"zero_optimization\.overlap_com: unknown option of DeepSpeed; did you mean overlap_comm\?",
        ),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, r"reduce_bucket_size: .*, got 'many'"),
        ({"zero_optimization": {"leaf_module": {"class": []}}}, r"leaf_module\.class: .*; did you mean classes\?"),
        ({"zero_optimization": 3}, r"zero_optimization=3 is not a mapping"),
    ],
)
def test_unknown_and_invalid_options_are_rejected_with_the_nearest_one(tmp_path, options, message):
    config = tiny_config(tmp_path, engine={"zero_stage": 3, "deepspeed": options})
    with pytest.raises(ConfigError, match=message):
        deepspeed_config(config, world_size=1)


def test_quantized_communication_belongs_to_the_identity_of_a_run(tmp_path):
    on, off = (
        tiny_config(
            tmp_path, engine={"zero_stage": 3, "deepspeed": {"zero_optimization": {"zero_quantized_weights": value}}}
        ).science()
        for value in (True, False)
    )
    key = "engine.deepspeed.zero_optimization.zero_quantized_weights"
    assert on[key] is True and key not in off
    assert not any("reduction" in name or "deepspeed" in name for name in off), "old runs can be resumed"


def test_hierarchical_partitions_that_do_not_divide_the_ranks_are_rejected(tmp_path):
    config = tiny_config(
        tmp_path,
        engine={"zero_stage": 3, "zero_hpz_partition_size": 2, "precision": "fp32"},
        batch={"global_size": 6, "micro_size": 2},
    )
    with pytest.raises(
        ConfigError, match=r"engine\.zero_hpz_partition_size=2 does not divide the number of ranks, 3; choose 1 or 3"
    ):
        deepspeed_config(config, world_size=3)


def test_deepspeed_configures_no_optimizer_and_no_schedule(tmp_path):
    assert not {"optimizer", "scheduler"} & deepspeed_config(tiny_config(tmp_path), world_size=1).keys()


def test_a_model_without_trainable_parameters_is_rejected(tmp_path):
    world = SimpleNamespace(size=1)
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_engine(frozen, tiny_config(tmp_path), world)  # pyright: ignore[reportArgumentType]


def test_by_default_all_parameters_decay_in_one_group():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    (group,) = parameter_groups(module, OptimizerConfig(weight_decay=0.1))
    assert [id(one) for one in group["params"]] == [id(one) for one in module.parameters()]


def test_norms_biases_and_position_bias_tables_do_not_decay():
    config = EarthformerConfig(
        grid=(8, 8), width=8, heads=1, stem=StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
    )
    module = build_model(config, frames_in=3, frames_out=2)
    module.query.requires_grad_(False)
    groups = parameter_groups(module, OptimizerConfig(weight_decay=0.1, no_decay="norms_and_biases"))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, spared = ([names[id(one)] for one in group["params"]] for group in groups)
    assert "weight_decay" not in groups[0] and groups[1]["weight_decay"] == 0.0
    assert sorted(decayed + spared) == sorted(name for name, p in module.named_parameters() if p.requires_grad)
    assert decayed == [name for name in names.values() if name in decayed], "the order of the module"
    assert {"head.weight", "positions.time", "global_vectors", "stem.stages.0.block.convs.0.weight"} <= set(decayed)
    table = "encoder.levels.0.0.attentions.0.bias.table"
    assert {"head.bias", table, "stem.stages.0.block.norms.0.weight", "encoder.merges.0.norm.weight"} <= set(spared)
    assert all(module.get_parameter(name).ndim > 1 for name in decayed)


def test_empty_groups_are_omitted():
    (group,) = parameter_groups(torch.nn.LayerNorm(2), OptimizerConfig(weight_decay=0.1, no_decay="norms_and_biases"))
    assert group["weight_decay"] == 0.0


def test_the_learning_rate_is_written_into_every_group():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.0} for _ in range(3)]
    engine = SimpleNamespace(optimizer=torch.optim.AdamW(groups))
    set_learning_rate(engine, 0.25)
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.25] * 3
    assert {group["betas"] for group in engine.optimizer.param_groups} == {(0.9, 0.999)}
    set_learning_rate(engine, 0.25, betas=(0.85, 0.99))
    assert [group["betas"] for group in engine.optimizer.param_groups] == [(0.85, 0.99)] * 3
