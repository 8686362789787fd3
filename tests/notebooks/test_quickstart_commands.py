"""The commands and the Python example of the quickstart run, on a pipeline with few steps and events."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT, lines_to_type

pytestmark = pytest.mark.ci
PAGE = ROOT / "docs" / "getting-started" / "quickstart.md"
# Appended to every pipeline of the page: 4 steps per stage, 4 events of 32 x 32 pixels.
_SMALL = (
    "stages={teacher: {max_steps: 4}, student: {max_steps: 4}, direct: {max_steps: 4}}", "checkpoint.every_steps=4",
    "synthesis={seed: 1, size: 32, train_events: 2, val_events: 1, test_events: 1}", "time_budget_minutes=null",
    "evaluation.tables_only=true",
)  # fmt: skip
# `make run` installs and runs the pipeline; the environment of the tests is active already.
_REPLACED = {"make run": "simcast pipeline pipeline/quickstart", "source .venv/bin/activate": "true"}
_REJECTED = "simcast train teacher/sevir --set batch.micro_sise=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder in which the commands of the page run, in their order."""
    return tmp_path_factory.mktemp("quickstart")


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in bash, with the programs of this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    packages = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environ = {**os.environ, "PATH": path, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", lines_to_type(PAGE))
def test_command_of_the_page_runs(command, folder):
    line = _REPLACED.get(command, command)
    if line.startswith("simcast pipeline "):
        line += "".join(f" --set '{override}'" for override in _SMALL)
    done = run(line, folder)
    if command == _REJECTED:
        assert done.returncode == 2
        assert "batch.micro_sise: unknown key; did you mean batch.micro_size?" in done.stderr
    else:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_python_example_of_the_page_runs(folder):
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    (folder / "example.py").write_text(example, encoding="utf-8")
    done = run("python example.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("Forecaster('quickstart-student': 6 frames in, 6 lead times of 5 min)\n")


def test_page_shows_the_folders_of_the_run(folder):
    listed = set(run("ls runs/quickstart", folder).stdout.split())
    shown = re.search(r"^DONE\.json  .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert shown and set(shown[0].split()) == listed
