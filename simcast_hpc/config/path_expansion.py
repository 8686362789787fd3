"""Expand ``~`` and environment variables in paths: of configurations, of the command line and of the Python API.

``~`` and ``~user`` at the start and ``$NAME`` and ``${NAME}`` anywhere are replaced as by a shell. A shell does not see
the paths in YAML files, after ``--set key=`` or in Python.
"""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from .errors import ConfigError

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", flags=re.ASCII)


def expand_path(path: str | os.PathLike[str], *, where: str = "") -> str:
    """Return ``path`` with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` replaced.

    Args:
        path: of a file or folder that need not exist.
        where: the field or argument, which begins the message of an error.

    Raises:
        ConfigError: a variable is not set or empty, or a user does not exist; unless a file has the name as written.
    """
    text = os.fspath(path)
    missing = [name for name in map(_name, _VARIABLE.finditer(text)) if not os.environ.get(name)]
    expanded = os.path.expanduser(text)
    if not missing and not (text.startswith("~") and expanded == text):
        # Variables first, because the home directory may contain a dollar sign.
        return os.path.expanduser(_VARIABLE.sub(lambda match: os.environ[_name(match)], text))
    if os.path.lexists(text):
        return text
    prefix = f"{where}={text}: " if where else f"{text}: "
    if missing:
        raise ConfigError(
            f"{prefix}the environment variable {missing[0]} is not set; set it, or write the path in full"
        )
    raise ConfigError(f"{prefix}there is no user {text.split('/')[0][1:]!r}; write the path in full")


def _name(match: re.Match[str]) -> str:
    return match[1] or match[2]


def _expand_field(value: str) -> str:
    try:
        return expand_path(value)
    except ConfigError as error:
        raise PydanticCustomError("path", "{message}", {"message": str(error)}) from None


def _expand_path_field(value: Path) -> Path:
    return Path(_expand_field(str(value)))


FieldPath = Annotated[Path, AfterValidator(_expand_path_field)]
"""The type of a configuration field that is a path."""
NameOrPath = Annotated[str, AfterValidator(_expand_field)]
"""The type of a configuration field that is a name, or a path."""
