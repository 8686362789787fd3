"""The Makefile, the pins and the CI script; nothing is installed here."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from simcast_hpc.baselines import BASELINES
from tests.system_programs import program

ROOT = Path(__file__).resolve().parents[1]
STAMPS = (".python", ".torch", ".runtime", ".verify", ".io", ".test", ".fuzz", ".dev")
INPUTS = ("setup.py", "pyproject.toml", "constraints.txt", "constraints-cuda.txt")
# Records its arguments and prints a line like pytest; fails if FAILS is part of its arguments.
PYTHON = """#!/bin/bash
echo "${TRITON_INTERPRET:-}|${SIMCAST_KERNELS:-}|$*" >>calls
echo "===== closing line of $*"
case "$*" in *"${FAILS:-nothing}"*) exit 1 ;; esac
"""


def make(folder: Path, *arguments: str, **variables: str):
    """Run make in a folder, done nothing by a make that may be running these tests."""
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "DEVICE", "DATA", "MODEL", "SECONDS", "READER")
    clean = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        [program("make", package="make"), *arguments],
        cwd=folder,
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def bare(tmp_path):
    """A checkout that contains only the Makefile and its inputs."""
    for name in (*INPUTS, "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def installed(bare):
    """The same with an environment whose Python is a stub."""
    python = bare / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in STAMPS:
        (bare / ".venv" / name).touch()
    return bare


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), "exact versions, plain names"
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names)), "in order, each once"
    return dict(line.split("==") for line in lines)


def requirements() -> list[Requirement]:
    """Return every direct requirement in pyproject.toml, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_direct_requirements_are_pinned_within_their_range():
    pinned = pins("constraints.txt")
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pinned, f"{requirement} has no line in constraints.txt"
        assert pinned[name] in requirement.specifier, f"constraints.txt pins {name}=={pinned[name]}, not {requirement}"


def test_cuda_pins_differ_only_in_triton():
    cpu, cuda = pins("constraints.txt"), pins("constraints-cuda.txt")
    assert cpu.pop("triton") and cuda.pop("triton") == "3.7.1", "the one that torch 2.13 for CUDA requires"
    assert cpu == cuda


def test_help_is_the_default_and_lists_all_targets(bare):
    done = make(bare)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  make (\S+) +\S.*$", done.stdout, flags=re.MULTILINE)
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", (bare / "Makefile").read_text(), flags=re.MULTILINE)).split()
    assert sorted(listed) == sorted(set(phony) - {"archive-of-radar"})
    assert {"run", "run-full", "radar", "test", "test-ci", "kernels", "gpu", "system-packages"} <= set(listed)


@pytest.mark.parametrize(("device", "constraints"), [("cpu", "constraints.txt"), ("cuda", "constraints-cuda.txt")])
def test_fresh_installation_starts_with_the_right_build_of_torch(bare, device, constraints):
    done = make(bare, "--dry-run", "run", f"DEVICE={device}")
    assert done.returncode == 0, done.stderr
    installs = re.findall(r"pip .*?install +(?!.*--dry-run)(.*?) >>", done.stdout)
    assert installs == [f"-c {constraints} torch", f"-c {constraints} -e ."]
    assert done.stdout.rstrip().endswith("simcast pipeline pipeline/quickstart")


def test_fuzz_passes_seconds_and_reader(installed):
    assert make(installed, "fuzz").returncode == 0
    assert make(installed, "fuzz", "SECONDS=5", "READER=odim").returncode == 0
    calls = (installed / "calls").read_text().splitlines()
    assert [call.strip() for call in calls] == [
        "||-m tests.fuzz.run_fuzz --seconds 60", "||-m tests.fuzz.run_fuzz --seconds 5 --reader odim",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["run", "radar"])
def test_each_backbone_has_a_pipeline(installed, target):
    (installed / "CATALOG.csv").touch()
    for words, name in (([], target), (["MODEL=simvp"], target), (["MODEL=earthformer"], f"{target}-earthformer")):
        done = make(installed, "--dry-run", target, "DEVICE=cpu", "DATA=.", *words)
        config = f"pipeline/{name.replace('run', 'quickstart')}"
        assert f"simcast pipeline {config}" in done.stdout
        assert (ROOT / "configs" / f"{config}.yaml").is_file()


@pytest.mark.parametrize(
    ("baselines", "extra"),
    [
        ("[persistence, extrapolation, pysteps-lk, s-prog, linda]", True),
        ("[steps]", True),
        ("[persistence, extrapolation]", False),
        ("[extrapolation] # without steps", False),
    ],
)
def test_radar_installs_pysteps_only_for_its_baselines(bare, baselines, extra):
    (bare / "CATALOG.csv").touch()
    config = bare / "configs" / "pipeline" / "radar-earthformer.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"evaluation:\n  baselines: {baselines}\n")
    done = make(bare, "--dry-run", "radar", "MODEL=earthformer", "DEVICE=cpu", "DATA=.")
    assert done.returncode == 0, done.stderr
    assert ("'.[verify]'" in done.stdout) == extra
    names = re.search(r"^PYSTEPS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert names and set(names[1].split("|")) == set(BASELINES) - {"persistence", "extrapolation"}


def test_package_indexes_are_passed_to_pip(bare):
    done = make(bare, "--dry-run", "run", "DEVICE=cpu", "TORCH_INDEX=https://t.example", "PIP_INDEX=https://p.example")
    installs = re.findall(r"pip .*?install +(.*?) >>", done.stdout)
    assert installs == [
        "--index-url https://t.example --no-deps -c constraints.txt torch",
        "--index-url https://p.example -c constraints.txt -e .",
    ]


def test_second_call_installs_nothing_unless_a_pin_changed(installed):
    assert " -e ." not in make(installed, "--dry-run", "run").stdout
    after = (installed / ".venv" / ".runtime").stat().st_mtime + 10
    os.utime(installed / "constraints.txt", (after, after))
    assert " -e ." in make(installed, "--dry-run", "run").stdout


def test_device_of_an_installation_is_stored(installed):
    (installed / ".venv" / ".device").write_text("cuda\n")
    (installed / ".venv" / ".dev").unlink()
    assert "-c constraints-cuda.txt -e '.[dev]'" in make(installed, "--dry-run", "install-dev").stdout


# Answers a dry run of pip with the requirements in WHEEL_NEEDS, and installs nothing; the rest is Python.
PIP = """#!/bin/bash
case "$*" in
  *--report*) printf '{"install": [{"metadata": {"requires_dist": [%s]}}]}' "$WHEEL_NEEDS" >.venv/torch.json ;;
  *"pip "*) ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
CPU_WHEEL, CUDA_WHEEL = '"numpy"', '"numpy", "nvidia-cublas==13.1; platform_system == \'Linux\'"'


@pytest.mark.parametrize(
    ("device", "wheel", "says"),
    [
        ("cpu", CPU_WHEEL, None),
        ("cuda", CUDA_WHEEL, None),
        ("cpu", CUDA_WHEEL, "selects a CUDA build of torch"),
        ("cuda", CPU_WHEEL, "selects a CPU build of torch"),
    ],
)
def test_warns_of_the_wrong_build_of_torch(installed, device, wheel, says):
    (installed / ".venv" / "bin" / "python").write_text(PIP)
    (installed / ".venv" / ".torch").unlink()
    done = make(installed, ".venv/.torch", f"DEVICE={device}", WHEEL_NEEDS=wheel, REAL_PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("TORCH_INDEX=" in done.stdout) == (says is not None)
    assert says is None or says in done.stdout
    assert (installed / ".venv" / ".device").read_text() == f"{device}\n"


@pytest.mark.parametrize("sees_a_gpu", [True, False])
def test_gpu_uses_the_python_that_sees_a_gpu_and_installs_nothing(bare, sees_a_gpu):
    python = bare / "python-of-the-machine"
    answer = 0 if sees_a_gpu else 1
    python.write_text(f'#!/bin/bash\n[ "$1" != -c ] || exit {answer}\necho "$PYTHONPATH|$*" >>calls\n')
    python.chmod(0o755)
    done = make(bare, "gpu", f"PYTHON={python}", "DEVICE=cpu")
    assert (done.returncode == 0) == sees_a_gpu
    if sees_a_gpu:
        assert calls(bare) == [["kernels", "-m benchmarks.run_gpu"]]
    else:
        assert "No GPU:" in done.stderr
    assert not (bare / ".venv").exists()


def test_radar_without_data_is_rejected_before_installation(bare):
    done = make(bare, "radar", "DATA=nowhere")
    assert done.returncode != 0
    assert "make radar requires DATA=FOLDER" in done.stderr and "'nowhere'" in done.stderr
    assert not (bare / ".venv").exists()


def calls(folder: Path) -> list[list[str]]:
    return [line.split("|") for line in (folder / "calls").read_text().splitlines()]


def test_tests_run_in_three_processes(installed):
    done = make(installed, "test", TRITON_INTERPRET="1", SIMCAST_KERNELS="triton")
    assert done.returncode == 0, done.stderr
    kernels, compiled, rest = calls(installed)
    assert kernels == ["1", "", "-m pytest tests/kernels tests/models_on_kernels -m not gpu and not slow"]
    assert compiled == ["", "", "-m pytest tests/benchmarks -m not gpu and not slow"]
    assert rest[:2] == ["", ""]
    assert rest[2].startswith(
        "-m pytest tests --ignore=tests/kernels --ignore=tests/models_on_kernels --ignore=tests/benchmarks "
        "-m not gpu and not slow"
    )


@pytest.mark.parametrize("fails", ["tests/models_on_kernels -m", "tests/benchmarks -m", "--ignore=tests/kernels"])
def test_failure_of_one_process_does_not_stop_the_others(installed, fails):
    done = make(installed, "test", FAILS=fails)
    assert done.returncode != 0
    assert len(calls(installed)) == 3
    assert "Failed: " in done.stdout
    assert [line.split(" of ")[0] for line in done.stdout.splitlines()[-3:]] == ["===== closing line"] * 3


@pytest.mark.parametrize("state", [0, 2])
def test_ci_runs_all_checks_and_returns_the_status_of_the_tests(tmp_path, state):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / ".venv" / "tests").mkdir(parents=True)
    (tmp_path / ".venv" / "tests" / "1-kernels.log").write_text("===== 1 failed in 2.00s =====\n")
    fake = tmp_path / "bin" / "make"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\necho "$SIMCAST_REQUIRE_SYSTEM $*" >>calls\n[ "$1" != test ] || exit "$STATE"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}", "STATE": str(state)}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == state
    assert (tmp_path / "calls").read_text().split("\n") == [
        "1 system-packages",
        "1 lint",
        "1 types",
        "1 docs",
        "1 test",
        "1 test-ci",
        "",
    ]
    assert ("1 failed in 2.00s" in done.stdout) == (state != 0)
