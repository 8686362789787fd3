"""Earthformer with spatial sharding equals Earthformer on one rank."""

import subprocess
import sys

import pytest

from tests.multi_rank.earthformer_row_checks import CHECKS
from tests.multi_rank.runs import environment

_ALWAYS = {("axial", 2), ("shifted", 3)}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=() if (name, size) in _ALWAYS else pytest.mark.slow)
        for name in CHECKS
        for size in (2, 3, 4)
    ],
)
def test_outputs_and_gradients_on_ranks_equal_the_whole_field(name: str, size: int):
    command = [sys.executable, "-m", "tests.multi_rank.row_shard_checks", str(size)]
    command += ["tests.multi_rank.earthformer_row_checks", name]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
