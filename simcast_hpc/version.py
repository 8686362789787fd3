"""Version and build commit of this installation.

Both are stored by ``setup.py`` in ``_build.py`` when a wheel or an sdist is built. A checkout has no such file: there
the version is read from ``kernels/simcast_kernels/__init__.py``, where it is defined, and the commit from git.
"""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _read_version(checkout: Path) -> str:
    text = (checkout / "kernels" / "simcast_kernels" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, flags=re.MULTILINE)
    assert match is not None, "simcast_kernels/__init__.py defines no __version__"
    return match[1]


def describe_commit(checkout: Path) -> str:
    """Return ``git describe --always --dirty`` of ``checkout``, or ``unknown``.

    Only a repository of this project is queried, recognized by ``setup.py`` and ``pyproject.toml`` next to ``.git``: a
    repository that contains the virtual environment has another commit. Git neither searches the folders above the
    checkout nor uses another repository that its variables name, such as GIT_DIR inside a git hook.
    """
    names = ("pyproject.toml", "setup.py", "simcast_hpc/version.py", ".git")
    if not all((checkout / name).exists() for name in names):
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(checkout.resolve().parent)
    try:
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _build_info() -> tuple[str, str | None]:
    """Return the version, and the commit stored at the build (None in a checkout)."""
    try:
        from ._build import COMMIT, VERSION  # pyright: ignore[reportMissingImports]
    except ImportError:
        return _read_version(_PACKAGE.parent), None
    return VERSION, COMMIT


__version__, _COMMIT = _build_info()


@cache
def commit() -> str:
    """Return the commit that this installation was built from, in a checkout the present one, else ``unknown``."""
    return _COMMIT or describe_commit(_PACKAGE.parent)
