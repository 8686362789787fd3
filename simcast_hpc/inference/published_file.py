"""Read a published file of weights, and find the state dict of a network among the mappings that it contains.

Checkpoints wrap the weights of a network in mappings, such as ``{"model": {"EarthFormer_xy": {...}}}``, and in prefixes
of their keys, such as ``net.``.
"""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from simcast_hpc.config import ConfigError

from .torch_file import OtherObject, StoredTensor, TorchFile

_LONGEST_KEY = 512  # longer keys fit no network, and the search for their prefix would take long
_SHOWN = 4
_DEEPEST = 32  # mappings and lists within each other


@dataclass(frozen=True)
class TensorMapping:
    """A mapping of the file that directly contains tensors.

    Attributes:
        key: keys from the outermost mapping to this one, joined by dots; empty for the outermost one.
        entries: the content of the mapping.
    """

    key: str
    entries: Mapping[Any, Any]

    @property
    def tensors(self) -> list[str]:
        """Keys of the tensors."""
        return [key for key, value in self.entries.items() if isinstance(key, str) and _is_tensor(value)]


@dataclass(frozen=True)
class Match:
    """How many keys of a network a mapping contains after ``prefix``."""

    mapping: TensorMapping
    prefix: str
    count: int

    @property
    def options(self) -> str:
        """The options of the command line that select this state dict only."""
        return f"--key {shlex.quote(self.mapping.key)} --prefix {shlex.quote(self.prefix)}"


class PublishedFile:
    """The content of a ``.safetensors`` file or of a file of ``torch.save``; see :func:`open_file`."""

    def __init__(self, path: Path, content: Any, stored: TorchFile | None):
        self.path, self._content, self._stored = path, content, stored
        self.mappings = list(_find_mappings(content))

    def select(
        self, keys: Collection[str], *, wrapper: str = "", key: str | None = None, prefix: str | None = None
    ) -> Match:
        """Return the state dict that contains ``keys`` of a network, or most of them.

        Args:
            keys: keys of the network.
            wrapper: prefix of all ``keys`` that the file may lack.
            key: only this mapping, and those that it contains.
            prefix: only keys after this prefix; the empty text for none.

        Raises:
            ConfigError: ``key`` and ``prefix`` select nothing, the file contains no tensors or none of ``keys``, or
                several state dicts contain all ``keys``. The message contains the options that fit.
        """
        self._require_tensors()
        matches = list(self._matches(keys, prefix))
        if wrapper:
            found = {(id(match.mapping), match.prefix + wrapper) for match in matches if prefix is None}
            without = self._matches([one.removeprefix(wrapper) for one in keys], prefix)
            matches += [match for match in without if (id(match.mapping), match.prefix) not in found]
        matches.sort(key=lambda match: -match.count)
        chosen = [match for match in matches if _is_below(match.mapping.key, key)]
        if key is not None and not any(_is_below(mapping.key, key) for mapping in self.mappings):
            raise ConfigError(
                f"{self.path}: no mapping {key!r} contains tensors; tensors are in {self._describe(matches)}"
            )
        if prefix is not None:
            self._require_prefix(prefix, key, matches)
            chosen = [match for match in chosen if match.prefix == prefix]
        if not chosen:
            raise ConfigError(
                f"{self.path} contains none of the keys of this network, such as {next(iter(keys))!r}; tensors are in "
                f"{self._describe(matches)}"
            )
        complete = [match for match in chosen if match.count == len(keys)]
        complete = [match for match in complete if match.mapping.key == key] or complete
        if len(complete) > 1:
            choices = "; or ".join(match.options for match in complete[:_SHOWN])
            raise ConfigError(f"{self.path} contains {len(complete)} state dicts of this network; choose {choices}")
        return (complete or chosen)[0]

    def load(self, match: Match) -> dict[str, Tensor]:
        """Return the tensors of a state dict by key, without its prefix; keys without the prefix are skipped.

        Raises:
            ConfigError: an entry is no tensor, or the file is damaged.
        """
        entries = {
            key.removeprefix(match.prefix): value
            for key, value in match.mapping.entries.items()
            if isinstance(key, str) and key.startswith(match.prefix)
        }
        for key, value in entries.items():
            if isinstance(value, OtherObject):
                raise self._other_objects(value)
            if not _is_tensor(value):
                raise ConfigError(
                    f"{self.path}: {key!r} has type {type(value).__name__}; a state dict maps names to tensors"
                )
        with _damage_of(self.path):
            return {key: self._load(value) for key, value in entries.items()}

    def _load(self, value: Any) -> Tensor:
        return self._stored.load(value) if self._stored is not None else value

    def _matches(self, keys: Collection[str], prefix: str | None) -> Iterator[Match]:
        wanted = frozenset(keys)
        for mapping in self.mappings:
            counts: Counter[str] = Counter()
            for key in mapping.tensors:
                if len(key) > _LONGEST_KEY:
                    continue
                starts = {0, *(i + 1 for i, letter in enumerate(key) if letter == ".")}
                if prefix and key.startswith(prefix):
                    starts.add(len(prefix))
                counts.update(key[:start] for start in starts if key[start:] in wanted)
            yield from (Match(mapping, start, count) for start, count in counts.items())

    def _require_tensors(self) -> None:
        if self.mappings:
            return
        if other := next(_find_others(self._content), None):
            raise self._other_objects(other)
        if not isinstance(self._content, Mapping):
            raise ConfigError(
                f"{self.path} contains an object of type {type(self._content).__name__} instead of a state dict"
            )
        first = next(iter(self._content.items()), None)
        detail = "it is empty" if first is None else f"its first entry {first[0]!r} has type {type(first[1]).__name__}"
        raise ConfigError(f"{self.path} contains no mapping of names to tensors; {detail}")

    def _require_prefix(self, prefix: str, key: str | None, matches: list[Match]) -> None:
        mappings = [mapping for mapping in self.mappings if _is_below(mapping.key, key)]
        if any(name.startswith(prefix) for mapping in mappings for name in mapping.tensors):
            return
        raise ConfigError(
            f"{self.path}: no key begins with {prefix!r}; the first key is {mappings[0].tensors[0]!r}; tensors are in "
            f"{self._describe([match for match in matches if _is_below(match.mapping.key, key)])}"
        )

    def _describe(self, matches: list[Match]) -> str:
        """Return the mappings of the file, those with keys of the network first and with the options that fit them."""
        best: dict[int, Match] = {}
        for match in matches:
            best.setdefault(id(match.mapping), match)
        others = [mapping for mapping in self.mappings if id(mapping) not in best]
        others.sort(key=lambda mapping: -len(mapping.tensors))
        texts = [
            f"{_name(match.mapping)}, {match.count} of this network with --prefix {shlex.quote(match.prefix)}"
            for match in best.values()
        ]
        texts += [f"{_name(mapping)}, first {mapping.tensors[0]!r}" for mapping in others]
        more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return "; ".join(texts[:_SHOWN]) + more

    def _other_objects(self, other: OtherObject) -> ConfigError:
        return ConfigError(
            f"{self.path} contains other objects than tensors ({other.name}), which could run code and are not loaded; "
            "ask for the weights as safetensors or as a plain state dict"
        )


@contextmanager
def open_file(path: Path) -> Iterator[PublishedFile]:
    """Open a file of weights, without executing code from it; tensors are read when they are loaded.

    Raises:
        ConfigError: the file is damaged, or of another kind.
        OSError: the file cannot be opened.
    """
    with path.open("rb"):
        pass
    stored = None
    try:
        with _damage_of(path):
            if path.suffix == ".safetensors":
                content: Any = load_file(path)
            else:
                stored = TorchFile(path)
                content = stored.content
        yield PublishedFile(path, content, stored)
    finally:
        if stored is not None:
            stored.close()


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ConfigError):
        raise
    except Exception as error:  # a damaged file fails anywhere in zipfile, torch or safetensors
        text = str(error).split("\n")[0]
        raise ConfigError(
            f"{path} is damaged or not a file of weights ({type(error).__name__}: {text[:200]})"
        ) from error


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | StoredTensor)


def _is_below(own: str, key: str | None) -> bool:
    return key is None or own == key or own.startswith(f"{key}.")


def _name(mapping: TensorMapping) -> str:
    where = f"--key {shlex.quote(mapping.key)}" if mapping.key else "the outermost mapping"
    return f"{where} ({len(mapping.tensors)} tensors)"


def _find_mappings(content: Any) -> Iterator[TensorMapping]:
    """Return every mapping that directly contains tensors once, although files can contain one several times."""
    for path, value in _walk(content):
        if isinstance(value, Mapping) and any(_is_tensor(item) and isinstance(key, str) for key, item in value.items()):
            yield TensorMapping(".".join(path), value)


def _find_others(content: Any) -> Iterator[OtherObject]:
    return (value for _, value in _walk(content) if isinstance(value, OtherObject))


def _walk(content: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every container and other object once, with its path; without recursion, because files nest deeply."""
    seen: set[int] = set()
    left: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while left:
        path, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        if len(path) == _DEEPEST:
            continue
        if isinstance(value, Mapping):
            items = [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            items = [(str(i), item) for i, item in enumerate(value)]
        else:
            continue
        left += [
            ((*path, key), item)
            for key, item in reversed(items)
            if isinstance(item, Mapping | list | tuple | OtherObject)
        ]
