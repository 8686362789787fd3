"""An sdist, the wheel built from it, and fresh virtual environments outside any checkout of this project."""

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
_OFFLINE = ["--no-deps", "--no-index", "--no-build-isolation"]
_PURELIB = sysconfig.get_paths()["purelib"]
_BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


class Environment(NamedTuple):
    """A virtual environment that takes the dependencies from the environment of the tests by a path file."""

    folder: Path

    def run(self, *command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, without the variables that would make the checkout importable."""
        program, *arguments = map(str, command)
        environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRITON_INTERPRET")}
        done = subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd, env={**environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def install(self, *what: object) -> "Environment":
        """Install without dependencies, without an index and without a build environment of its own."""
        _run([*_PIP, "--python", self.folder, "install", "--ignore-installed", *_OFFLINE, *what])
        return self


def create_environment(folder: Path) -> Environment:
    """Create a virtual environment that sees the installed dependencies, but not the editable checkout."""
    _run([sys.executable, "-m", "venv", "--without-pip", folder])
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(_PURELIB + "\n", encoding="utf-8")
    return Environment(folder)


def _run(command: list[object]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    """The folder unpacked from an sdist of the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    done = subprocess.run(
        [sys.executable, "-c", _BUILD_SDIST, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    _run([*_PIP, "wheel", *_OFFLINE, "--wheel-dir", folder, sdist])
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def kernels_wheel(sdist, tmp_path_factory) -> Path:
    """The wheel of the distribution simcast-kernels alone."""
    folder = tmp_path_factory.mktemp("kernels-wheel")
    _run([*_PIP, "wheel", *_OFFLINE, "--wheel-dir", folder, sdist / "kernels"])
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Environment:
    """An environment with the wheel, inside a git repository of a user."""
    project = tmp_path_factory.mktemp("user-project")
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "A commit of the user"]):
        _run(["git", "-C", project, "-c", "user.name=User", "-c", "user.email=user@example.org", *command])
    return create_environment(project / "venv").install(wheel)
