"""The driver of fuzzing: what it counts as a finding, and a short run with atheris."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import run_fuzz

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("#64 NEW cov: 12\n=== Uncaught Python exception: ===\nKeyError", "finding"),
        ("#64 NEW cov: 12\nERROR: libFuzzer: deadly signal", "contained"),
    ],
)
@pytest.mark.parametrize("saves", [True, False])
def test_exceptions_are_findings_and_native_crashes_contained(tmp_path, monkeypatch, text, kind, saves):
    def run(arguments: list[str], log: Path, _seconds: float) -> int:
        log.write_text(text)
        if saves:
            prefix = next(one for one in arguments if one.startswith("-artifact_prefix=")).partition("=")[2]
            Path(f"{prefix}crash-1").write_bytes(b"P5 damaged")
        else:  # a corrupted heap ends the process before libFuzzer saves the input
            Path(arguments[1], "last").write_bytes(b"P5 damaged")
        monkeypatch.setattr(run_fuzz.time, "monotonic", lambda: 1e12)
        return 77

    monkeypatch.setattr(run_fuzz, "_run_libfuzzer", run)
    monkeypatch.setattr(run_fuzz, "_judge", judge_without_process)
    result = run_fuzz.fuzz("fmi", 5, tmp_path)
    assert (result["executions"], result["coverage"]) == (64, 12)
    assert (result["finding"], result["contained"]) == ((1, 0) if kind == "finding" else (0, 1))
    (saved,) = [path for path in tmp_path.iterdir() if path.suffix != ".txt"]
    assert saved.read_bytes() == b"P5 damaged"
    assert saved.with_suffix(".txt").read_text().startswith(f"{kind}, status 77")


def judge_without_process(_target: object, _path: Path, *, is_python: bool) -> str:
    return "finding" if is_python else "contained"


@pytest.mark.ci
def test_short_fuzzing_finds_nothing(tmp_path):
    pytest.importorskip("atheris", reason="the extra fuzz is not installed")
    command = [sys.executable, "-m", "tests.fuzz.run_fuzz", "--seconds", "3", "--findings", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(run_fuzz.READERS)
