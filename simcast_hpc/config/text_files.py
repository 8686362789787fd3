"""Read text files that users or other programs wrote: UTF-8 or UTF-16, with or without a byte order mark (BOM)."""

import codecs
from pathlib import Path

from .errors import SimcastError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text_file(path: Path, *, error: type[SimcastError], what: str) -> str:
    """Return the text of a file without its byte order mark, with line ends as in the file.

    Args:
        path: a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        error: type of the errors.
        what: description of the file in errors, such as ``the catalog``.

    Raises:
        SimcastError: of type ``error``: the file cannot be read, has another encoding (names the line), or contains
            NUL characters.
    """
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise error(f"{what} {path} cannot be read: {cause.strerror or cause}") from cause
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
