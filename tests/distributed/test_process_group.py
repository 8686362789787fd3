"""The end of a rank: its status and its exit functions, without the interpreter's shutdown."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from simcast_hpc.distributed import process_group

class Shutdown:
    def __del__(self):
        print("shutdown")

atexit.register(print, "exit function")
shutdown = Shutdown()
process_group._joined_ranks = int(sys.argv[1])
process_group.end_rank(85)
print("continues")
"""


@pytest.mark.parametrize(
    ("ranks", "status", "output"),
    [("2", 85, ["exit function"]), ("1", 0, ["continues", "exit function", "shutdown"])],
)
def test_only_one_of_several_ranks_ends_without_the_interpreters_shutdown(ranks, status, output):
    done = subprocess.run([sys.executable, "-c", PROGRAM, ranks], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (status, output), done.stderr
