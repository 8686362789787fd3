"""A pipeline: how a stage's own fields lie over the shared ones."""

from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, PipelineConfig, from_mapping


def _pipeline(**over) -> PipelineConfig:
    data = {
        "name": "p",
        "run_dir": "runs/p",
        "seed": 3,
        "optimizer": {"learning_rate": 4e-3, "warmup_fraction": 0.2},
        "student": {"init": "teacher"},
        "stages": {
            "teacher": {"max_steps": 5},
            "student": {"max_steps": 8, "optimizer": {"learning_rate": 2e-3}},
            "direct": {"max_steps": 13, "seed": 4},
            "direct-unweighted": {"stage": "direct", "loss": {"thresholds": [], "weights": [1.0]}},
        },
    }
    return from_mapping(PipelineConfig, {**data, **over})


def test_a_stage_takes_the_shared_fields_and_its_own_over_them():
    student = _pipeline().train_config("student")
    assert student.stage == "student" and student.max_steps == 8 and student.seed == 3
    assert student.optimizer.learning_rate == 2e-3
    assert student.optimizer.warmup_fraction == 0.2
    assert _pipeline().train_config("direct").seed == 4
    assert _pipeline().train_config("teacher").optimizer.learning_rate == 4e-3


def test_a_stage_has_a_name_and_a_folder_of_its_own():
    config = _pipeline().train_config("direct-unweighted")
    assert config.name == "p-direct-unweighted"
    assert config.run_dir == Path("runs/p/direct-unweighted")
    assert config.stage == "direct" and config.loss.weights == (1.0,)


def test_the_student_learns_from_the_pipelines_own_teacher_unless_told_otherwise():
    assert _pipeline().train_config("student").student.teacher == Path("runs/p/teacher")
    assert _pipeline().train_config("student").student.init == "teacher"
    own = _pipeline(stages={"student": {"student": {"teacher": "elsewhere"}}})
    assert own.train_config("student").student.teacher == Path("elsewhere")
    shared = _pipeline(student={"teacher": "shared/teacher"}, stages={"student": {}})
    assert shared.train_config("student").student.teacher == Path("shared/teacher")


def test_a_student_by_another_name_gets_the_teacher_too():
    config = _pipeline(stages={"teacher": {}, "oracle": {"stage": "student", "student": {"extension": "oracle"}}})
    assert config.train_config("oracle").student.teacher == Path("runs/p/teacher")
    assert config.train_config("oracle").student.extension == "oracle"


def test_all_wrong_stages_are_rejected_when_the_pipeline_is_read():
    with pytest.raises(ConfigError, match=r"stages\.b does not hold"):
        _pipeline(stages={"teacher": {}, "b": {"stage": "direct", "engine": {"zero_stage": 0}}})
    with pytest.raises(ConfigError, match="stages"):
        _pipeline(stages={"teacher": 5})


def test_a_field_of_the_pipeline_alone_is_no_field_of_a_stage():
    with pytest.raises(ConfigError, match="time_budget_minutes: unknown key"):
        _pipeline(stages={"teacher": {"time_budget_minutes": 3}})
