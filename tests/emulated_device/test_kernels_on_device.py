"""Every operator dispatches to its Triton kernel for tensors of a GPU, and launches on the device of its tensors."""

import json
import subprocess
import sys

import pytest

from benchmarks.cases import op_names
from tests.multi_rank.runs import environment

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def comparisons(library: str) -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulated_device.device_kernels", library],
        env=environment() | {"EMULATED_DEVICES": "2"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("op", op_names())
def test_kernels_run_on_the_device_of_their_tensors(comparisons: dict[str, dict], op: str):
    found = comparisons[op]
    assert "failed" not in found, found
    assert found["devices"] == ["cuda:1"] and found["launches"] == ["cuda:1"]
    assert found["error"] == 0.0, "the same kernel on the same numbers"
