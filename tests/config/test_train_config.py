"""One run: what its sections refuse, what it derives, and what of it is science."""

import json
from pathlib import Path

import pytest

from simcast_hpc.config import BatchConfig, ConfigError, TrainConfig, from_mapping

LEAST = {"name": "a", "run_dir": "runs/a", "stage": "direct"}
STUDENT = {**LEAST, "stage": "student", "student": {"teacher": "runs/teacher"}}


def _config(**over) -> TrainConfig:
    return from_mapping(TrainConfig, {**LEAST, **over})


@pytest.mark.parametrize(("ranks", "steps"), [(1, 16), (2, 8), (8, 2), (16, 1)])
def test_accumulation_follows_from_batch_and_ranks(ranks, steps):
    assert BatchConfig(global_size=64, micro_size=4).accumulation_steps(ranks) == steps


@pytest.mark.parametrize(
    ("size", "micro", "ranks", "near"), [(64, 4, 24, 96), (64, 5, 1, 65), (7, 1, 2, 8), (1, 1, 4, 4)]
)
def test_a_batch_the_ranks_cannot_share_is_rejected(size, micro, ranks, near):
    with pytest.raises(ConfigError) as caught:
        BatchConfig(global_size=size, micro_size=micro).accumulation_steps(ranks)
    said = str(caught.value)
    assert f"batch.global_size={size}" in said and f"{micro} x {ranks}" in said
    assert f"try batch.global_size={near}" in said
    assert near % (micro * ranks) == 0


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ({"thresholds": [10.0]}, "loss.thresholds needs loss.unit.*mm/h"),
        ({"thresholds": [10.0, 5.0], "unit": "mm/h", "weights": [1.0, 2.0, 3.0]}, r"must ascend, got \[10.0, 5.0\]"),
        ({"thresholds": [5.0, 5.0], "unit": "mm/h", "weights": [1.0, 2.0, 3.0]}, r"must ascend, got \[5.0, 5.0\]"),
        ({"thresholds": [5.0], "unit": "mm/h", "weights": [1.0]}, "loss.weights has 1 values for 1 thresholds; give 2"),
        ({"thresholds": [], "weights": [1.0, 10.0]}, "loss.weights has 2 values for 0 thresholds; give 1"),
        ({"weights": [1.0, 2.0, 3.0]}, "loss.weights has 3 values and no loss.thresholds"),
        ({"weights": [1.0, 0.0]}, "loss.weights.1: .*got 0"),
    ],
)
def test_a_weight_table_that_does_not_fit_is_rejected(loss, says):
    with pytest.raises(ConfigError, match=says):
        _config(loss=loss)


def test_an_unweighted_loss_and_a_table_are_accepted():
    assert _config(loss={"thresholds": [], "weights": [1.0]}).loss.thresholds == ()
    table = {"thresholds": [2, 5], "unit": "mm/h", "weights": [1, 2, 5], "inclusive": True}
    assert _config(loss=table).loss.thresholds == (2.0, 5.0)


def test_bf16_without_a_zero_stage_is_rejected_with_a_pointer_to_stage_1():
    with pytest.raises(ConfigError, match=r"engine\.zero_stage=0 .*set engine\.zero_stage=1"):
        _config(engine={"zero_stage": 0})
    assert _config(engine={"zero_stage": 0, "precision": "fp32"}).engine.zero_stage == 0


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (
            {"zero_stage": 0, "precision": "fp32", "offload": "optimizer"},
            r"engine\.offload=optimizer .*zero_stage=1, 2 or",
        ),
        ({"zero_stage": 2, "offload": "parameters"}, r"engine\.offload=parameters .*zero_stage=2 .*set .*zero_stage=3"),
        ({"zero_stage": 1, "zero_hpz_partition_size": 4}, r"zero_hpz_partition_size=4 .*zero_stage=1 .*zero_stage=3"),
        ({"offload": "disk"}, r"engine\.offload.*'none', 'optimizer' or 'parameters'"),
        ({"zero_stage": 3, "zero_hpz_partition_size": 0}, "engine.zero_hpz_partition_size"),
    ],
)
def test_memory_options_that_do_nothing_together_are_rejected(engine, says):
    with pytest.raises(ConfigError, match=says):
        _config(engine=engine)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_that_shares_out_can_keep_its_optimizer_on_the_host(stage):
    assert _config(engine={"zero_stage": stage, "offload": "optimizer"}).engine.offload == "optimizer"


@pytest.mark.parametrize(
    ("size", "ranks", "right"),
    [(3, 8, "it may be 2, 4, 8;"), (16, 8, "it may be 2, 4, 8;"), (2, 1, "one rank has nothing")],
)
def test_a_hierarchical_partition_the_ranks_do_not_divide_into_is_rejected(size, ranks, right):
    engine = _config(engine={"zero_stage": 3, "zero_hpz_partition_size": size}).engine
    with pytest.raises(
        ConfigError, match=f"engine.zero_hpz_partition_size={size} does not divide the {ranks} .*{right}"
    ):
        engine.reject_ranks(ranks)
    engine.reject_ranks(size * 2)


def test_a_teacher_longer_than_the_student_is_rejected():
    with pytest.raises(ConfigError, match=r"sequence\.teacher_frames_out=13 is longer than sequence\.frames_out=12"):
        _config(sequence={"teacher_frames_out": 13})
    assert _config(sequence={"teacher_frames_out": 12}).sequence.teacher_frames_out == 12


@pytest.mark.parametrize("student", [{}, {"extension": "none", "init": "teacher"}])
def test_a_student_without_a_teacher_is_rejected(student):
    with pytest.raises(ConfigError, match=r"student needs student\.teacher, the run folder"):
        _config(stage="student", student=student)


@pytest.mark.parametrize("extension", ["oracle", "none"])
def test_the_controls_need_no_teacher(extension):
    assert _config(stage="student", student={"extension": extension}).student.teacher is None


def test_the_teacher_puts_out_the_short_horizon_and_the_others_the_long_one():
    sequence = {"frames_in": 13, "frames_out": 12, "teacher_frames_out": 6}
    assert _config(stage="teacher", sequence=sequence).frames_out == 6
    assert _config(stage="direct", sequence=sequence).frames_out == 12
    assert from_mapping(TrainConfig, {**STUDENT, "sequence": sequence}).frames_out == 12


@pytest.mark.parametrize(
    ("rollouts", "folder"), [("online", None), ("cached", Path("runs/a/rollouts")), ("else/where", Path("else/where"))]
)
def test_where_rollouts_stand(rollouts, folder):
    config = from_mapping(TrainConfig, {**STUDENT, "student": {"teacher": "runs/teacher", "rollouts": rollouts}})
    assert config.rollout_dir == folder


@pytest.mark.parametrize(
    "over",
    [
        {"name": "b"},
        {"run_dir": "elsewhere"},
        {"batch": {"micro_size": 4}},
        {"data": {"root": "elsewhere"}},
        {"data": {"workers": 3}},
        {"engine": {"zero_stage": 3}},
        {"engine": {"zero_stage": 3, "offload": "parameters", "zero_hpz_partition_size": 4}},
        {"engine": {"timeout_minutes": 1.0}},
        {"checkpoint": {"every_steps": 7, "ahead_steps": 0, "keep": 9}},
        {"log": {"every_steps": 1}},
        {"student": {"teacher": "another/folder"}},
        {"student": {"teacher": "runs/teacher", "rollouts": "cached"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", [LEAST, STUDENT], ids=["direct", "student"])
def test_science_ignores_where_and_how_a_run_runs(base, over):
    assert from_mapping(TrainConfig, {**base, **over}).science() == from_mapping(TrainConfig, base).science()


@pytest.mark.parametrize(
    "over",
    [
        {"seed": 1},
        {"max_steps": 7},
        {"stage": "teacher"},
        {"batch": {"global_size": 16}},
        {"data": {"augment": True}},
        {"data": {"frame_stride": 2}},
        {"data": {"window_stride": 5}},
        {"data": {"block_mean": 4}},
        {"sequence": {"frames_in": 12}},
        {"model": {"hidden_spatial": 32}},
        {"loss": {"weights": [1.0, 5.0]}},
        {"optimizer": {"learning_rate": 1e-3}},
        {"engine": {"precision": "fp32"}},
    ],
    ids=str,
)
def test_science_moves_with_what_is_learned(over):
    changed, base = _config(**over).science(), _config().science()
    differing = {key for key in base.keys() | changed.keys() if base.get(key) != changed.get(key)}
    wanted = {f"{section}.{key}" for section, held in over.items() if isinstance(held, dict) for key in held}
    assert differing == (wanted or set(over))


def test_science_of_a_student_moves_with_its_student_section_and_that_of_others_does_not():
    other = {"teacher": "runs/teacher", "pseudo_dtype": "uint8"}
    assert (
        from_mapping(TrainConfig, {**STUDENT, "student": other}).science()
        != from_mapping(TrainConfig, STUDENT).science()
    )
    assert _config(student=other).science() == _config().science()


def test_the_grid_of_a_model_is_no_science_since_it_is_that_of_the_data():
    open_, stated = (_config(model={"kind": "earthformer", **over}) for over in ({}, {"grid": [384, 384]}))
    assert open_.model != stated.model
    assert open_.science() == stated.science()


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (
            {"no_decay": "norms_and_biases"},
            r"optimizer\.no_decay=norms_and_biases changes nothing with .*weight_decay=0",
        ),
        ({"no_decay": "norms", "weight_decay": 0.1}, r"optimizer\.no_decay: .*got 'norms'"),
        ({"final_fraction": 0.1, "schedule": "constant"}, r"optimizer\.final_fraction changes nothing with .*constant"),
        ({"final_fraction": 1.5}, r"optimizer\.final_fraction: .*got 1\.5"),
    ],
)
def test_an_optimizers_option_that_would_change_nothing_is_rejected(optimizer, says):
    with pytest.raises(ConfigError, match=says):
        _config(optimizer=optimizer)


def test_science_is_plain_data():
    science = from_mapping(TrainConfig, STUDENT).science()
    assert json.loads(json.dumps(science)) == science
    assert science["student.init"] == "scratch"
