"""YAML and --set: what is read, what is refused, and that the refusal names the key, its value and what is right."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, from_mapping, read_config, to_yaml

LEAST = {"name": "a", "run_dir": "runs/a", "stage": "direct"}
PIPELINE = {"name": "p", "run_dir": "runs/p", "stages": {"teacher": {}}}


def _read(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nrun_dir: runs/a\nstage: direct\n" + text, encoding="utf-8")
    return read_config(TrainConfig, path, overrides)


@pytest.mark.parametrize(
    ("cls", "data", "says"),
    [
        (TrainConfig, {**LEAST, "sede": 1}, "sede: unknown key; did you mean seed?"),
        (
            TrainConfig,
            {**LEAST, "optimizer": {"learning_rat": 1.0}},
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
def test_an_unknown_key_is_rejected_with_the_nearest_one(cls, data, says):
    with pytest.raises(ConfigError) as caught:
        from_mapping(cls, data, where="run.yaml")
    assert says in str(caught.value).split("\n  ") or says in [line.strip() for line in str(caught.value).splitlines()]
    assert "run.yaml" in str(caught.value)


def test_a_key_under_a_stage_names_the_stage():
    with pytest.raises(ConfigError, match=r"stages\.teacher does not hold"):
        from_mapping(PipelineConfig, {**PIPELINE, "stages": {"teacher": {"max_step": 2}}})
    with pytest.raises(ConfigError, match=r"stages\.techer does not hold:\s+stage: .*'techer'"):
        from_mapping(PipelineConfig, {**PIPELINE, "stages": {"techer": {}}})


def test_an_unknown_key_far_from_all_gets_no_guess():
    with pytest.raises(ConfigError, match=r"zzzzzz: unknown key$"):
        from_mapping(TrainConfig, {**LEAST, "zzzzzz": 1})


def test_all_wrong_keys_are_named_at_once():
    data = {**LEAST, "sede": 1, "data": {"workers": -1}, "max_steps": "ten"}
    with pytest.raises(ConfigError) as caught:
        from_mapping(TrainConfig, data)
    for said in ("sede", "data.workers", "-1", "max_steps", "'ten'"):
        assert said in str(caught.value)


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
def test_a_wrong_value_is_rejected_by_its_dotted_key(key, value):
    data: dict = dict(LEAST)
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


def test_a_section_that_is_no_mapping_is_rejected():
    with pytest.raises(ConfigError, match=r"batch: .*got 8"):
        from_mapping(TrainConfig, {**LEAST, "batch": 8})
    with pytest.raises(ConfigError, match="student"):
        from_mapping(PipelineConfig, {**PIPELINE, "stages": {"student": {"student": 3}}})


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"run_dir: required, but absent$"):
        from_mapping(TrainConfig, {"name": "a", "stage": "direct"})


@pytest.mark.parametrize(
    ("text", "key"),
    [("seed: 1\nseed: 2\n", "seed"), ("batch:\n  global_size: 8\n  global_size: 16\n", "global_size")],
)
def test_a_key_given_twice_is_rejected(tmp_path, text, key):
    with pytest.raises(ConfigError, match=rf"(?s)run\.yaml.*key '{key}' stands twice.*line \d+"):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    ("written", "value"),
    [("5e-3", 5e-3), ("1E2", 100.0), ("1.e-2", 0.01), (".5e-2", 0.005), ("2e+1", 20.0), ("0.25", 0.25), ("3", 3.0)],
)
def test_numbers_are_read_as_people_write_them(tmp_path, written, value):
    assert _read(tmp_path, f"optimizer: {{learning_rate: {written}}}\n").optimizer.learning_rate == value
    assert _read(tmp_path, "", f"optimizer.learning_rate={written}").optimizer.learning_rate == value


@pytest.mark.parametrize("name", ["e5", "5e", "1e-x", "run-1e-3"])
def test_words_with_an_e_stay_words(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"name: {name}\nrun_dir: runs/a\nstage: direct\n", encoding="utf-8")
    assert read_config(TrainConfig, path).name == name


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "got NoneType"), ("- a\n", "got list"), ("a: [1\n", "not usable YAML"), ("? [1]\n: 2\n", "not usable YAML")],
)
def test_a_file_that_is_no_mapping_is_rejected(tmp_path, text, says):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"run.yaml.*{says}"):
        read_config(TrainConfig, path)


def test_an_absent_file_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml is neither a configuration file nor the name"):
        read_config(TrainConfig, tmp_path / "absent.yaml")


def test_a_file_that_is_no_text_is_rejected(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\x89HDF\r\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        read_config(TrainConfig, path)


def test_anchors_may_be_merged(tmp_path):
    config = _read(tmp_path, "log: &often {every_steps: 5}\ncheckpoint: {<<: *often, keep: 3}\n")
    assert (config.log.every_steps, config.checkpoint.every_steps, config.checkpoint.keep) == (5, 5, 3)


def test_set_lays_values_over_the_file(tmp_path):
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
    ("override", "says"),
    [
        ("batch.micro_size", "--set wants key=value.*'batch.micro_size'.*for example"),
        ("=3", "--set wants key=value.*'=3'"),
        ("name.x=3", "name holds 'a' and has no keys below it"),
        ("loss.weights=[1,", r"--set loss\.weights=.*not YAML"),
        ("batch.micro_sise=2", r"did you mean batch\.micro_size"),
        ("batch..micro_size=2", "unknown key"),
        ("seed=x", "seed: .*'x'"),
    ],
)
def test_a_wrong_set_is_rejected(tmp_path, override, says):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        _read(tmp_path, "", override)


@pytest.mark.parametrize(
    "config",
    [
        from_mapping(TrainConfig, LEAST),
        from_mapping(
            TrainConfig,
            {
                **LEAST,
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
                "fitted_steps": {"teacher": 3},
            },
        ),
    ],
    ids=["defaults", "train", "pipeline"],
)
def test_the_resolved_yaml_reads_back_equal(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_config(type(config), path) == config


def test_the_resolved_yaml_is_plain_and_names_every_default():
    data = yaml.safe_load(to_yaml(from_mapping(TrainConfig, LEAST)))
    assert data["engine"] == {
        "zero_stage": 1,
        "precision": "bf16",
        "offload": "none",
        "zero_hpz_partition_size": 1,
        "timeout_minutes": 30.0,
    }
    assert data["data"]["root"] is None
    assert set(data) == set(TrainConfig.model_fields)


def test_a_configuration_is_frozen():
    config = from_mapping(TrainConfig, LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        config.batch.micro_size = 3  # pyright: ignore[reportAttributeAccessIssue]
