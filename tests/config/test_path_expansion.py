"""``~`` and environment variables in paths of configurations, commands and Python functions are expanded alike."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

import simcast_hpc as sc
from simcast_hpc.cli import app
from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, expand_path, from_mapping, read_config
from simcast_hpc.config.path_expansion import FieldPath, NameOrPath
from simcast_hpc.data.dataset_spec import built_in_specs, read_spec
from simcast_hpc.data.open_windows import open_windows
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.data.shards import prepared

_VALIDATORS = {get_args(kind)[1] for kind in (FieldPath, NameOrPath)}
_NAMES_OR_PATHS = {"dataset", "recode_as", "rollouts", "latents"}


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch) -> Path:
    """A home directory, which ``$BASE`` also names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BASE", str(tmp_path))
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "expanded"),
    [
        ("~", "{base}"),
        ("~/runs", "{base}/runs"),
        ("$BASE/runs", "{base}/runs"),
        ("${BASE}runs", "{base}runs"),
        ("/a/$RUN/${RUN}_b", "/a/7/7_b"),
        ("runs/~", "runs/~"),
        ("./~", "./~"),
        ("5$/a$-b", "5$/a$-b"),
        ("runs", "runs"),
    ],
)
def test_expands_as_a_shell(base, monkeypatch, written, expanded):
    monkeypatch.setenv("RUN", "7")
    assert expand_path(written) == expanded.format(base=base)


def test_a_home_directory_with_a_dollar_sign_is_kept(monkeypatch):
    monkeypatch.setenv("HOME", "/home/$BASE")
    assert expand_path("~/a") == "/home/$BASE/a"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$UNSET/a", "run_dir=$UNSET/a: the environment variable UNSET is not set"),
        ("${EMPTY}/a", "run_dir=${EMPTY}/a: the environment variable EMPTY is not set"),
        ("~nobody-here/a", "run_dir=~nobody-here/a: there is no user 'nobody-here'"),
    ],
)
def test_rejects_what_cannot_be_expanded_unless_it_exists(base, path, message):
    with pytest.raises(ConfigError) as raised:
        expand_path(path, where="run_dir")
    assert str(raised.value).startswith(message)
    (base / "a$UNSET").touch()
    assert expand_path("a$UNSET") == "a$UNSET"


def _fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, field in model.model_fields.items():
        yield above, name, field
        for inner in _models(field.annotation):
            yield from _fields(inner, f"{above}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for option in get_args(annotation):
        yield from _models(option)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for option in get_args(annotation):
        yield from _parts(option)


def test_every_path_of_a_configuration_is_expanded():
    expanded = set()
    for above, name, field in (*_fields(TrainConfig), *_fields(PipelineConfig)):
        parts = [*_parts(field.annotation), *field.metadata]
        if Path in parts or name in _NAMES_OR_PATHS:
            assert _VALIDATORS & {part for part in parts if callable(getattr(part, "func", None))}, above + name
            expanded.add(above + name)
    assert {
        "run_dir",
        "data.root",
        "student.teacher",
        "diffusion.fold_students",
        "evaluation.also.data.root",
    } <= expanded


def test_files_overrides_and_stages_of_a_pipeline_are_expanded(base):
    fields = {"name": "a", "run_dir": "~/$NAME", "stage": "student", "student": {"teacher": "${BASE}/t"}}
    (base / "c.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    os.environ["NAME"] = "run"
    try:
        config = read_config(
            TrainConfig, "~/c.yaml", ["data.root=$BASE/d", "student.rollouts=~/r", "data.dataset=~/d.yaml"]
        )
    finally:
        del os.environ["NAME"]
    assert (config.run_dir, config.data.root) == (base / "run", base / "d")
    assert (config.student.teacher, config.rollout_dir) == (base / "t", base / "r")
    assert config.data.dataset == str(base / "d.yaml")
    pipeline = from_mapping(
        PipelineConfig,
        {
            "name": "p",
            "run_dir": "$BASE/p",
            "stages": {"student": {"student": {"teacher": "~/t"}}},
            "evaluation": {"also": [{"name": "b", "data": {"root": "~/b"}}]},
        },
    )
    assert pipeline.train_config("student").student.teacher == base / "t"
    assert pipeline.train_config("student").run_dir == base / "p" / "student"
    assert pipeline.evaluation.also[0].data.root == base / "b"


def test_an_unset_variable_of_a_field_is_named_with_the_field():
    with pytest.raises(ConfigError, match=r"data\.root: \$UNSET/x: the environment variable UNSET is not set"):
        from_mapping(TrainConfig, {"name": "a", "run_dir": "r", "stage": "direct", "data": {"root": "$UNSET/x"}})


def test_arguments_and_options_of_commands_are_expanded(base):
    def simcast(*arguments: str) -> None:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    simcast("data", "synth", "$BASE/storms", "--train", "1", "--val", "1", "--test", "1", "--size", "16")
    simcast("config", "copy", "teacher/sevir", "~/copied.yaml")
    baseline = ["--dataset", "synthetic", "--frames-in", "5", "--frames-out", "6", "--tables-only", "--draws", "0"]
    simcast("evaluate", "persistence", *baseline, "--root", "~/storms", "--out", "$BASE/scores")
    written = {path.name for path in base.iterdir()}
    assert {"copied.yaml", "scores", "storms"} <= written and not [name for name in written if name[0] in "~$"]
    with pytest.raises(ConfigError, match=r"\$UNSET/x: the environment variable UNSET is not set"):
        simcast("evaluate", "own=$UNSET/x", *baseline, "--root", "~/storms")


def test_python_functions_expand_paths(base):
    make_archive(base / "storms", random_codes(2, 8))
    write_trained(tiny_config(base / "run", data={"dataset": "synthetic"}))
    (base / "own.yaml").write_bytes(built_in_specs()["synthetic"].read_bytes())
    assert sc.load("$BASE/run").name == "tiny" and sc.load(Path("~/run")).name == "tiny"
    assert sc.read_config("~/run/config.yaml").name == "tiny"
    assert sc.datasets.read_dataset("$BASE/own.yaml") == read_spec("~/own.yaml")
    windows = sc.datasets.open_windows("~/storms", dataset="~/own.yaml", frames=4, max_percent_missing=None)
    assert len(windows) == 2


def test_shards_are_staged_to_the_folder_of_a_variable(base, caplog):
    shards = prepared(make_archive(base / "raw", random_codes(2, 8)), base / "shards")
    data = tiny_config(base / "run", data={"dataset": "synthetic", "root": str(shards), "stage_to": "~/local"}).data
    open_windows(data, split="train", frames=4)
    assert list((base / "local").rglob("*.h5")), "copied below the home directory"
    absent = data.model_copy(update={"stage_to": "$UNSET"})
    with pytest.raises(ConfigError, match=r"data\.stage_to=\$UNSET: the environment variable UNSET is not set"):
        open_windows(absent, split="train", frames=4)
    with caplog.at_level(logging.WARNING):
        open_windows(absent, split="all", frames=4)
    assert "the shards are read from data.root" in caplog.text and not (base / "$UNSET").exists()
