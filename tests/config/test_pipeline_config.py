"""Pipelines: how each stage combines the shared sections that it reads with its own fields."""

from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, PipelineConfig, SamplingConfig, StudentConfig, from_mapping, to_yaml


def _pipeline(**changes) -> PipelineConfig:
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
    return from_mapping(PipelineConfig, {**data, **changes})


def test_own_fields_of_a_stage_override_the_shared_ones():
    student = _pipeline().train_config("student")
    assert student.stage == "student" and student.max_steps == 8 and student.seed == 3
    assert student.optimizer.learning_rate == 2e-3
    assert student.optimizer.warmup_fraction == 0.2
    assert _pipeline().train_config("direct").seed == 4
    assert _pipeline().train_config("teacher").optimizer.learning_rate == 4e-3


def test_stage_has_its_own_name_and_run_directory():
    config = _pipeline().train_config("direct-unweighted")
    assert config.name == "p-direct-unweighted"
    assert config.run_dir == Path("runs/p/direct-unweighted")
    assert config.stage == "direct" and config.loss.weights == (1.0,)


def test_student_uses_the_teacher_of_the_pipeline_by_default():
    assert _pipeline().train_config("student").student.teacher == Path("runs/p/teacher")
    assert _pipeline().train_config("student").student.init == "teacher"
    own = _pipeline(stages={"student": {"student": {"teacher": "elsewhere"}}})
    assert own.train_config("student").student.teacher == Path("elsewhere")
    shared = _pipeline(student={"teacher": "shared/teacher"}, stages={"student": {}})
    assert shared.train_config("student").student.teacher == Path("shared/teacher")


def test_student_of_another_name_uses_the_teacher_too():
    config = _pipeline(stages={"teacher": {}, "oracle": {"stage": "student", "student": {"extension": "oracle"}}})
    assert config.train_config("oracle").student.teacher == Path("runs/p/teacher")
    assert config.train_config("oracle").student.extension == "oracle"


def test_rejects_invalid_stages_when_the_pipeline_is_read():
    with pytest.raises(ConfigError, match=r"Invalid configuration stages\.b:"):
        _pipeline(stages={"teacher": {}, "b": {"stage": "direct", "engine": {"zero_stage": 0}}})
    with pytest.raises(ConfigError, match="stages"):
        _pipeline(stages={"teacher": 5})
    with pytest.raises(ConfigError, match="stages is empty; give at least one stage"):
        _pipeline(stages={})


def test_rejects_stages_that_build_on_themselves_or_on_later_stages():
    with pytest.raises(
        ConfigError, match=r"stages\.teacher\.stage='student': student\.teacher .* its own run runs/p/teacher"
    ):
        _pipeline(stages={"teacher": {"stage": "student"}})
    with pytest.raises(
        ConfigError, match=r"stages\.student: student\.teacher is the run of stage teacher, which runs later"
    ):
        _pipeline(stages={"student": {}, "teacher": {}})
    with pytest.raises(ConfigError, match=r"student\.teacher of stage again is its own run"):
        _pipeline(stages={"teacher": {}, "again": {"stage": "student", "student": {"teacher": "runs/p/again"}}})


def test_rejects_field_of_the_pipeline_in_a_stage():
    with pytest.raises(ConfigError, match="time_budget_minutes: unknown key"):
        _pipeline(stages={"teacher": {"time_budget_minutes": 3}})


def test_stage_takes_only_the_shared_sections_that_it_reads():
    config = _pipeline(student={"rollouts": "cached"})
    assert config.train_config("student").student.rollouts == "cached"
    assert config.train_config("direct").student == StudentConfig()
    assert config.unread_sections() == {"autoencoder", "diffusion", "sampling"}


def test_rejects_section_that_no_stage_reads():
    with pytest.raises(
        ConfigError,
        match=r"diffusion\.timesteps=7 has no effect in stages teacher, student, direct; "
        r"section diffusion is read by: diffusion",
    ):
        _pipeline(diffusion={"timesteps": 7})


NOISE = {"model": {"noise_channels": 1}, "loss": {"mse_weight": 0.0, "crps_weight": 1.0}}


def test_shared_sampling_reaches_only_the_stages_that_sample():
    stages = {"direct": {}, "noisy": {"stage": "direct", **NOISE}, "diffusion": {}}
    config = _pipeline(student={}, sampling={"members": 7, "steps": 6}, stages=stages)
    assert config.train_config("direct").sampling == SamplingConfig()
    assert config.train_config("noisy").sampling == SamplingConfig(members=7)
    assert config.train_config("diffusion").sampling == SamplingConfig(members=7, steps=6)
    assert "sampling" not in config.unread_sections() and "\nsampling:" not in to_yaml(config.train_config("direct"))
    assert "sampling" not in config.train_config("noisy").unread_sections()


def test_noise_of_the_shared_network_reaches_stages_unless_they_name_another():
    plain = {"stage": "direct", "model": "simvp", "loss": {"mse_weight": 1.0, "crps_weight": 0.0}}
    config = _pipeline(student={}, sampling={"members": 7}, stages={"direct": {}, "plain": plain}, **NOISE)
    assert [config.train_config(name).sampling.members for name in ("direct", "plain")] == [7, 10]
    with pytest.raises(
        ConfigError, match=r"sampling\.members=7 has no effect: no stage is diffusion or has model\.noise"
    ):
        _pipeline(student={}, sampling={"members": 7}, stages={"direct": {}})


def test_rejects_own_section_that_the_stage_does_not_read():
    with pytest.raises(
        ConfigError, match=r"(?s)stages\.direct:.*student\.extension=oracle has no effect in stage direct"
    ):
        _pipeline(stages={"direct": {"student": {"extension": "oracle"}}, "student": {}})
