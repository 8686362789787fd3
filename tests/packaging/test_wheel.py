"""The sdist, the wheel built from it, and an installation of the wheel outside any checkout (`make test-ci`)."""

import email
import json
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from simcast_hpc.version import __version__, commit
from tests.packaging.conftest import ROOT, create_environment

pytestmark = pytest.mark.ci
# A teacher and a student of the quickstart with a few steps on few events: about a minute on 2 cores.
_TINY = (
    "stages={teacher: {max_steps: 4}, student: {max_steps: 4}}", "time_budget_minutes=null", "checkpoint.every_steps=4",
    "synthesis={seed: 1, size: 32, train_events: 2, val_events: 1, test_events: 1}", "batch.global_size=8",
)  # fmt: skip


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(file.read(name))


@pytest.fixture(scope="module")
def build_commit(sdist) -> str:
    """The commit stored in the sdist, which is that of the checkout."""
    built = runpy.run_path(str(sdist / "simcast_hpc" / "_build.py"))["COMMIT"]
    assert built.removesuffix("-dirty") == commit().removesuffix("-dirty")
    return built


@pytest.fixture(scope="module")
def pipeline(installed, tmp_path_factory) -> Path:
    """The folder in which the quickstart pipeline ran, addressed by name."""
    folder = tmp_path_factory.mktemp("work")
    overrides = [word for override in _TINY for word in ("--set", override)]
    done = installed.run("simcast", "pipeline", "pipeline/quickstart", *overrides, cwd=folder)
    assert not re.search(r"\[(INFO|WARNING)\]|run_dir:", done.stdout + done.stderr), "DeepSpeed or the configuration"
    return folder


def test_sdist_contains_every_file_of_the_repository(sdist):
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("the tests do not run in a git repository")
    tracked = {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}
    assert sorted(name for name in tracked if not (sdist / name).is_file()) == []


def test_tests_run_from_the_sdist(sdist):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/config", "tests/test_docs.py"]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{sdist}:{sdist / 'kernels'}"}
    done = subprocess.run(command, cwd=sdist, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_metadata_has_no_relative_links(wheel):
    fields = metadata(wheel)
    assert (fields["Name"], fields["Version"], fields["License-Expression"]) == (
        "simcast-hpc",
        __version__,
        "Apache-2.0",
    )
    assert re.findall(r"\]\((?!https?:)[^)]*\)", str(fields.get_payload())) == []
    assert not any(name.startswith("simcast-kernels") for name in fields.get_all("Requires-Dist", []))


def test_wheel_contains_configurations_and_type_markers(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    configs = {f"simcast_hpc/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs | {"simcast_hpc/py.typed", "simcast_kernels/py.typed", "simcast_hpc/report/report.css"} <= names
    assert [name for name in names if name.startswith(("tests/", "benchmarks/", "kernels/"))] == []


def test_version_has_the_commit_of_the_build(installed, build_commit):
    output = installed.run("simcast", "--version", cwd=installed.folder).stdout
    assert output == f"simcast {__version__} (commit {build_commit})\n", "not the commit of the user's repository"


def test_configurations_are_found_by_name(installed, tmp_path):
    listed = installed.run("simcast", "config", "list", cwd=tmp_path).stdout
    assert "teacher/sevir " in listed and "pipeline/quickstart " in listed
    done = installed.run("simcast", "train", "teacher/sevri", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "teacher/sevir" in done.stderr


def test_pipeline_runs_by_name_and_stores_its_version(pipeline, build_commit):
    versions = json.loads((pipeline / "runs" / "quickstart" / "student" / "versions.json").read_text(encoding="utf-8"))
    assert (versions["simcast-hpc"], versions["commit"]) == (__version__, build_commit)
    (report,) = (pipeline / "runs" / "quickstart").glob("report/*.html")
    assert f"SimCast-HPC {__version__} (commit {build_commit})" in report.read_text(encoding="utf-8")


def test_python_examples_of_the_readme_run(installed, pipeline):
    examples = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S | re.M
    )
    if not examples:
        pytest.skip("the README has no Python example")
    for example in examples:
        installed.run("python", "-c", example, cwd=pipeline)


def test_editable_installation_reads_the_configurations_of_the_checkout(sdist, tmp_path):
    editable = create_environment(tmp_path / "venv").install("-e", sdist)
    program = "from simcast_hpc.config import resolve; print(resolve('teacher/sevir'))"
    assert editable.run("python", "-c", program, cwd=tmp_path).stdout.strip() == str(
        sdist / "configs/teacher/sevir.yaml"
    )
    assert __version__ in editable.run("simcast", "--version", cwd=tmp_path).stdout
