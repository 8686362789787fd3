"""Read configurations from YAML files, apply overrides, and write resolved configurations."""

import difflib
import json
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .shipped_configs import resolve
from .stage_sections import StrictModel
from .text_files import read_text_file
from .yaml_loader import LARGEST_BYTES, PlainLoader, explain_error

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
        ConfigError: the file is absent, not YAML, or not a mapping.
    """
    data = read_plain_mapping(path)
    data = _with_file_references(data, path.parent)
    for override in overrides:
        _apply(data, override)
    return data


def read_plain_mapping(path: Path, *, what: str = "the configuration") -> dict[str, Any]:
    """Return the mapping in a YAML file; ``what`` names the file in errors.

    Raises:
        ConfigError: the file is absent, not text, not YAML (an impossible date also is none), or not a mapping.
    """
    text = read_text_file(path, error=ConfigError, what=what, most_bytes=LARGEST_BYTES)
    data = load_yaml(text, where=str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must contain a mapping of keys to values, got {type(data).__name__}")
    return data


def load_yaml(text: str, *, where: str) -> Any:
    """Return the value of a YAML text; ``where`` begins the message of an error.

    Raises:
        ConfigError: the text is not YAML, or has a value that :class:`.PlainLoader` rejects, such as 2019-02-29.
    """
    try:
        return yaml.load(text, Loader=PlainLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {explain_error(error)}") from error


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as a Python number, and a path or date as text."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, (PurePath, date)):
        return str(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}, not a number, text, list or mapping")


def from_mapping(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build a ``cls`` from plain data.

    Raises:
        ConfigError: names every invalid key with its dotted path and value, and the nearest valid key.
    """
    if issubclass(cls, StrictModel) and (kind := cls.other_kind(data)) is not None:
        raise ConfigError(f"{where or cls.__name__}: {kind}")
    try:
        text = json.dumps(data, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:  # given by --set or Python; files are checked before
        raise ConfigError(f"Invalid configuration {where or cls.__name__}: {error}") from None
    try:
        config = cls.model_validate_json(text)
    except ValidationError as error:
        lines = [_explain(cls, dict(item)) for item in error.errors()]
        heading = f"Invalid configuration {where or cls.__name__}:"
        raise ConfigError("\n".join([heading, *(f"  {line}" for line in lines)])) from None
    if "\\u0000" in text:  # in a path, which no system can open
        raise ConfigError(f"Invalid configuration {where or cls.__name__}: a text contains a NUL character")
    return config


def to_yaml(config: BaseModel) -> str:
    """Return the resolved configuration as YAML that :func:`read_config` reads back to an equal object.

    It contains every field of the sections that the stages of the configuration read.
    """
    unread = config.unread_sections() if isinstance(config, StrictModel) else set()
    return yaml.safe_dump(json.loads(config.model_dump_json(exclude=unread)), sort_keys=False, width=120)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``overrides``, mapping by mapping."""
    merged = dict(base)
    for key, value in overrides.items():
        current = merged.get(key)
        merged[key] = merge(current, value) if isinstance(current, dict) and isinstance(value, Mapping) else value
    return merged


def _with_file_references(value: Any, folder: Path) -> Any:
    """Join ``folder`` to names of YAML files that exist there only, such as ``data.dataset: my-radar.yaml``."""
    if isinstance(value, dict):
        return {key: _with_file_references(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_file_references(item, folder) for item in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        try:
            return str(folder / value) if not Path(value).exists() and (folder / value).is_file() else value
        except (OSError, ValueError):  # too long, or a NUL; rejected where the file is read
            return value
    return value


def _apply(data: dict[str, Any], override: str) -> None:
    """Set the value of ``a.b=value`` in ``data``."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} must be key=value, such as batch.micro_size=2")
    *sections, last = key.split(".")
    for name in sections:
        section = data.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {name} is {section!r}, not a section")
        data = section
    data[last] = load_yaml(text, where=f"--set {override}: the value")


def _explain(cls: type[BaseModel], item: dict[str, Any]) -> str:
    """Return pydantic's error ``item`` as one line: dotted key, what is invalid, the value."""
    path = _path_of(cls, item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _fields_at(cls, item["loc"][:-1]), n=1, cutoff=0.5)
        section = path.rpartition(".")[0]
        hint = f"; did you mean {section + '.' if section else ''}{near[0]}?" if near else ""
        return f"{path}: unknown key{hint}"
    if item["type"] == "missing" and isinstance(item["input"], dict):
        return f"{path}: required key is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message}, got {item['input']!r}" if path and item["type"] != "value_error" else message


def _path_of(cls: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """Return the dotted path as in a file, without the tags of unions, which are not keys."""
    parts = []
    for index, part in enumerate(loc):
        fields = [] if isinstance(part, int) else _fields_at(cls, loc[:index])
        is_tag = isinstance(part, str) and part.startswith("(")
        if not is_tag and (part in fields or not fields or index == len(loc) - 1):
            parts.append(str(part) if str(part).isprintable() else repr(part))
    return ".".join(parts)


def _fields_at(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the field names of the model at ``loc``, which also contains the tags of tagged unions."""
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
    """Return the models in an annotation such as ``Annotated[A, Tag("a")] | B``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in get_args(annotation) for model in _models_in(option)]
