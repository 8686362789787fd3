"""Interface of a published architecture: key names, configuration fields, and sizes implied by tensor shapes."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from simcast_hpc.config import ModelConfig
from simcast_hpc.models import build_model

Shape = tuple[int, ...]
_LONGEST_KEY = 512
T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class ForecasterSpec:
    """Our configuration of a published forecasting model: the model section, T, T' and C."""

    model: ModelConfig
    frames_in: int
    frames_out: int
    channels: int

    def build(self) -> nn.Module:
        """Return the model, randomly initialized.

        Raises:
            ValueError: the sizes are inconsistent.
        """
        return build_model(self.model, frames_in=self.frames_in, frames_out=self.frames_out, channels=self.channels)


class ModelSpec(Protocol):
    """Our configuration of any published model."""

    def build(self) -> nn.Module:
        """Return the model, randomly initialized."""
        ...


@dataclass(frozen=True, kw_only=True)
class PublicArchitecture:
    """How one published architecture maps to ours.

    Attributes:
        source: public project, commit and class.
        key_pairs: pairs (our key, public key) of key templates. ``{i}`` and ``{j}`` stand for block numbers, ``{leaf}``
            for the last part of a key (``weight``, ``bias``); every key matches exactly one template of its side.
        to_spec: converts a public configuration to ours.
        released: public configuration of the weights published for SEVIR.
        config_fields: returns the fields of a public configuration that determine shapes, with defaults filled in.
        shape_fields: returns the same fields as far as they follow from the shapes of a state dict.
        wrapper: prefix of all public keys that other publications of the network lack.
        constants: returns, by public key, tensors that the public project stores with its weights although the
            configuration determines them. Our models do not store them.
    """

    source: str
    key_pairs: tuple[tuple[str, str], ...]
    to_spec: Callable[[Mapping[str, Any]], ModelSpec]
    released: Mapping[str, Any]
    config_fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    shape_fields: Callable[[Mapping[str, Shape]], dict[str, Any]]
    wrapper: str = ""
    constants: Callable[[nn.Module], dict[str, Tensor]] = lambda model: {}

    def with_wrapper(self, state_dict: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> Mapping[str, Tensor]:
        """Return the state dict with ``wrapper`` before every key, if that makes keys of ``expected``."""
        if any(key in expected for key in state_dict) or not any(self.wrapper + key in expected for key in state_dict):
            return state_dict
        return {self.wrapper + key: tensor for key, tensor in state_dict.items()}

    def recognized(self, keys: Iterable[str]) -> int:
        """Return how many of ``keys`` are public keys of this architecture, after any prefix."""
        templates = [template.removeprefix(self.wrapper) for _, template in self.key_pairs]
        pattern = re.compile("|".join(re.sub(r"\?P<[a-z]+>", "?:", key_pattern(one).pattern) for one in templates))
        return sum(1 for key in keys if any(pattern.fullmatch(key, start) for start in _starts(key)))


def build_config(cls: type[T], public_names: Mapping[str, str], **values: Any) -> T:
    """Build a ``cls`` of our configuration, whose fields have ``public_names`` in the public one.

    Raises:
        ValueError: a value is invalid; the message contains the public name and the value.
    """
    try:
        return cls(**values)
    except ValidationError as error:
        item = error.errors()[0]
        name = str(item["loc"][0]) if item["loc"] else ""
        text = item["msg"].removeprefix("Value error, ")
        field = f"{public_names.get(name, name)}={item['input']!r} is not supported: " if name else ""
        raise ValueError(field + text) from None


def check_integers(fields: Mapping[str, Any], names: Iterable[str], *, least: int = 1) -> None:
    """Check fields of a public configuration that must be an integer, or a list of integers.

    Raises:
        ValueError: names the first field that is something else or below ``least``, and its value.
    """
    for name in names:
        value = fields[name]
        listed = isinstance(value, tuple) and len(value) > 0
        if any(type(item) is not int or item < least for item in (value if listed else (value,))):
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{name}={shown!r} must be {'integers' if listed else 'an integer'} of at least {least}")


def check_lists(fields: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check fields of a public configuration that must be a list, not empty.

    Raises:
        ValueError: names the first field that is not one, and its value.
    """
    for name in names:
        if not isinstance(fields[name], tuple) or not fields[name]:
            shown = list(fields[name]) if isinstance(fields[name], tuple) else fields[name]
            raise ValueError(f"{name}={shown!r} must be a list of at least one entry")


def translate_key(key: str, pairs: Iterable[tuple[str, str]], *, where: str) -> str:
    """Translate ``key`` by the first of ``pairs`` whose first template matches.

    Raises:
        KeyError: no template matches; the message contains ``key`` and ``where``.
    """
    for template, target in pairs:
        match = key_pattern(template).fullmatch(key)
        if match:
            return target.format(**match.groupdict())
    raise KeyError(f"{key!r} is not a key of {where}")


def key_pattern(template: str) -> re.Pattern[str]:
    """Return the regular expression of a key template, with a named group per variable."""
    escaped = re.escape(template).replace(r"\{leaf\}", r"(?P<leaf>[a-z_]+)")
    return re.compile(re.sub(r"\\\{([a-z])\\\}", r"(?P<\1>[0-9]+)", escaped))


def _starts(key: str) -> list[int]:
    """Return where the parts of a key begin; none of an implausibly long key."""
    return [0, *(i + 1 for i, letter in enumerate(key) if letter == ".")] if len(key) <= _LONGEST_KEY else []


def count_keys(template: str, shapes: Mapping[str, Shape]) -> int:
    """Return the number of keys of a state dict that match ``template``, such as the blocks of a network."""
    pattern = key_pattern(template)
    return sum(1 for key in shapes if pattern.fullmatch(key))
