"""Global batch, micro-batch and ranks, and the rule for learning rates of other global batches."""

import pytest

from simcast_hpc.config import BatchConfig, ConfigError, TrainConfig, from_mapping

MINIMAL = {"name": "a", "run_dir": "runs/a", "stage": "direct"}


def _config(**changes) -> TrainConfig:
    return from_mapping(TrainConfig, {**MINIMAL, **changes})


@pytest.mark.parametrize(("ranks", "steps"), [(1, 16), (2, 8), (8, 2), (16, 1)])
def test_accumulation_follows_from_batch_and_ranks(ranks, steps):
    assert BatchConfig(global_size=64, micro_size=4).accumulation_steps(ranks) == steps


@pytest.mark.parametrize(
    ("size", "micro", "ranks", "valid"),
    [
        (64, 4, 24, "the number of ranks must divide batch.global_size=64"),
        (64, 5, 1, "choose batch.micro_size=1, 2, 4, 8, 16, 32 or 64"),
        (8, 3, 2, "choose batch.micro_size=1, 2 or 4"),
        (7, 2, 7, "choose batch.micro_size=1"),
    ],
)
def test_rejects_batch_that_the_ranks_cannot_split(size, micro, ranks, valid):
    with pytest.raises(ConfigError) as caught:
        BatchConfig(global_size=size, micro_size=micro).accumulation_steps(ranks)
    message = str(caught.value)
    assert f"batch.global_size={size}" in message and f"{micro} x {ranks}; {valid}" in message


def test_more_ranks_than_samples_change_no_recipe_silently():
    with pytest.raises(
        ConfigError, match=r"choose 1, 2, 4 or 8 ranks\. Another batch\.global_size changes the training; "
    ):
        BatchConfig(global_size=8).accumulation_steps(16)


def test_a_batch_rule_is_a_change_of_the_recipe():
    rule = {"reference_size": 8, "warmup_steps": 500}
    config = _config(batch={"global_size": 32}, optimizer={"batch_rule": rule, "learning_rate": 1e-3})
    assert config.optimizer.peak(32) == pytest.approx(2e-3)
    assert config.science()["optimizer.batch_rule.reference_size"] == 8
    assert "optimizer.batch_rule" not in _config().science(), "old runs can be resumed"
    with pytest.raises(ConfigError, match=r"warmup_steps=500 must be below max_steps=500"):
        _config(max_steps=500, optimizer={"batch_rule": rule})


@pytest.mark.parametrize(("spatial", "ranks", "groups"), [(1, 6, 6), (2, 6, 3), (6, 6, 1)])
def test_ranks_are_divided_into_groups_that_share_a_sample(spatial, ranks, groups):
    assert _config(parallel={"spatial": spatial}).parallel.groups(ranks) == groups


@pytest.mark.parametrize(("spatial", "ranks", "valid"), [(4, 6, "choose 1, 2, 3 or 6"), (2, 1, "choose 1$")])
def test_rejects_ranks_that_spatial_sharding_does_not_divide(spatial, ranks, valid):
    with pytest.raises(ConfigError, match=rf"parallel\.spatial={spatial} does not divide .*, {ranks}; {valid}"):
        _config(parallel={"spatial": spatial}).parallel.groups(ranks)


def test_spatial_sharding_is_operational():
    assert _config(parallel={"spatial": 2}).science() == _config().science(), "it may change at a resume"


@pytest.mark.parametrize(
    "engine", [{"compile": True}, {"cuda_graph": True}, {"zero_stage": 3, "zero_hpz_partition_size": 2}]
)
def test_spatial_sharding_excludes_options_of_the_engine(engine):
    name = next(key for key in engine if key != "zero_stage")
    with pytest.raises(ConfigError, match=rf"parallel\.spatial=2 excludes engine\.{name}="):
        _config(parallel={"spatial": 2}, engine=engine)
