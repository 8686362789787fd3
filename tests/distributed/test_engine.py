"""DeepSpeed's configuration, derived: its products hold on every number of ranks, and nothing of it is ours twice."""

import json
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.distributed.engine import build_engine, deepspeed_config, set_learning_rate
from tests.archives import tiny_config


@pytest.mark.parametrize(("ranks", "micro"), list(product([1, 2, 3, 4, 8], [1, 2, 4])))
def test_the_products_hold(tmp_path, ranks, micro):
    config = tiny_config(tmp_path, batch={"global_size": 96, "micro_size": micro})
    derived = deepspeed_config(config, world_size=ranks)
    assert derived["train_batch_size"] == 96
    assert derived["train_micro_batch_size_per_gpu"] == micro
    assert micro * ranks * derived["gradient_accumulation_steps"] == 96


def test_ranks_that_cannot_share_the_batch_are_refused(tmp_path):
    config = tiny_config(tmp_path, batch={"global_size": 8, "micro_size": 2})
    with pytest.raises(ConfigError, match=r"batch\.global_size=8 is not a multiple of .* = 2 x 3; try .*=6"):
        deepspeed_config(config, world_size=3)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_stage_precision_and_clipping_go_through(tmp_path, stage, precision):
    config = tiny_config(
        tmp_path, engine={"zero_stage": stage, "precision": precision}, optimizer={"gradient_clip": 0.5}
    )
    derived = deepspeed_config(config, world_size=1)
    assert derived["zero_optimization"]["stage"] == stage
    assert derived["bf16"] == {"enabled": precision == "bf16"}
    assert derived["gradient_clipping"] == 0.5
    assert json.loads(json.dumps(derived)) == derived


def test_neither_optimizer_nor_schedule_is_left_to_deepspeed(tmp_path):
    assert not {"optimizer", "scheduler"} & deepspeed_config(tiny_config(tmp_path), world_size=1).keys()


def test_a_model_without_trainable_parameters_is_refused(tmp_path):
    world = SimpleNamespace(place=SimpleNamespace(world_size=1))
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_engine(frozen, tiny_config(tmp_path), world)  # pyright: ignore[reportArgumentType]


def test_the_learning_rate_goes_into_every_group():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.0} for _ in range(3)]
    engine = SimpleNamespace(optimizer=torch.optim.AdamW(groups))
    set_learning_rate(engine, 0.25)
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.25] * 3
