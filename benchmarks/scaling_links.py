"""Network namespaces of one machine joined by a bridge with rate-limited links, to measure collectives.

Requires Linux, root and iproute2. Every namespace has one link ``wire`` with the address ``10.78.0.<n + 1>``; the
bridge has its own namespace, so that the machine's network is unchanged.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LINK = "wire"
_PREFIX = "simcast-scaling"
_QUEUE = "200ms"
_PORT = 29577
_TIMEOUT_SECONDS = 1800


def address(number: int) -> str:
    """Return the address of a namespace."""
    return f"10.78.0.{number + 1}"


def name(number: int) -> str:
    """Return the name of a namespace."""
    return f"{_PREFIX}-{number}"


@contextmanager
def namespaces(count: int) -> Iterator[list[str]]:
    """Create ``count`` namespaces for the block and remove them after it.

    Raises:
        RuntimeError: they exist already, or cannot be created.
    """
    if shutil.which("tc") is None or shutil.which("ip") is None:
        raise RuntimeError("the commands ip and tc are missing; install iproute2")
    hub, names = f"{_PREFIX}-hub", [name(number) for number in range(count)]
    created: list[str] = []
    try:
        for one in (hub, *names):
            _run("ip", "netns", "add", one)
            created.append(one)
            _run("ip", "-n", one, "link", "set", "lo", "up")
        _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge", "up")
        for number, one in enumerate(names):
            port = f"port{number}"
            _run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", LINK, "netns", one)
            _run("ip", "-n", hub, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", one, "addr", "add", f"{address(number)}/24", "dev", LINK)
            _run("ip", "-n", one, "link", "set", LINK, "up")
        yield names
    finally:
        for one in reversed(created):
            subprocess.run(["ip", "netns", "del", one], check=False)


def run_on_links(module: str, task: Mapping[str, Any], *, ranks: int) -> list[dict[str, Any]]:
    """Run ``python -m MODULE TASK FILE`` as one rank per namespace and return the rows that rank 0 wrote to FILE.

    Raises:
        RuntimeError: a rank failed; contains the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder, namespaces(ranks) as names:
        out, processes = Path(folder) / "rows.json", []
        for rank, namespace in enumerate(names):
            group = {
                "RANK": rank,
                "WORLD_SIZE": ranks,
                "LOCAL_RANK": 0,
                "MASTER_ADDR": address(0),
                "MASTER_PORT": _PORT,
            }
            environment = os.environ | {key: str(value) for key, value in group.items()}
            environment |= {"GLOO_SOCKET_IFNAME": LINK, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            words = [sys.executable, "-m", module, json.dumps(task), str(out)]
            with (Path(folder) / f"{rank}.log").open("w") as log:
                line = ["ip", "netns", "exec", namespace, *words]
                processes.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
        try:
            failed = [rank for rank, one in enumerate(processes) if one.wait(timeout=_TIMEOUT_SECONDS)]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed:
            raise RuntimeError(f"rank {failed[0]} failed: {(Path(folder) / f'{failed[0]}.log').read_text()[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def shape(megabits: float | None, *, burst: str = "256kb") -> None:
    """Limit the rate of this namespace's link to ``megabits`` Mbit/s; None removes the limit.

    An idle link sends ``burst`` at once, in the units of ``tc``.

    Raises:
        RuntimeError: ``tc`` failed.
    """
    if megabits is None:
        subprocess.run(["tc", "qdisc", "del", "dev", LINK, "root"], check=False, capture_output=True)
        return
    rate = f"{megabits:g}mbit"
    _run("tc", "qdisc", "replace", "dev", LINK, "root", "tbf", "rate", rate, "burst", burst, "latency", _QUEUE)


def sent_bytes() -> int:
    """Return the bytes that this namespace has sent over its link, including headers."""
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text())


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(words)}` failed, it requires root: {done.stderr.strip()}")
