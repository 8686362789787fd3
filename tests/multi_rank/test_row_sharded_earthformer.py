"""Earthformer with spatial sharding equals Earthformer on one rank."""

import subprocess
import sys

import pytest

from tests.multi_rank import earthformer_row_checks, earthformer_step_checks
from tests.multi_rank.runs import environment

_ALWAYS = {("axial", 2), ("shifted", 3), ("steps-shifted", 2)}


def _cases(module):
    return [
        pytest.param(name, size, marks=() if (name, size) in _ALWAYS else pytest.mark.slow)
        for name in module.CHECKS
        for size in (2, 3, 4)
    ]


def _check(module, name: str, size: int) -> None:
    command = [sys.executable, "-m", "tests.multi_rank.row_shard_checks", str(size), module.__name__, name]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize(("name", "size"), _cases(earthformer_row_checks))
def test_outputs_and_gradients_on_ranks_equal_the_whole_field(name: str, size: int):
    _check(earthformer_row_checks, name, size)


@pytest.mark.parametrize(("name", "size"), _cases(earthformer_step_checks))
def test_optimizer_steps_on_ranks_equal_those_of_one_rank(name: str, size: int):
    _check(earthformer_step_checks, name, size)
