"""Training runs: invalid fields, sections per stage, derived values, and scientific fields."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from simcast_hpc.config import (
    STAGES,
    ConfigError,
    LossConfig,
    PipelineConfig,
    Section,
    TrainConfig,
    from_mapping,
    is_operational,
    read_config,
)

MINIMAL = {"name": "a", "run_dir": "runs/a", "stage": "direct"}
STUDENT = {**MINIMAL, "stage": "student", "student": {"teacher": "runs/teacher"}}


def _config(**changes) -> TrainConfig:
    return from_mapping(TrainConfig, {**MINIMAL, **changes})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"thresholds": [10.0]}, "loss.thresholds requires loss.unit.*mm/h"),
        ({"thresholds": [10.0, 5.0], "unit": "mm/h", "weights": [1.0, 2.0, 3.0]}, r"must ascend, got \[10.0, 5.0\]"),
        ({"thresholds": [5.0, 5.0], "unit": "mm/h", "weights": [1.0, 2.0, 3.0]}, r"must ascend, got \[5.0, 5.0\]"),
        ({"thresholds": [5.0], "unit": "mm/h", "weights": [1.0]}, "loss.weights has 1 values for 1 thresholds; give 2"),
        ({"thresholds": [], "weights": [1.0, 10.0]}, "loss.weights has 2 values for 0 thresholds; give 1"),
        ({"weights": [1.0, 2.0, 3.0]}, "loss.weights has 3 values and loss.thresholds is not set"),
        ({"weights": [1.0, 0.0]}, "loss.weights.1: .*got 0"),
    ],
)
def test_rejects_inconsistent_loss_weights(loss, message):
    with pytest.raises(ConfigError, match=message):
        _config(loss=loss)


def test_accepts_unweighted_and_multi_threshold_loss():
    assert _config(loss={"thresholds": [], "weights": [1.0]}).loss.thresholds == ()
    table = {"thresholds": [2, 5], "unit": "mm/h", "weights": [1, 2, 5], "inclusive": True}
    assert _config(loss=table).loss.thresholds == (2.0, 5.0)


def test_rejects_bf16_without_a_zero_stage():
    with pytest.raises(ConfigError, match=r"engine\.zero_stage=0 .*set engine\.zero_stage=1"):
        _config(engine={"zero_stage": 0})
    assert _config(engine={"zero_stage": 0, "precision": "fp32"}).engine.zero_stage == 0


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            {"zero_stage": 0, "precision": "fp32", "offload": "optimizer"},
            r"engine\.offload=optimizer requires engine\.zero_stage=1, 2 or 3 \(got 0\)",
        ),
        ({"zero_stage": 2, "offload": "parameters"}, r"engine\.offload=parameters requires .*zero_stage=3 \(got 2\)"),
        ({"zero_hpz_partition_size": 4}, r"zero_hpz_partition_size=4 requires engine\.zero_stage=3 \(got 1\)"),
        ({"offload": "disk"}, r"engine\.offload.*'none', 'optimizer' or 'parameters'"),
        ({"zero_stage": 3, "zero_hpz_partition_size": 0}, "engine.zero_hpz_partition_size"),
    ],
)
def test_rejects_memory_options_without_their_zero_stage(engine, message):
    with pytest.raises(ConfigError, match=message):
        _config(engine=engine)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimizer_offload_is_valid_from_zero_stage_1(stage):
    assert _config(engine={"zero_stage": stage, "offload": "optimizer"}).engine.offload == "optimizer"


@pytest.mark.parametrize(
    ("size", "ranks", "valid"), [(3, 8, "1, 2, 4 or 8"), (16, 8, "1, 2, 4 or 8"), (2, 1, "choose 1$")]
)
def test_rejects_secondary_partition_that_does_not_divide_the_ranks(size, ranks, valid):
    engine = _config(engine={"zero_stage": 3, "zero_hpz_partition_size": size}).engine
    with pytest.raises(
        ConfigError, match=f"partition_size={size} does not divide the number of ranks, {ranks}; .*{valid}"
    ):
        engine.reject_ranks(ranks)
    engine.reject_ranks(size * 2)


def test_rejects_teacher_horizon_beyond_the_student_horizon():
    with pytest.raises(ConfigError, match=r"sequence\.teacher_frames_out=13 is longer than sequence\.frames_out=12"):
        _config(sequence={"teacher_frames_out": 13})
    assert _config(sequence={"teacher_frames_out": 12}).sequence.teacher_frames_out == 12


@pytest.mark.parametrize("student", [{}, {"extension": "none", "init": "teacher"}])
def test_rejects_student_without_a_teacher(student):
    with pytest.raises(ConfigError, match=r"stage student requires student\.teacher, the run directory"):
        _config(stage="student", student=student)


@pytest.mark.parametrize("extension", ["oracle", "none"])
def test_control_extensions_require_no_teacher(extension):
    assert _config(stage="student", student={"extension": extension}).student.teacher is None


def test_teacher_forecasts_the_short_horizon_and_the_others_the_long_one():
    sequence = {"frames_in": 13, "frames_out": 12, "teacher_frames_out": 6}
    assert _config(stage="teacher", sequence=sequence).frames_out == 6
    assert _config(stage="direct", sequence=sequence).frames_out == 12
    assert from_mapping(TrainConfig, {**STUDENT, "sequence": sequence}).frames_out == 12


@pytest.mark.parametrize(
    ("rollouts", "folder"), [("online", None), ("cached", Path("runs/a/rollouts")), ("else/where", Path("else/where"))]
)
def test_rollout_dir(rollouts, folder):
    config = from_mapping(TrainConfig, {**STUDENT, "student": {"teacher": "runs/teacher", "rollouts": rollouts}})
    assert config.rollout_dir == folder


@pytest.mark.parametrize(
    "changes",
    [
        {"diffusion": {"timesteps": 7}},
        {"autoencoder": {"adversarial_start": 3}},
        {"student": {"extension": "oracle"}},
        {"sampling": {"steps": 3}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_rejects_section_that_the_stage_does_not_read(changes):
    section, (field, value) = next((name, *fields.items()) for name, fields in changes.items())
    message = f"{section}.{field}={value} has no effect in stage direct; section {section} is read by: {section}"
    if section == "sampling":
        message = r"sampling\.steps=3 has no effect in stage direct without model\.noise_channels"
    with pytest.raises(ConfigError, match=message):
        _config(**changes)
    with pytest.raises(ConfigError, match="has no effect in stage teacher"):
        _config(**changes, stage="teacher")


_OF_SECTION = {
    "model": ("groups", 2), "loss": ("weights", [1.0, 3.0]), "student": ("pseudo_dtype", "uint8"),
    "autoencoder": ("adversarial_start", 3), "diffusion": ("timesteps", 7), "sampling": ("members", 3),
    "data": ("augment", True), "sequence": ("frames_in", 7), "batch": ("global_size", 64), "ema": ("decay", 0.5),
    "optimizer": ("learning_rate", 1e-5), "engine": ("zero_stage", 2), "checkpoint": ("keep", 3),
    "log": ("every_steps", 3), "watch": ("most_skipped", 3),
    "validation": ("windows", 3), "parallel": ("spatial", 2),
}  # fmt: skip


_NOISE = {"model": {"noise_channels": 1}, "loss": {"mse_weight": 0.0, "crps_weight": 1.0}}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_rejects_the_sections_that_it_does_not_read(tmp_path, stage):
    sections = {name for name, field in TrainConfig.model_fields.items() if isinstance(field.default, Section)}
    assert sections == set(_OF_SECTION)
    required = {"student": {"teacher": "t"}} if stage == "student" else {}
    path = tmp_path / "c.yaml"
    for section, (field, value) in _OF_SECTION.items():
        samples = section == "sampling" and stage in ("direct", "student")
        plain = {"name": "a", "run_dir": "r", "stage": stage, **required, **(_NOISE if samples else {})}
        path.write_text(yaml.safe_dump(plain), encoding="utf-8")
        given = {**plain, section: {**plain.get(section, {}), field: value}}
        override = f"{section}.{field}={json.dumps(value)}"
        readers = type(TrainConfig.model_fields[section].default).read_by
        if stage in readers:
            assert from_mapping(TrainConfig, given) == read_config(TrainConfig, path, [override])
            continue
        message = rf"{section}\.{field}=.* has no effect in stage {stage}; section {section} is read by: {readers[0]}"
        with pytest.raises(ConfigError, match=message):
            from_mapping(TrainConfig, given)
        with pytest.raises(ConfigError, match=message):
            read_config(TrainConfig, path, [override])
        stages = {stage: {section: {field: value}}}
        with pytest.raises(ConfigError, match=message):
            from_mapping(PipelineConfig, {"name": "a", "run_dir": "r", "stages": stages})


def test_rejects_network_and_loss_of_a_forecast_in_an_autoencoder():
    with pytest.raises(ConfigError) as caught:
        _config(stage="autoencoder", model="earthformer", loss={"weights": [1.0, 2.0]})
    lines = [line.strip() for line in str(caught.value).splitlines()]
    readers = "teacher, direct, student"
    assert lines[1].startswith("model.kind=earthformer, ") and lines[1].endswith(f"section model is read by: {readers}")
    assert lines[2] == (
        f"loss.weights=(1.0, 2.0) has no effect in stage autoencoder; section loss is read by: {readers}"
    )


def test_accepts_defaults_in_a_section_that_the_stage_does_not_read():
    """So that complete configurations of earlier versions remain readable."""
    assert _config(diffusion={"timesteps": 1000}) == _config()


def test_every_section_declares_valid_stages():
    values = [getattr(_config(), name) for name in TrainConfig.model_fields]
    sections = [value for value in values if isinstance(value, BaseModel)]
    assert all(isinstance(section, Section) and set(section.read_by) <= set(STAGES) for section in sections)


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (MINIMAL, {"name": "b"}),
        (MINIMAL, {"run_dir": "elsewhere"}),
        (MINIMAL, {"batch": {"micro_size": 4}}),
        (MINIMAL, {"data": {"root": "elsewhere", "workers": 3}}),
        (MINIMAL, {"engine": {"zero_stage": 3, "offload": "parameters", "zero_hpz_partition_size": 4}}),
        (MINIMAL, {"engine": {"deterministic": True}}),
        (MINIMAL, {"checkpoint": {"every_steps": 7, "ahead_steps": 0, "keep": 9}, "log": {"every_steps": 1}}),
        (STUDENT, {"student": {"teacher": "another/folder", "rollouts": "cached"}}),
    ],
    ids=str,
)
def test_science_ignores_operational_fields(base, changes):
    assert from_mapping(TrainConfig, {**base, **changes}).science() == from_mapping(TrainConfig, base).science()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"max_steps": 7},
        {"stage": "teacher"},
        {"batch": {"global_size": 16}},
        {"data": {"augment": True, "frame_stride": 2, "window_stride": 5, "block_mean": 4}},
        {"sequence": {"frames_in": 12}},
        {"model": {"hidden_spatial": 32}},
        {"loss": {"weights": [1.0, 5.0]}},
        {"optimizer": {"learning_rate": 1e-3}},
        {"engine": {"precision": "fp32"}},
        {"engine": {"precision": "fp32", "tf32": True}},
    ],
    ids=str,
)
def test_science_contains_scientific_fields(changes):
    changed, base = _config(**changes).science(), _config().science()
    differing = {key for key in base.keys() | changed.keys() if base.get(key) != changed.get(key)}
    expected = {f"{name}.{key}" for name, fields in changes.items() if isinstance(fields, dict) for key in fields}
    assert differing == (expected or set(changes))


def test_tf32_at_its_default_is_omitted_from_the_identity_of_older_runs():
    assert "engine.tf32" not in _config(engine={"precision": "fp32"}).science()


def test_zero_terminal_snr_at_its_default_is_omitted_from_the_identity_of_older_runs():
    base = {"name": "a", "run_dir": "runs/a", "stage": "diffusion"}
    assert "diffusion.zero_terminal_snr" not in from_mapping(TrainConfig, base).science()
    pure = {"zero_terminal_snr": True, "prediction": "sample", "schedule": "scaled_linear"}
    science = from_mapping(TrainConfig, base | {"diffusion": pure}).science()
    assert {key: science[f"diffusion.{key}"] for key in pure} == pure


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"zero_terminal_snr": True}, "diffusion.prediction='epsilon' does not determine .* choose v or sample"),
        ({"zero_terminal_snr": True, "prediction": "v", "timesteps": 1}, "diffusion.timesteps of at least 2"),
        (
            {"beta_start": 0.03},
            "diffusion.beta_start=0.03 and diffusion.beta_end=0.02 must satisfy 0 < start <= end < 1",
        ),
        ({"beta_end": 1.0, "schedule": "scaled_linear"}, "diffusion.beta_end=1 must satisfy"),
        ({"prediction": "x0"}, "diffusion.prediction: .*'epsilon', 'v' or 'sample'"),
    ],
)
def test_rejects_schedules_that_do_not_suit_the_prediction(section, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(TrainConfig, {"name": "a", "run_dir": "runs/a", "stage": "diffusion", "diffusion": section})


def test_tf32_without_effect_is_rejected():
    with pytest.raises(ConfigError, match=r"engine\.tf32=true has no effect with engine\.precision=bf16"):
        _config(engine={"tf32": True})


def operational_fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the dotted names of the operational fields of a model and the models in it."""
    for name, field in model.model_fields.items():
        if is_operational(field):
            yield above + name
            continue
        for nested in models_in(field.annotation):
            yield from operational_fields(nested, f"{above}{name}.")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in get_args(annotation) for model in models_in(option)]


def test_all_fields_are_scientific_except_these():
    """A new field is scientific unless it is marked; a marked field is added here after thought."""
    assert set(operational_fields(TrainConfig)) == {
        *("name", "run_dir", "sampling", "checkpoint", "log", "watch", "parallel"),
        *("data.dataset", "data.root", "data.recode_as", "data.workers", "data.stage_to"),
        *("model.channels_last", "model.grid", "model.checkpoint_levels"),
        *("batch.micro_size", "autoencoder.model.checkpoint"),
        *(
            "engine.compile",
            "engine.cuda_graph",
            "engine.zero_stage",
            "engine.offload",
            "engine.zero_hpz_partition_size",
            "engine.timeout_minutes",
        ),
        *("engine.deterministic", "engine.gradient_reduction", "engine.deepspeed", "engine.zero_init"),
        *("student.teacher", "student.rollouts", "student.lease_seconds"),
        *("diffusion.autoencoder", "diffusion.student", "diffusion.fold_students", "diffusion.latents"),
        *("diffusion.casformer.checkpoint", "diffusion.validation"),
    }


def test_new_field_is_scientific():
    class NewLoss(LossConfig):
        smoothness: float = 0.5

    class NewConfig(TrainConfig):
        loss: NewLoss = NewLoss()

    changed, base = (from_mapping(cls, MINIMAL).science() for cls in (NewConfig, TrainConfig))
    assert changed == base | {"loss.smoothness": 0.5}


def described(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        yield above + name, field.description
        for nested in models_in(field.annotation):
            yield from described(nested, f"{above}{name}.")


@pytest.mark.parametrize("model", [TrainConfig, PipelineConfig])
def test_every_field_has_a_description(model):
    missing = [name for name, description in described(model) if not description]
    assert missing == []


def test_grid_of_a_model_is_operational():
    unset, stated = (_config(model={"kind": "earthformer", **grid}) for grid in ({}, {"grid": [384, 384]}))
    assert unset.model != stated.model
    assert unset.science() == stated.science()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            {"no_decay": "norms_and_biases"},
            r"optimizer\.no_decay=norms_and_biases has no effect with .*weight_decay=0",
        ),
        ({"no_decay": "norms", "weight_decay": 0.1}, r"optimizer\.no_decay: .*got 'norms'"),
        (
            {"final_fraction": 0.1, "schedule": "constant"},
            r"optimizer\.final_fraction=0\.1 has no effect with .*constant",
        ),
        ({"final_fraction": 1.5}, r"optimizer\.final_fraction: .*got 1\.5"),
    ],
)
def test_rejects_optimizer_option_without_effect(optimizer, message):
    with pytest.raises(ConfigError, match=message):
        _config(optimizer=optimizer)


def test_science_is_json_data():
    science = from_mapping(TrainConfig, STUDENT).science()
    assert json.loads(json.dumps(science)) == science
    assert science["student.init"] == "scratch"
