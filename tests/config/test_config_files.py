"""Every shipped configuration is valid, states its purpose, and states only what differs from the defaults."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, from_mapping, read_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
IDS = [str(path.relative_to(CONFIGS)) for path in FILES]


def kind(path: Path):
    return PipelineConfig if path.parent.name == "pipeline" else TrainConfig


def resolved(config: PipelineConfig | TrainConfig) -> list[Any]:
    """Return all values of a configuration; for a pipeline, with the training runs of its stages."""
    if isinstance(config, TrainConfig):
        return [config.model_dump()]
    return [config.model_dump(exclude={"stages"}), *((name, config.train_config(name)) for name in config.stages)]


def leaves(data: dict[str, Any], above: tuple[str, ...] = ()):
    """Yield the path of every value that is not a mapping, and of every empty mapping."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


def without(data: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of ``data`` without the value at ``path``."""
    copied = copy.deepcopy(data)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return copied


def redundant_keys(cls, data: dict[str, Any]) -> list[str]:
    """Return the dotted keys whose removal does not change the resolved configuration."""
    expected, redundant = resolved(from_mapping(cls, data)), []
    for path in leaves(data):
        try:
            changed = resolved(from_mapping(cls, without(data, path))) != expected
        except ConfigError:
            changed = True  # the key has no default
        if not changed:
            redundant.append(".".join(path))
    return redundant


def with_numbers(data: Any) -> Any:
    """Convert strings such as 4e-3 to floats, as the project's reader does and plain YAML 1.1 does not."""
    if isinstance(data, dict):
        return {key: with_numbers(value) for key, value in data.items()}
    if isinstance(data, str) and re.fullmatch(r"\d+(\.\d*)?e[+-]?\d+", data):
        return float(data)
    return data


def test_configurations_are_found():
    assert {"teacher/sevir.yaml", "student/sevir.yaml", "direct/sevir.yaml"} <= set(IDS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_configuration_is_valid_and_states_its_purpose(path):
    config = read_config(kind(path), path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    if isinstance(config, TrainConfig):
        assert config.stage == path.parent.name
        assert config.data.root is None, "data.root differs by machine: --set data.root=FOLDER"
    else:
        assert config.name == path.stem


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_configuration_states_only_what_differs_from_the_defaults(path):
    data = with_numbers(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert redundant_keys(kind(path), data) == []


def test_redundant_keys_finds_stated_defaults():
    data = {"name": "n", "run_dir": "runs/n", "stage": "teacher", "seed": 0, "data": {"workers": 0, "augment": True}}
    assert redundant_keys(TrainConfig, data) == ["seed", "data.workers"]


@pytest.mark.parametrize("name", ["sevir", "sevir-earthformer"])
def test_sevir_runs_have_equal_total_steps(name):
    teacher, student, direct = (
        read_config(TrainConfig, CONFIGS / stage / f"{name}.yaml") for stage in ("teacher", "student", "direct")
    )
    assert teacher.model == student.model == direct.model
    assert direct.max_steps == teacher.max_steps + student.max_steps
    assert student.student.teacher == teacher.run_dir
    assert (student.frames_out, teacher.frames_out, direct.frames_out) == (12, 6, 12)
