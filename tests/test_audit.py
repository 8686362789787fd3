"""The audit of pinned versions: a package that was not looked up is never a success. pip-audit itself is a stub."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "audit_pins.py"
CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (2)"}
VULNERABLE = {
    "name": "c",
    "version": "3",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["3.1"], "description": "x"}],
}
STUB = """
import json, os, sys
for word in sys.argv:
    if word.startswith("--output="):
        if os.environ["STUB"]:
            open(word.removeprefix("--output="), "w").write(os.environ["STUB"])
print("Traceback ...\\nConnectionError: no route", file=sys.stderr)
sys.exit(1 if not os.environ["STUB"] else 0)
"""


@pytest.mark.parametrize(
    ("packages", "status", "says"),
    [
        ([CLEAN], 0, "1 of 1 packages of pins.txt looked up, 0 vulnerable"),
        ([CLEAN, SKIPPED], 2, "incomplete, not looked up: b;"),
        ([SKIPPED], 2, "the vulnerability service could not be reached"),
        ([], 2, "not looked up: no package is listed"),
        ([CLEAN, VULNERABLE], 1, "c 3: PYSEC-1, CVE-2026-1; fixed in: 3.1"),
        ([SKIPPED, VULNERABLE], 1, "c 3: PYSEC-1, CVE-2026-1; fixed in: 3.1"),
        (None, 2, "audit: not performed, because pip-audit failed (ConnectionError: no route)"),
    ],
)
def test_status_and_message(tmp_path, packages, status, says):
    (tmp_path / "pip_audit.py").write_text(STUB)
    report = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    done = subprocess.run(
        [sys.executable, SCRIPT, "pins.txt"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "STUB": report},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert says in done.stdout + done.stderr


def test_all_pins_are_in_the_report_of_a_clean_audit(capsys):
    summarize = runpy.run_path(str(SCRIPT))["summarize"]
    names = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    report = {"dependencies": [CLEAN] * len(names)}
    assert summarize(report, Path("constraints.txt")) == 0
    assert f"{len(names)} of {len(names)} packages" in capsys.readouterr().out
