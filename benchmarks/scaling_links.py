"""Network namespaces of one machine joined by a bridge, whose links can be slowed: nodes to measure collectives on.

Linux, root and iproute2 are needed. Every namespace holds one link ``wire`` with the address ``10.78.0.<n + 1>``; the
bridge stands in a namespace of its own, so that nothing of the machine's own network is touched.
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
    """Make ``count`` namespaces for the block and remove them after it.

    Raises:
        RuntimeError: they are there already, or cannot be made.
    """
    if shutil.which("tc") is None or shutil.which("ip") is None:
        raise RuntimeError("ip and tc are not here: install iproute2")
    hub, names = f"{_PREFIX}-hub", [name(number) for number in range(count)]
    made: list[str] = []
    try:
        for one in (hub, *names):
            _run("ip", "netns", "add", one)
            made.append(one)
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
        for one in reversed(made):
            subprocess.run(["ip", "netns", "del", one], check=False)


def shape(megabits: float | None) -> None:
    """Slow what this namespace sends to so many megabits a second; None lets it free again.

    Raises:
        RuntimeError: ``tc`` refuses.
    """
    if megabits is None:
        subprocess.run(["tc", "qdisc", "del", "dev", LINK, "root"], check=False, capture_output=True)
        return
    rate = f"{megabits:g}mbit"
    _run("tc", "qdisc", "replace", "dev", LINK, "root", "tbf", "rate", rate, "burst", _BURST, "latency", _QUEUE)


def sent_bytes() -> int:
    """Return the bytes that this namespace has sent over its link, headers and all."""
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text())


def _run(*words: str) -> None:
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(f"`{' '.join(words)}` failed (are you root?): {told.stderr.strip()}")
