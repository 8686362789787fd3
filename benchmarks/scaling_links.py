"""Network namespaces of one machine joined by a bridge with rate-limited links, to measure collectives.

Requires Linux, root and iproute2. Every namespace has one link ``wire`` with the address ``10.78.0.<n + 1>``; the
bridge has its own namespace, so that the machine's network is unchanged.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LINK = "wire"
_PREFIX = "simcast-scaling"
_BURST, _QUEUE = "256kb", "200ms"


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


def shape(megabits: float | None) -> None:
    """Limit the rate of this namespace's link to ``megabits`` Mbit/s; None removes the limit.

    Raises:
        RuntimeError: ``tc`` failed.
    """
    if megabits is None:
        subprocess.run(["tc", "qdisc", "del", "dev", LINK, "root"], check=False, capture_output=True)
        return
    rate = f"{megabits:g}mbit"
    _run("tc", "qdisc", "replace", "dev", LINK, "root", "tbf", "rate", rate, "burst", _BURST, "latency", _QUEUE)


def sent_bytes() -> int:
    """Return the bytes that this namespace has sent over its link, including headers."""
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text())


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(words)}` failed, it requires root: {done.stderr.strip()}")
