"""Operators dispatch to their Triton kernels on a GPU, on the device of their tensors; networks mix no dtypes there."""

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.cases import op_names
from tests.multi_rank.runs import environment

pytestmark = pytest.mark.ci


def run(module: str, library: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.emulated_device.{module}", library],
        env=environment() | {"EMULATED_DEVICES": "2"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def comparisons(library: str) -> dict[str, Any]:
    return run("device_kernels", library)


@pytest.mark.parametrize("op", op_names())
def test_kernels_run_on_the_device_of_their_tensors(comparisons: dict[str, Any], op: str):
    found = comparisons[op]
    assert "failed" not in found, found
    assert found["devices"] == ["cuda:1"] and found["launches"] == ["cuda:1"]
    assert found["error"] == 0.0, "the same kernel on the same numbers"


def test_networks_train_in_every_precision(library: str):
    found = run("device_models", library)
    assert len(found) == 15
    assert not {name: fault for name, fault in found.items() if fault}
