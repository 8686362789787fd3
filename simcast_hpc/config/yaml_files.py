"""Strict YAML in, frozen models out: unknown keys, wrong types and doubled keys are errors that name themselves."""

import difflib
import json
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError
from .shipped_configs import resolve


class StrictModel(BaseModel):
    """Frozen, no unknown keys, no silent conversion of types, no number that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def of_another_kind(cls, data: Mapping[str, Any]) -> str | None:
        """Say what ``data`` is where it is plainly the configuration of something else."""
        return None


T = TypeVar("T", bound=BaseModel)


def read_config(cls: type[T], path: Path | str, overrides: Iterable[str] = ()) -> T:
    """Read a configuration as a ``cls`` and apply overrides.

    Args:
        cls: the model of the configuration.
        path: a YAML file, or the name of a shipped configuration such as ``teacher/sevir``.
        overrides: ``a.b=value``, each replacing the value of the field ``a.b``.

    Raises:
        ConfigError: the file is absent or not YAML, or a key is unknown, missing, or has an invalid value.
    """
    path = resolve(path)
    return from_mapping(cls, read_yaml(path, overrides), where=str(path))


def read_yaml(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the mapping in a YAML file with overrides applied, unvalidated.

    Raises:
        ConfigError: the file is absent or not YAML, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration {path} is not UTF-8 text: {error}") from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not usable YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    return data


def from_mapping(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build ``cls`` from plain data; every wrong key is named with its dotted path, value and the nearest right one.

    Raises:
        ConfigError: as above.
    """
    kind = cls.of_another_kind(data) if issubclass(cls, StrictModel) else None
    if kind is not None:
        raise ConfigError(f"{where or cls.__name__}: {kind}")
    try:
        return cls.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        lines = [_explain(cls, dict(item)) for item in error.errors()]
        raise ConfigError(
            "\n".join([f"{where or cls.__name__} does not hold:", *(f"  {line}" for line in lines)])
        ) from None


def to_yaml(config: BaseModel) -> str:
    """Return the resolved configuration as YAML that :func:`read_config` reads back to an equal object."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, width=120)


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` over ``base``, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _apply(data: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key:
        raise ConfigError(f"--set wants key=value with a dotted key, got {override!r}, for example batch.micro_size=2")
    *above, last = key.split(".")
    for part in above:
        below = data.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {part} holds {below!r} and has no keys below it")
        data = below
    try:
        data[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error


def _explain(cls: type[BaseModel], item: dict[str, Any]) -> str:
    path = _path_of(cls, item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _fields_at(cls, item["loc"][:-1]), n=1, cutoff=0.5)
        above = path.rpartition(".")[0]
        hint = f"; did you mean {above + '.' if above else ''}{near[0]}?" if near else ""
        return f"{path}: unknown key{hint}"
    if item["type"] == "missing" and isinstance(item["input"], dict):
        return f"{path}: required, but absent"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message}, got {item['input']!r}" if path and item["type"] != "value_error" else message


def _path_of(cls: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """Return the dotted path as a file has it: without the tags of unions, which no key stands for."""
    kept = []
    for place, part in enumerate(loc):
        fields = [] if isinstance(part, int) else _fields_at(cls, loc[:place])
        if part in fields or not fields or place == len(loc) - 1:
            kept.append(str(part))
    return ".".join(kept)


def _fields_at(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the names of the fields that the model at ``loc`` has; a tagged union's tag is a part of ``loc``."""
    models: list[type[BaseModel]] = [cls]
    for part in loc:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [model for field in fields for model in _models_in(field.annotation)]
        else:
            models = [model for model in models if part in {field.default for field in model.model_fields.values()}]
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in get_args(annotation) for model in _models_in(option)]


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 5e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
