"""What it takes to read one published architecture: its names, its configuration, and what its shapes tell."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from simcast_hpc.config import ModelConfig
from simcast_hpc.models import build_model

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OurForm:
    """A public configuration as ours: the model, T, T' and C."""

    model: ModelConfig
    frames_in: int
    frames_out: int
    channels: int

    def build(self) -> nn.Module:
        """Return the model, freshly initialised.

        Raises:
            ValueError: the sizes do not fit one another.
        """
        return build_model(self.model, frames_in=self.frames_in, frames_out=self.frames_out, channels=self.channels)


class Form(Protocol):
    """A public configuration as ours, of any model."""

    def build(self) -> nn.Module:
        """Return the model, freshly initialised."""
        ...


@dataclass(frozen=True, kw_only=True)
class PublicArchitecture:
    """How one published architecture becomes ours.

    Attributes:
        source: the public project, commit and class whose names these are.
        names: pairs (ours, theirs) of key templates. ``{i}`` and ``{j}`` stand for block numbers, ``{leaf}`` for the
            last part of a key (``weight``, ``bias``); every key matches exactly one template of its side.
        ours: from a public configuration to our form of it.
        released: the public configuration of the weights that the project published for SEVIR.
        stated: the fields of a public configuration that shapes depend on, defaults filled in.
        measured: the same fields as far as the shapes of a state dict show them.
        constants: tensors that the public project stores beside its weights though the configuration fixes them, by
            their public keys, for our model of that configuration. Ours does not keep them.
    """

    source: str
    names: tuple[tuple[str, str], ...]
    ours: Callable[[Mapping[str, Any]], Form]
    released: Mapping[str, Any]
    stated: Callable[[Mapping[str, Any]], dict[str, Any]]
    measured: Callable[[Mapping[str, Shape]], dict[str, Any]]
    constants: Callable[[nn.Module], dict[str, Tensor]] = lambda model: {}


def translated(key: str, pairs: Iterable[tuple[str, str]], *, where: str) -> str:
    """Return the other name of ``key``, by the first of ``pairs`` whose first template it matches.

    Raises:
        KeyError: none matches; the message says that ``key`` is not a key of ``where``.
    """
    for template, wanted in pairs:
        found = pattern_of(template).fullmatch(key)
        if found:
            return wanted.format(**found.groupdict())
    raise KeyError(f"{key!r} is not a key of {where}")


def pattern_of(template: str) -> re.Pattern[str]:
    """Return what a key template matches, a group for each of its variables."""
    escaped = re.escape(template).replace(r"\{leaf\}", r"(?P<leaf>[a-z_]+)")
    return re.compile(re.sub(r"\\\{([a-z])\\\}", r"(?P<\1>[0-9]+)", escaped))


def count_of(template: str, shapes: Mapping[str, Shape]) -> int:
    """Return how many keys of a state dict stand for ``template``, such as the blocks of a network."""
    pattern = pattern_of(template)
    return sum(1 for key in shapes if pattern.fullmatch(key))
