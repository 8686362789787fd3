"""Memory for opening and sampling an index of SEVIR's size and ten times that (times: ``benchmarks.sevir_data``)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import data_index

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("times", [1, 10])
def test_opening_and_sampling_need_little_memory(tmp_path, times):
    events = times * data_index.SEVIR_EVENTS
    data_index.make(tmp_path / "sparse", events)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_index", "--open", str(tmp_path / "sparse")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shutil.rmtree(tmp_path / "sparse")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["windows"] == 3 * events
    assert 3 < result["mib"] < 500, "one window is 3.5 MiB"
