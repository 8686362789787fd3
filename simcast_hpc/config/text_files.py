"""Read text files that users or other programs wrote: UTF-8 or UTF-16, with or without a byte order mark (BOM)."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import SimcastError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


LARGEST_BYTES = 2**28
# JSON takes up to 30 times its size in memory.
LARGEST_JSON_BYTES = 2**24


def printable(text: str, *, keep: str = "") -> str:
    """Return a text in which characters that are not printable are escaped, such as those of a terminal.

    These are control characters, line ends, marks of writing direction, and halves of surrogate pairs, by which a
    name of a file can forge or hide output. Characters in ``keep`` are not escaped.
    """
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


def read_text_file(path: Path, *, error: type[SimcastError], what: str, most_bytes: int = LARGEST_BYTES) -> str:
    """Return the text of a file without its byte order mark, with line ends as in the file.

    Args:
        path: a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        error: type of the errors.
        what: description of the file in errors, such as ``the catalog``.
        most_bytes: largest valid size; more is not read.

    Raises:
        SimcastError: of type ``error``: the file cannot be read, is too large, has another encoding (names the line),
            or contains NUL characters.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the name
        raise error(f"{what} {path} cannot be read: {getattr(cause, 'strerror', None) or cause}") from cause
    if len(content) > most_bytes:
        raise error(f"{what} {path} is larger than {most_bytes / 2**20:g} MiB, the largest valid size")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as cause:
        line = content[: cause.start].decode(encoding, errors="ignore").count("\n") + 1
        name, byte = encoding.removesuffix("-sig").upper(), content[cause.start]
        raise error(
            f"{what} {path} is not {name} text: byte {byte:#04x} in line {line}; save the file as UTF-8"
        ) from cause
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise error(f"{what} {path}, line {line}: contains a NUL character (UTF-16 without BOM?); save it as UTF-8")
    return text


def read_json_file(
    path: Path,
    *,
    error: type[SimcastError],
    what: str,
    parse_constant: Callable[[str], Any] | None = None,
    most_bytes: int = LARGEST_JSON_BYTES,
) -> Any:
    """Return the value of a JSON file.

    Args:
        path: a text file as for :func:`read_text_file`.
        error: type of the errors.
        what: description of the file in errors, such as ``the completion marker``.
        parse_constant: called with ``NaN``, ``Infinity`` or ``-Infinity``; by default they are floats.
        most_bytes: largest valid size; more is not read.

    Raises:
        SimcastError: of type ``error``: the file cannot be read, is too large, or is not JSON (names the line).
    """
    text = read_text_file(path, error=error, what=what, most_bytes=most_bytes)
    try:
        return json.loads(text, parse_constant=parse_constant)
    except (ValueError, RecursionError) as cause:  # also numbers of more than 4300 digits, and too many levels
        raise error(f"{what} {path} is not JSON: {cause}") from cause
