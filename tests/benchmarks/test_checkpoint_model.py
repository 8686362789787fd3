"""File operations from the output of ``strace``, and the extrapolation of checkpoints compared with counted ranks."""

import csv
import shutil
import subprocess
import sys

import pytest

from benchmarks import checkpoint_model
from benchmarks.checkpoint_model import COSTS
from benchmarks.file_operations import command_line, counts
from benchmarks.measurements import RESULTS
from benchmarks.scaling_worker import parameters

COUNTED = [
    row
    for row in csv.DictReader((RESULTS / "cpu" / "checkpoint_counts.csv").open(encoding="utf-8"))
    if row["phase"] in COSTS and row["zero_stage"] != "0"
]
TRACE = """\
7 openat(AT_FDCWD</home>, "data/a", O_RDONLY|O_CLOEXEC) = 3</home/data/a>
7 access("/simcast-phase/1/save", F_OK)  = -1 ENOENT (No such file or directory)
7 read(3</home/data/a>,  <unfinished ...>
8 openat(AT_FDCWD</home>, "none", O_RDONLY) = -1 ENOENT (No such file or directory)
7 <... read resumed>""..., 4096)         = 100
8 newfstatat(4</run>, "b/../c", {st_mode=S_IFREG|0644, st_size=1, ...}, 0) = 0
8 write(5</run/c>, ""..., 7)             = 7
8 write(1<pipe:[77]>, ""..., 9)          = 9
8 read(6</proc/meminfo>, ""..., 9)       = 9
8 rename("/run/c", "/run/d")             = 0
7 access("/simcast-phase/end", F_OK)     = -1 ENOENT (No such file or directory)
"""


def test_counts_calls_by_phase_and_folder():
    found = counts(TRACE.splitlines(), {"/home/data": "data", "/run": "run"})
    assert found == {
        ("start", "data"): {"opens": 1},
        ("1/save", "data"): {"bytes_read": 100},
        ("1/save", "other"): {"opens": 1},
        ("1/save", "run"): {"stats": 1, "bytes_written": 7, "changes": 1},
    }


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")
def test_counts_a_program(tmp_path):
    program = "from benchmarks.file_operations import mark\nimport sys\nmark('work')\n"
    program += "path = sys.argv[1] + '/file'\nopen(path, 'w').write('12345')\nopen(path).read()\nmark('end')\n"
    (tmp_path / "folder").mkdir()
    words = [sys.executable, "-c", program, str(tmp_path / "folder")]
    done = subprocess.run(command_line(tmp_path, words), capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace processes here")
    assert done.returncode == 0, done.stderr
    found = counts((tmp_path / "rank-0").read_text().splitlines(), {str(tmp_path / "folder"): "folder"})
    own = found["work", "folder"]
    assert (own["opens"], own["bytes_written"], own["bytes_read"]) == (2, 5, 5)


@pytest.mark.parametrize(
    "row", COUNTED, ids=[f"{row['phase']}-{row['zero_stage']}-{row['rank']}-of-{row['ranks']}" for row in COUNTED]
)
def test_extrapolation_equals_the_counts_of_two_and_four_ranks(row):
    ranks, first = int(row["ranks"]), row["rank"] == "0"
    cost = COSTS[row["phase"]](parameters(), ranks=ranks, first=first)
    listings = int(row["opens"]) - cost.opens  # how often rank 0 of a save waits for the others depends on the time
    assert listings >= 0 and (listings == 0 or (row["phase"] == "save" and first))
    assert int(row["stats"]) == cost.stats + listings and int(row["changes"]) == cost.changes
    written = "bytes_written" if row["phase"] == "save" else "mapped_bytes_read"
    for key in (written, "bytes_read"):  # with headers and descriptions
        assert cost.state_bytes * (1 - 1e-4) <= int(row[key]) <= cost.state_bytes + 110_000


def test_counts_include_two_and_four_ranks():
    assert {(row["ranks"], row["zero_stage"]) for row in COUNTED} == {(n, s) for n in "24" for s in "123"}


def test_prints_estimates(capsys):
    assert checkpoint_model.main(["--parameters", "1000000", "--ranks", "512"]) == 0
    printed = capsys.readouterr().out
    assert "Estimates" in printed and "5,127" in printed  # 16 + 512 + 511 x 9
