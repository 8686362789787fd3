"""System programs that tests require: without one a test skips or, with ``SIMCAST_REQUIRE_SYSTEM=1``, fails.

CI installs the Debian packages and sets the variable, so that no check is skipped unnoticed.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, *, package: str) -> str:
    """Return the path of a program in this environment or on the system, or skip the calling test.

    Args:
        name: the program, such as ``shellcheck``.
        package: the Debian package that contains it, for the message.
    """
    in_environment = Path(sys.executable).with_name(name)
    path = str(in_environment) if os.access(in_environment, os.X_OK) else shutil.which(name)
    if path is not None:
        return path
    reason = f"{name} is not installed; `make system-packages` installs the package {package}"
    if os.environ.get("SIMCAST_REQUIRE_SYSTEM") == "1":
        pytest.fail(f"{reason} (SIMCAST_REQUIRE_SYSTEM=1)")
    pytest.skip(reason)
