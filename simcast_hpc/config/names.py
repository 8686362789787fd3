"""Names that become files or words of a command, and paths that stay below a folder."""

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeVar

from pydantic import AfterValidator, StringConstraints

from .errors import ConfigError

T = TypeVar("T", str, Path)
PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
"""A letter or digit, then at most 99 letters, digits, and . _ + -, so that a name is no path, option or shell word."""
Name = Annotated[str, StringConstraints(pattern=PATTERN)]
"""Name of a run, stage, test set or data set."""
_NAME = re.compile(PATTERN.removeprefix("^").removesuffix("$"))
_LONGEST_STEM = 80


def check_name(name: str, *, where: str) -> str:
    """Return ``name`` if it matches ``PATTERN``; ``where`` begins the message of the error.

    Raises:
        ConfigError: it does not.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{where} {name!r} is not a name: it must match {PATTERN}")
    return name


def file_stem(text: str) -> str:
    """Return a name of a file for a text of a data file, such as the identifier of an event.

    A text that is a name is returned as it is. In any other one each invalid character becomes ``_``, and a hash is
    appended, so that different texts have different names.
    """
    if _NAME.fullmatch(text) and len(text) <= _LONGEST_STEM:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9_+-]", "_", text)[:_LONGEST_STEM].lstrip("+-_") + "_" + digest


def check_below(path: T) -> T:
    """Return a relative path if its parts stay below the folder that it is joined to.

    Raises:
        ValueError: they do not.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not str(path).isprintable():
        raise ValueError(f"{str(path)!r} must be a relative path below the data root, without '..'")
    return path


PathBelow = Annotated[Path, AfterValidator(check_below)]
"""A path relative to the data root that does not leave it."""
