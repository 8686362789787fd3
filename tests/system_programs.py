"""Programs that tests want from the system: absent, a test skips; where ``SIMCAST_REQUIRE_SYSTEM=1`` is set, it fails.

CI installs the Debian packages first and sets the variable, so that a check cannot fall asleep there.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, *, package: str) -> str:
    """Return the path of a program, of this environment or of the system, or skip the calling test.

    Args:
        name: the program, such as ``shellcheck``.
        package: the Debian package that holds it, for the reader of the reason.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is not None:
        return found
    reason = f"there is no {name} here; `make system-packages` installs the package {package}"
    if os.environ.get("SIMCAST_REQUIRE_SYSTEM") == "1":
        pytest.fail(f"{reason} (SIMCAST_REQUIRE_SYSTEM=1)")
    pytest.skip(reason)
