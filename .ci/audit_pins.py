"""Check pinned versions against published vulnerabilities with pip-audit; ``make audit`` calls it.

pip-audit prints "No known vulnerabilities found" and exits with 0 also if it could look up no package at all, and exits
with 1 for a network error as for a vulnerability. Here a package that was not looked up is never a success.

Exit status: 0 no known vulnerability, 1 at least one, 2 not all packages could be looked up.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOUND, INCOMPLETE = 1, 2
_OFFLINE = "the vulnerability service could not be reached, or does not know the packages: run it with a network"


def audit(pins: Path) -> int:
    """Print the findings for a file of pinned versions, and return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "report.json")
        options = ["--requirement", str(pins), "--no-deps", "--disable-pip", "--format=json", f"--output={output}"]
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *options, "--progress-spinner=off", "--timeout=15"],
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        report = _read(output)
    if report is None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"audit: not performed, because pip-audit failed ({last[:300]}); {_OFFLINE}", file=sys.stderr)
        return INCOMPLETE
    return summarize(report, pins)


def summarize(report: dict[str, Any], pins: Path) -> int:
    """Print the findings of pip-audit's JSON report, and return the exit status."""
    packages = report["dependencies"]
    skipped = [one for one in packages if "skip_reason" in one]
    vulnerable = [one for one in packages if one.get("vulns")]
    for one in vulnerable:
        for found in one["vulns"]:
            names = ", ".join([found["id"], *found.get("aliases", [])])
            fixed = ", ".join(found.get("fix_versions", [])) or "none yet"
            print(f"{one['name']} {one['version']}: {names}; fixed in: {fixed}")
    looked_up = len(packages) - len(skipped)
    print(f"audit: {looked_up} of {len(packages)} packages of {pins} looked up, {len(vulnerable)} vulnerable")
    if skipped or not packages:
        names = ", ".join(one["name"] for one in skipped[:8]) + (", ..." if len(skipped) > 8 else "")
        print(f"audit: incomplete, not looked up: {names or 'no package is listed'}; {_OFFLINE}", file=sys.stderr)
    if vulnerable:
        return FOUND
    return INCOMPLETE if skipped or not packages else 0


def _read(output: Path) -> dict[str, Any] | None:
    try:
        return json.loads(output.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(audit(Path(sys.argv[1])))
