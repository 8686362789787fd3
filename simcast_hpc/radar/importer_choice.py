"""Choice of the importer of radar files: its name and options, as given by ``--importer``.

Without a choice, the format of a file is detected by its content. ``--importer "NAME key=value ..."`` selects a
built-in reader, ``pysteps:NAME``, ``xradar:NAME``, ``composite:maximum``, ``composite:nearest``, or a plug-in of the
entry point group ``simcast.readers``, and passes options to it.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simcast_hpc.config import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_OPTIONS, _MAX_CHARACTERS = 50, 5000


@dataclass(frozen=True)
class ImporterChoice:
    """The importer that reads all files of a command.

    Attributes:
        name: such as ``geotiff``, ``pysteps:dwd_radolan``, ``xradar:iris`` or the name of a plug-in.
        options: pairs of key and value, in ascending order of the keys; every value is a string.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Check the form of name and options; whether the importer exists is checked as it reads.

        Raises:
            ConfigError: a name or key has an invalid form, or a key occurs twice.
        """
        object.__setattr__(self, "options", tuple(sorted((str(key), str(value)) for key, value in self.options)))
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"--importer {self.name!r} is not the name of an importer; expected NAME or PACKAGE:NAME, such as "
                "geotiff or pysteps:dwd_radolan, followed by key=value"
            )
        keys = [key for key, _ in self.options]
        for key in keys:
            if not _KEY.fullmatch(key):
                raise ConfigError(f"--importer {self.name}: {key!r} is not a valid key; expected key=value")
            if keys.count(key) > 1:
                raise ConfigError(f"--importer {self.name}: the key {key} occurs twice")
        if len(keys) > _MAX_OPTIONS or sum(len(value) for _, value in self.options) > _MAX_CHARACTERS:
            raise ConfigError(
                f"--importer {self.name} has too many or too long options; at most {_MAX_OPTIONS} keys and "
                f"{_MAX_CHARACTERS} characters are valid"
            )

    @property
    def is_composite(self) -> bool:
        """Whether a folder is read as one file, see :mod:`composite_reader`."""
        return self.name.startswith("composite:")

    @property
    def values(self) -> dict[str, str]:
        """Return the options as a dict."""
        return dict(self.options)

    def __str__(self) -> str:
        """Return the text that :func:`parse_importer` reads."""
        return " ".join([self.name, *(shlex.quote(f"{key}={value}") for key, value in self.options)])


def parse_importer(words: Sequence[str] | None) -> ImporterChoice | None:
    """Return the importer of ``--importer``, which can be repeated: the first word is its name, the others key=value.

    ``--importer "pysteps:dwd_radolan product_name=RY"`` equals ``--importer pysteps:dwd_radolan --importer
    product_name=RY``. Values with spaces are quoted as in a shell.

    Args:
        words: values of the option; None or none of them selects no importer.

    Raises:
        ConfigError: a word has another form.
    """
    try:
        parts = [part for word in words or () for part in shlex.split(word)]
    except ValueError as error:
        raise ConfigError(f"--importer {' '.join(words or ())!r}: {error}; quotes must be closed") from error
    if not parts:
        if words:
            raise ConfigError("--importer is empty; expected NAME key=value ...")
        return None
    name, *options = parts
    for option in options:
        if "=" not in option:
            raise ConfigError(f"--importer {name}: {option!r} is not an option; expected key=value")
    return ImporterChoice(name, tuple((key, value) for key, _, value in (one.partition("=") for one in options)))


def importer_from_mapping(content: Any) -> ImporterChoice | None:
    """Return the importer of a parsed JSON object ``{"name": ..., "options": [[key, value], ...]}``, None for None."""
    if content is None:
        return None
    return ImporterChoice(content["name"], tuple((key, value) for key, value in content["options"]))
