"""The container recipes agree with each other and with the checkout, and their steps run in a new Debian root."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.containers.recipe_steps import DEFINITION, DOCKERFILE, ROOT, read_definition, read_dockerfile, run_recipe
from tests.system_programs import program

CHECKS = [
    "cd /opt/simcast",
    "simcast --version",
    "simcast doctor",
    "make .venv/.test",
    "python -m pytest -q -p no:cacheprovider -m 'not slow and not ci' tests/config tests/verification",
]


def test_both_recipes_have_the_same_steps():
    docker, apptainer = read_dockerfile(), read_definition()
    assert docker.base == apptainer.base and docker.arguments == apptainer.arguments
    assert docker.copies == apptainer.copies and docker.environment == apptainer.environment
    assert docker.commands == apptainer.commands and len(docker.commands) > 3


def test_recipes_copy_everything_that_is_installed():
    copies = read_dockerfile().copies
    assert all((ROOT / source).exists() for source, _ in copies)
    names = {source for source, _ in copies}
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file() or path.name == "kernels"} <= names
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    grafted = {line.split()[1] for line in manifest.splitlines() if line.startswith("graft ")}
    assert {name for name in grafted if not name.startswith(".")} <= names


@pytest.mark.parametrize("path", [DOCKERFILE, DEFINITION], ids=lambda path: path.name)
def test_recipes_contain_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) + "/" not in text.replace("/root/.cache", "") and "/tmp" not in text


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """Yield a new root of Debian, which each recipe copies."""
    if os.geteuid() != 0:
        pytest.skip("debootstrap and chroot need root")
    root = tmp_path_factory.mktemp("debian") / "root"
    command = [program("debootstrap", package="debootstrap"), "--variant=minbase", "bookworm", str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    yield root
    shutil.rmtree(root)


@pytest.mark.container
@pytest.mark.parametrize("read", [read_dockerfile, read_definition], ids=["Dockerfile", "simcast.def"])
def test_the_steps_run_in_a_new_root(read, debian):
    root, began = debian.with_name(read.__name__), time.monotonic()
    subprocess.run(["cp", "-a", str(debian), str(root)], check=True)  # with its device files
    try:
        recipe = read()
        arguments = recipe.arguments | {name: os.environ[name] for name in recipe.arguments if os.environ.get(name)}
        run_recipe(recipe, root, arguments=arguments, checks=CHECKS)
        print(f"{read.__name__}: {time.monotonic() - began:.0f} s")
    finally:
        shutil.rmtree(root)
