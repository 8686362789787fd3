"""Path of the shared reference data: outputs of public implementations and real radar data."""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared"


def shared(relative: str) -> Path:
    """Return the path of shared reference data, or skip the calling test if it is absent.

    Args:
        relative: path below the shared folder, such as ``golden/simvp/incepu_small.safetensors``.
    """
    root = Path(os.environ.get("SIMCAST_SHARED", _DEFAULT))
    path = root / relative
    if not path.exists():
        pytest.skip(f"no reference data at {path}; set SIMCAST_SHARED to the folder that contains {relative}")
    return path
