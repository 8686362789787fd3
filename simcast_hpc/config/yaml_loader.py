"""The YAML that this project reads: plain values, without the surprises of YAML 1.1, and of bounded size.

A file of another person cannot make the reader run code, loop, or expand a few lines to gigabytes. Every error of a
text is one of :class:`yaml.YAMLError` with the line.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

LARGEST_BYTES = 2**20
"""Largest size of a YAML file."""
_MOST_LEVELS, _MOST_VALUES = 64, 100_000
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,29}|0x[0-9a-fA-F_]{1,24}|0o[0-7_]{1,30}|0b[01_]{1,70})")


class PlainLoader(yaml.SafeLoader):
    """A safe loader of mappings, lists, text, numbers, booleans, dates and null.

    It reads 5e-3 as a number, and rejects duplicate keys, numbers such as 010 and 1:30, which YAML 1.1 reads as 8 and
    90, integers beyond 64 bits, impossible dates, other types, more than 64 levels, and more than 100,000 values after
    the expansion of aliases.
    """

    def __init__(self, stream: str):
        super().__init__(stream)
        self._level = 0
        self._sizes: dict[int, int] = {}  # by identity of a composed node, aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; bound its level and its size."""
        event = self.peek_event()
        if self._level == _MOST_LEVELS:
            raise ComposerError(None, None, f"nested deeper than {_MOST_LEVELS} levels", event.start_mark)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is not None and id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):  # its node is not composed yet
                raise ComposerError(None, None, f"*{event.anchor} is within its own value", event.start_mark)
            parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
            is_scalar = isinstance(node, yaml.ScalarNode)
            size = 1 if is_scalar else 1 + sum(self._sizes[id(part)] for part in parts)
            if size > _MOST_VALUES:
                raise ComposerError(None, None, f"expands to more than {_MOST_VALUES} values", event.start_mark)
            self._sizes[id(node)] = size
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; every error has its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            reason = f": {error}" if isinstance(error, ValueError) else ""  # others are slips of PyYAML
            message = f"{str(node.value)[:40]!r} is not a valid {node.tag.rpartition(':')[2]}{reason}"
            raise ConstructorError(None, None, message, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping without duplicate keys."""
        if isinstance(node, yaml.MappingNode):
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, Hashable):
                    raise ConstructorError(None, None, f"key {key!r} is not a name", key_node.start_mark)
                name = key if isinstance(key, str) else "null" if key is None else str(key).lower()  # as in JSON
                if name in seen:
                    raise ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return an integer of at most 64 bits."""
        text = self.construct_scalar(node)
        if _INTEGER.fullmatch(text) is None:
            short = text if len(text) <= 40 else f"{text[:40]}... ({len(text)} characters)"
            message = f"{short!r} is not an integer: write it without leading zeros or colons, or quote a text"
            raise ConstructorError(None, None, message, node.start_mark)
        number = int(text.replace("_", ""), 0)
        if not -(2**63) <= number < 2**63:
            raise ConstructorError(None, None, f"{text} does not fit in 64 bits", node.start_mark)
        return number

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        """Return a text; half of a surrogate pair is a ValueError."""
        text = str(self.construct_scalar(node))
        text.encode()
        return text

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Return a float."""
        text = self.construct_scalar(node)
        if ":" in text:
            raise ConstructorError(None, None, f"{text} is not a number: quote a time or a text", node.start_mark)
        return super().construct_yaml_float(node)


for _name in ("binary", "omap", "pairs", "set"):
    PlainLoader.add_constructor(f"tag:yaml.org,2002:{_name}", PlainLoader.construct_undefined)
for _name in ("int", "float", "str"):
    PlainLoader.add_constructor(f"tag:yaml.org,2002:{_name}", getattr(PlainLoader, f"construct_yaml_{_name}"))
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
PlainLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?0o[0-7_]+$"), list("-+0"))


def explain_error(error: yaml.YAMLError) -> str:
    """Return an error in one line, with line and column (from 1) where known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        text = " ".join(part for part in (error.problem or error.context, error.note) if part)
        return f"{text} in line {mark.line + 1}, column {mark.column + 1}" if mark else text
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.character!r} at position {error.position} is not allowed"
    return " ".join(str(error).split())
