"""YAML files and --set: valid input, and error messages that name the key, its value and the valid choice."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from simcast_hpc.config import (
    ConfigError,
    EngineConfig,
    PipelineConfig,
    TrainConfig,
    from_mapping,
    read_config,
    to_yaml,
)

MINIMAL = {"name": "a", "run_dir": "runs/a", "stage": "direct"}
PIPELINE = {"name": "p", "run_dir": "runs/p", "stages": {"teacher": {}}}


def _read(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nrun_dir: runs/a\nstage: direct\n" + text, encoding="utf-8")
    return read_config(TrainConfig, path, overrides)


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (TrainConfig, {**MINIMAL, "sede": 1}, "sede: unknown key; did you mean seed?"),
        (
            TrainConfig,
            {**MINIMAL, "optimizer": {"learning_rat": 1.0}},
            "optimizer.learning_rat: unknown key; did you mean optimizer.learning_rate?",
        ),
        (
            PipelineConfig,
            {**PIPELINE, "evaluation": {"also": [{"name": "x", "data": {"rot": "d"}}]}},
            "evaluation.also.0.data.rot: unknown key; did you mean evaluation.also.0.data.root?",
        ),
        (
            PipelineConfig,
            {**PIPELINE, "stages": {"teacher": {"batch": {"micro_sise": 2}}}},
            "batch.micro_sise: unknown key; did you mean batch.micro_size?",
        ),
    ],
)
def test_rejects_unknown_key_with_nearest_key(cls, data, message):
    with pytest.raises(ConfigError) as caught:
        from_mapping(cls, data, where="run.yaml")
    assert message in [line.strip() for line in str(caught.value).splitlines()]
    assert "run.yaml" in str(caught.value)


def test_names_the_stage_of_an_invalid_key():
    with pytest.raises(ConfigError, match=r"Invalid configuration stages\.teacher:"):
        from_mapping(PipelineConfig, {**PIPELINE, "stages": {"teacher": {"max_step": 2}}})
    with pytest.raises(ConfigError, match=r"Invalid configuration stages\.techer:\s+stage: .*'techer'"):
        from_mapping(PipelineConfig, {**PIPELINE, "stages": {"techer": {}}})


def test_suggests_nothing_for_a_key_unlike_all_others():
    with pytest.raises(ConfigError, match=r"zzzzzz: unknown key$"):
        from_mapping(TrainConfig, {**MINIMAL, "zzzzzz": 1})


def test_names_all_invalid_keys_at_once():
    data = {**MINIMAL, "sede": 1, "data": {"workers": -1}, "max_steps": "ten"}
    with pytest.raises(ConfigError) as caught:
        from_mapping(TrainConfig, data)
    for part in ("sede", "data.workers", "-1", "max_steps", "'ten'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "3"),
        ("seed", True),
        ("seed", 1.5),
        ("seed", -1),
        ("max_steps", 0),
        ("data.augment", "yes"),
        ("data.augment", 1),
        ("sequence.frames_in", [13]),
        ("optimizer.learning_rate", "5e-3 "),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.warmup_fraction", 1.0),
        ("optimizer.betas", [0.9]),
        ("engine.zero_stage", 4),
        ("student.extension", "oracel"),
        ("run_dir", 3),
    ],
)
def test_rejects_invalid_value_by_its_dotted_key(key, value):
    data: dict = dict(MINIMAL)
    section, _, last = key.rpartition(".")
    if section:
        data[section] = {last: value}
    else:
        data[last] = value
    with pytest.raises(ConfigError) as caught:
        from_mapping(TrainConfig, data)
    line = str(caught.value).splitlines()[1]
    assert line.strip().startswith(key)
    if value == value:
        assert repr(value) in line


def test_rejects_section_that_is_not_a_mapping():
    with pytest.raises(ConfigError, match=r"batch: .*got 8"):
        from_mapping(TrainConfig, {**MINIMAL, "batch": 8})
    with pytest.raises(ConfigError, match="student"):
        from_mapping(PipelineConfig, {**PIPELINE, "stages": {"student": {"student": 3}}})


def test_names_missing_key():
    with pytest.raises(ConfigError, match=r"run_dir: required key is missing$"):
        from_mapping(TrainConfig, {"name": "a", "stage": "direct"})


@pytest.mark.parametrize(
    ("text", "key"),
    [("seed: 1\nseed: 2\n", "seed"), ("batch:\n  global_size: 8\n  global_size: 16\n", "global_size")],
)
def test_rejects_duplicate_key(tmp_path, text, key):
    with pytest.raises(ConfigError, match=rf"(?s)run\.yaml.*duplicate key '{key}'.*line \d+"):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-3", 5e-3), ("1E2", 100.0), ("1.e-2", 0.01), (".5e-2", 0.005), ("2e+1", 20.0), ("0.25", 0.25), ("3", 3.0)],
)
def test_reads_numbers_with_an_exponent(tmp_path, text, value):
    assert _read(tmp_path, f"optimizer: {{learning_rate: {text}}}\n").optimizer.learning_rate == value
    assert _read(tmp_path, "", f"optimizer.learning_rate={text}").optimizer.learning_rate == value


@pytest.mark.parametrize("name", ["e5", "5e", "1e-x", "run-1e-3"])
def test_keeps_words_that_resemble_numbers(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"name: {name}\nrun_dir: runs/a\nstage: direct\n", encoding="utf-8")
    assert read_config(TrainConfig, path).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "got NoneType"), ("- a\n", "got list"), ("a: [1\n", "not valid YAML"), ("? [1]\n: 2\n", "not valid YAML")],
)
def test_rejects_file_that_is_not_a_mapping(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"run.yaml.*{message}"):
        read_config(TrainConfig, path)


def test_finds_a_referenced_yaml_file_next_to_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "configs" / "run.yaml"
    path.write_text("name: a\nrun_dir: runs/a\nstage: direct\ndata: {dataset: radar.yaml}\n", encoding="utf-8")
    (tmp_path / "configs" / "radar.yaml").touch()
    assert read_config(TrainConfig, path).data.dataset == str(tmp_path / "configs" / "radar.yaml")
    assert read_config(TrainConfig, path, ["data.dataset=radar.yaml"]).data.dataset == "radar.yaml"
    (tmp_path / "radar.yaml").touch()
    assert read_config(TrainConfig, path).data.dataset == "radar.yaml", "the working directory takes precedence"


def test_rejects_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml is neither a configuration file nor the name"):
        read_config(TrainConfig, tmp_path / "absent.yaml")


def test_rejects_file_that_is_not_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\x89HDF\r\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"run\.yaml is not UTF-8 text"):
        read_config(TrainConfig, path)


def test_merges_yaml_anchors(tmp_path):
    config = _read(tmp_path, "log: &often {every_steps: 5}\ncheckpoint: {<<: *often, keep: 3}\n")
    assert (config.log.every_steps, config.checkpoint.every_steps, config.checkpoint.keep) == (5, 5, 3)


def test_overrides_replace_values_of_the_file(tmp_path):
    config = _read(
        tmp_path,
        "batch: {global_size: 8, micro_size: 4}\n",
        "batch.micro_size=2",
        "seed=7",
        "loss.weights=[1, 5]",
        "data.root=some/where=else",
        "data.augment=true",
        "optimizer={schedule: cosine}",
        "data.file_names=null",
        "seed=8",
    )
    assert config.batch.micro_size == 2 and config.batch.global_size == 8
    assert config.seed == 8
    assert config.loss.weights == (1.0, 5.0)
    assert config.data.root == Path("some/where=else")
    assert config.data.augment is True
    assert config.optimizer.schedule == "cosine"
    assert config.data.file_names is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch.micro_size", "--set 'batch.micro_size' must be key=value, such as"),
        ("=3", "--set '=3' must be key=value"),
        ("name.x=3", "name is 'a', not a section"),
        ("loss.weights=[1,", r"--set loss\.weights=.*not valid YAML"),
        ("batch.micro_sise=2", r"did you mean batch\.micro_size"),
        ("batch..micro_size=2", "unknown key"),
        ("seed=x", "seed: .*'x'"),
    ],
)
def test_rejects_invalid_override(tmp_path, override, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        _read(tmp_path, "", override)


@pytest.mark.parametrize(
    "config",
    [
        from_mapping(TrainConfig, MINIMAL),
        from_mapping(
            TrainConfig,
            {
                **MINIMAL,
                "data": {"root": "data/sevir", "file_names": ["a.h5", "b: c.h5"], "max_percent_missing": None},
                "loss": {"thresholds": [0.5, 10.0], "unit": "mm/h", "weights": [1.0, 2.0, 1e-7]},
                "optimizer": {"learning_rate": 1e-5, "betas": [0.8, 0.95]},
            },
        ),
        from_mapping(
            PipelineConfig,
            {
                **PIPELINE,
                "synthesis": {},
                "stages": {"teacher": {"max_steps": 3}, "student": {"optimizer": {"learning_rate": 2e-3}}},
                "evaluation": {"also": [{"name": "x", "data": {"dataset": "mch"}}]},
                "student": {"rollouts": "cached"},
                "fitted_steps": {"teacher": 3},
            },
        ),
    ],
    ids=["defaults", "train", "pipeline"],
)
def test_resolved_yaml_reads_back_equal(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_config(type(config), path) == config


def test_resolved_yaml_contains_every_field_of_the_sections_that_are_read():
    data = yaml.safe_load(to_yaml(from_mapping(TrainConfig, MINIMAL)))
    assert data["engine"] == EngineConfig().model_dump(mode="json"), "also fields at their defaults"
    assert set(data["engine"]) == set(EngineConfig.model_fields)
    assert data["data"]["root"] is None
    assert set(TrainConfig.model_fields) - set(data) == {"student", "autoencoder", "diffusion", "sampling"}


def test_configuration_is_frozen():
    config = from_mapping(TrainConfig, MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        config.batch.micro_size = 3  # pyright: ignore[reportAttributeAccessIssue]
