"""Describe types, limits and defaults of pydantic fields in words."""

import types
import typing
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_NAMES = {int: "int", float: "float", str: "text", bool: "`true` or `false`", Path: "path", datetime: "date and time"}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in an annotation, each once, such as the options of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = (model for option in get_args(annotation) for model in models_in(option))
    return list(dict.fromkeys(found))


def describe_type(field: FieldInfo) -> str:
    """Return the type of a field with its limits, such as ``int ≥ 1 or `null```."""
    return _describe(field.annotation, field.metadata)


def describe_default(field: FieldInfo) -> str:
    """Return the default of a field as YAML."""
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return f"`{default.kind}`" if hasattr(default, "kind") else ""  # else the defaults of its fields
    plain = list(default) if isinstance(default, tuple) else str(default) if isinstance(default, Path) else default
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    # 1. Wrappers: Annotated, and unions with or without null
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _describe(options[0], [*options[1:], *metadata])
    if origin in (Union, types.UnionType):
        texts = [_describe(option, metadata) for option in options if option is not type(None)]
        null = ["`null`"] if type(None) in options else []
        return " or ".join(dict.fromkeys([*texts, *null]))
    # 2. Choices and containers
    if origin is Literal:
        values = [f"`{value}`" for value in options]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin is tuple:
        count = "" if options[-1] is Ellipsis else f"{len(options)} × "
        return f"list of {count}{_describe(options[0])}"
    if origin is dict:
        return "mapping of names to " + ("fields" if get_origin(options[1]) is dict else _describe(options[1]))
    # 3. Sections, numbers with limits, and plain types
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _tag(metadata) or annotation.__name__
    if annotation in (int, float):
        return _limited(annotation, metadata)
    return _NAMES.get(annotation, "any value")


def _tag(metadata: Iterable[Any]) -> str:
    return next((f"`{item.tag}`" for item in metadata if isinstance(item, Tag)), "")


def _limited(kind: type, metadata: Iterable[Any]) -> str:
    """Return ``int ≥ 1`` or ``0 ≤ float < 1``; an exclusive integer limit becomes the next inclusive one."""
    lower = upper = ""
    for item in metadata:
        if isinstance(item, annotated_types.Ge):
            lower = f"{item.ge} ≤"
        elif isinstance(item, annotated_types.Gt):
            lower = f"{item.gt + 1} ≤" if kind is int else f"{item.gt} <"
        elif isinstance(item, annotated_types.Le):
            upper = f"≤ {item.le}"
        elif isinstance(item, annotated_types.Lt):
            upper = f"< {item.lt}"
    if lower and not upper:
        number, sign = lower.split()
        return f"{kind.__name__} {'≥' if sign == '≤' else '>'} {number}"
    return " ".join(filter(None, [lower, kind.__name__, upper]))
