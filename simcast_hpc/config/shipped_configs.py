"""The configurations that are shipped with the project and addressed by name, such as ``teacher/sevir``."""

import difflib
from importlib import resources
from pathlib import Path

from .errors import ConfigError
from .path_expansion import expand_path

SUFFIX = ".yaml"


def configs_folder() -> Path:
    """Return the folder of the shipped configurations: package data, or ``configs/`` of an editable checkout."""
    package = Path(str(resources.files("simcast_hpc")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_configs() -> dict[str, Path]:
    """Return the file of each shipped configuration by its name, ``<stage>/<dataset>`` or ``pipeline/<name>``."""
    folder = configs_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.glob(f"*/*{SUFFIX}"))}


def resolve(name_or_path: str | Path) -> Path:
    """Return the file of a configuration; a file that exists takes precedence over a shipped name.

    Args:
        name_or_path: the path of a YAML file, or the name of a shipped configuration with or without ``.yaml``.

    Raises:
        ConfigError: there is neither such a file nor such a name; the message gives the nearest names.
    """
    path = Path(expand_path(name_or_path))
    try:
        if path.exists() and not path.is_dir():
            return path
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror or error}") from error
    known, name = list_configs(), path.as_posix().removesuffix(SUFFIX)
    if name in known:
        return known[name]
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a YAML file or the name of a shipped configuration")
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "`simcast config list` lists the names"
    raise ConfigError(f"{path} is neither a configuration file nor the name of a shipped configuration; {hint}")


def summary(path: Path) -> str:
    """Return the first comment line of a configuration file, without its marker."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def copy_config(name: str, target: Path) -> None:
    """Copy a shipped configuration to ``target``, which must not exist.

    Raises:
        ConfigError: the name is unknown, or ``target`` exists.
    """
    text = resolve(name).read_text(encoding="utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{target} exists; give another target") from None
