"""Fuzz the radar readers one after another: ``python -m tests.fuzz.run_fuzz --seconds 60 [--reader odim]``.

An unexpected exception is a finding. A crash or hang of a native library is read again through the reader process: if
that turns it into an error of the file, it is contained. Both are saved. The exit status is 1 if there are findings.
"""

import argparse
import hashlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import read_frames
from tests.fuzz.fuzz_readers import Target
from tests.fuzz.valid_files import READERS

MAX_CALLER_BYTES = 1 << 30
_HANG_SECONDS = 20
_RSS_LIMIT_MB = 3000
_MARGIN_SECONDS = 60
_STATUS = re.compile(r"^#(\d+)\s.*?cov: (\d+)", re.M)


class Result(Counter[str]):
    """Counts of one reader."""


def fuzz(reader: str, seconds: float, findings: Path) -> Result:
    """Fuzz one reader, restarting it after each crash, and return the counts."""
    result, end = Result(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as work:
        corpus, log = Path(work, "corpus"), Path(work, "log")
        corpus.mkdir()
        Path(work, "judge").mkdir()
        judge = Target(reader, Path(work, "judge"))
        while (left := int(end - time.monotonic())) > 0 or not result["executions"]:
            # 1. A process of libFuzzer until the first crash
            folder = Path(tempfile.mkdtemp(dir=work))
            known = set(findings.glob(f"{reader}-*"))
            options = [
                f"-max_total_time={max(1, left)}", f"-timeout={_HANG_SECONDS}", f"-rss_limit_mb={_RSS_LIMIT_MB}",
                "-max_len=1000000", f"-artifact_prefix={findings}/{reader}-", str(corpus),
            ]  # fmt: skip
            status = _run_libfuzzer([reader, str(folder), *options], log, max(1, left) + _MARGIN_SECONDS)
            text = log.read_text(encoding="utf-8", errors="replace")
            states = _STATUS.findall(text)
            result["executions"] += int(states[-1][0]) if states else 1
            result["coverage"] = max([result["coverage"], *(int(coverage) for _, coverage in states)])
            # 2. What it found
            new = sorted(set(findings.glob(f"{reader}-*")) - known)
            last = folder / "last"
            if status and not new and last.exists():
                content = last.read_bytes()
                new = [findings / f"{reader}-died-{hashlib.sha256(content).hexdigest()[:16]}"]
                new[0].write_bytes(content)
            elif status and not new:
                raise SystemExit(f"the fuzz target of {reader} does not start:\n{text[-4000:]}")
            for path in new:
                kind = _judge(judge, path, is_python="Uncaught Python exception" in text)
                result[kind] += 1
                path.with_suffix(".txt").write_text(f"{kind}, status {status}\n{text[-20_000:]}", encoding="utf-8")
    return result


def _run_libfuzzer(arguments: list[str], log: Path, seconds: float) -> int:
    """Run the fuzz target and return its exit status, -1 if it had to be killed."""
    command = [sys.executable, "-m", "tests.fuzz.fuzz_readers", *arguments]
    with log.open("wb") as output:
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, timeout=seconds,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:  # malloc may deadlock on a corrupted heap
            return -1


def _judge(target: Target, path: Path, *, is_python: bool) -> str:
    """Return ``finding`` or ``contained`` for an input that ended the fuzz target."""
    try:
        read_frames(target.write(path.read_bytes()))
    except (DataError, ConfigError):
        pass
    except BaseException:
        return "finding"
    return "finding" if is_python else "contained"


def main() -> int:
    """Parse the command line, fuzz, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="per reader")
    parser.add_argument("--reader", choices=READERS, help="default: all")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="folder of inputs that crash")
    arguments = parser.parse_args()
    findings = arguments.findings.resolve()
    findings.mkdir(parents=True, exist_ok=True)
    print(f"{'reader':<12}{'executions':>12}{'coverage':>10}{'contained':>11}{'findings':>10}{'peak RSS MiB':>14}")
    total = 0
    for reader in [arguments.reader] if arguments.reader else READERS:
        result = fuzz(reader, arguments.seconds, findings)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        result["finding"] += peak > MAX_CALLER_BYTES
        total += result["finding"]
        print(
            f"{reader:<12}{result['executions']:>12}{result['coverage']:>10}{result['contained']:>11}"
            f"{result['finding']:>10}{peak >> 20:>14}",
            flush=True,
        )
    if total:
        print(f"{total} findings in {findings}", file=sys.stderr)
    return 1 if total else 0


if __name__ == "__main__":
    raise SystemExit(main())
