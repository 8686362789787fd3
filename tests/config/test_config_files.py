"""Every file under configs/ can be read, says why it exists, and states nothing that would hold without it."""

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


def meaning(config: PipelineConfig | TrainConfig) -> list[Any]:
    """Return what a configuration amounts to; a pipeline's stages count as the training runs they become."""
    if isinstance(config, TrainConfig):
        return [config.model_dump()]
    return [config.model_dump(exclude={"stages"}), *((name, config.train_config(name)) for name in config.stages)]


def leaves(data: dict[str, Any], above: tuple[str, ...] = ()):
    """Yield the path of every value that is no mapping, and of every empty mapping."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


def without(data: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of ``data`` that lacks one value; mappings above it stay."""
    copied = copy.deepcopy(data)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return copied


def superfluous(cls, data: dict[str, Any]) -> list[str]:
    """Return the dotted keys without which ``data`` would mean the same."""
    whole, found = meaning(from_mapping(cls, data)), []
    for path in leaves(data):
        try:
            changed = meaning(from_mapping(cls, without(data, path))) != whole
        except ConfigError:
            changed = True  # the key has no default
        if not changed:
            found.append(".".join(path))
    return found


def with_numbers(data: Any) -> Any:
    """Turn texts such as 4e-3 into floats: plain YAML 1.1 leaves them texts, the project's reader does not."""
    if isinstance(data, dict):
        return {key: with_numbers(value) for key, value in data.items()}
    if isinstance(data, str) and re.fullmatch(r"\d+(\.\d*)?e[+-]?\d+", data):
        return float(data)
    return data


def test_there_are_configurations():
    assert {"teacher/sevir.yaml", "student/sevir.yaml", "direct/sevir.yaml"} <= set(IDS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_it_can_be_read_and_says_why_it_exists(path):
    config = read_config(kind(path), path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    if isinstance(config, TrainConfig):
        assert config.stage == path.parent.name
        assert config.data.root is None, "where data stands differs by machine: --set data.root=FOLDER"
    else:
        assert config.name == path.stem


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_it_states_only_what_differs_from_the_defaults(path):
    data = with_numbers(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert superfluous(kind(path), data) == []


def test_a_default_stated_again_is_noticed():
    data = {"name": "n", "run_dir": "runs/n", "stage": "teacher", "seed": 0, "data": {"workers": 0, "augment": True}}
    assert superfluous(TrainConfig, data) == ["seed", "data.workers"]


@pytest.mark.parametrize("name", ["sevir", "sevir-earthformer"])
def test_sevir_runs_compare_at_equal_steps(name):
    teacher, student, direct = (
        read_config(TrainConfig, CONFIGS / stage / f"{name}.yaml") for stage in ("teacher", "student", "direct")
    )
    assert teacher.model == student.model == direct.model
    assert direct.max_steps == teacher.max_steps + student.max_steps
    assert student.student.teacher == teacher.run_dir
    assert (student.frames_out, teacher.frames_out, direct.frames_out) == (12, 6, 12)
