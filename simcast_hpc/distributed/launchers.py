"""Starting a command as one process or as several ranks of this machine, and passing on what it is told.

``torchrun`` is not used for it: it dies of USR2, and every status of a rank becomes its own 1, so "saved, start me
again" would be lost.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0
PASSED_ON = (signal.SIGUSR2, signal.SIGTERM)


def run_ranks(command: Sequence[str], *, ranks: int, environment: Mapping[str, str], asked_before: bool = False) -> int:
    """Run a command to its end on ``ranks`` processes of this machine and return its status.

    USR2 and TERM are passed on to every rank; what the command makes of them is its own affair. Where a rank fails
    the others get half a minute to notice, and are killed then: waiting for a rank that is gone they would hear no
    signal.

    Args:
        command: the words of the command line, the same for every rank.
        ranks: 1 starts it without a launcher's variables.
        environment: of the ranks, to which their places are added.
        asked_before: TERM came already, and is passed on at once.

    Returns:
        The status of the rank that failed first, 128 + n where a signal ended it; 0 where none failed.
    """
    places: list[dict[str, str]] = [{}]
    if ranks > 1:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        places = [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        processes += [subprocess.Popen(list(command), env={**environment, **place}) for place in places]
        if asked_before:
            pass_on(signal.SIGTERM, None)
        return _wait(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all, or for half a minute after the first failure; return the first failure's status."""
    status, deadline = 0, float("inf")
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        failed = [process.returncode for process in processes if process.returncode]
        if failed and not status:
            status, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
        time.sleep(_POLL_SECONDS)
    status = status or next((process.returncode for process in processes if process.returncode), 0)
    return status if status >= 0 else 128 - status


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def child_environment() -> dict[str, str]:
    """Return this process's environment as its children should have it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if "OMP_WAIT_POLICY" not in environment:
        # By default a waiting CPU thread spins for milliseconds: steps get several times slower as soon as anything
        # else runs. A short spin is as fast on an idle machine, which none at all is not.
        environment.setdefault("GOMP_SPINCOUNT", "20000")
    return environment


def tell_torchrun(message: str, environ: Mapping[str, str]) -> None:
    """Leave what ended this rank where torchrun looks for it, so that it stands at the end of its long account."""
    file = environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        with suppress(OSError):  # the message itself stands on the terminal already
            Path(file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
