"""Start a command as one process or as several ranks on this machine, and forward signals to it.

``torchrun`` is not suitable: USR2 kills it, and it replaces every exit status of a rank by 1, so the status that asks
for a restart would be lost.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from .ports import LISTENER_FD, listen_outside_ephemeral

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0
FORWARDED_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


def run_ranks(command: Sequence[str], *, ranks: int, environment: Mapping[str, str]) -> int:
    """Run a command on ``ranks`` processes of this machine and return its exit status.

    USR2 and TERM are forwarded to every rank. If a rank fails, the others are killed after 30 s: blocked in a
    collective with a lost rank, they handle no signal.

    Args:
        command: the arguments of the command line, the same for every rank.
        ranks: number of processes; a single one gets no launcher variables.
        environment: of the processes; rank and world size are added to it.

    Returns:
        The exit status of the rank that failed first, 128 + n if signal n ended it; 0 if none failed.
    """
    variables: list[dict[str, str]] = [{}]
    listener = None
    if ranks > 1:
        # Rank 0 inherits the socket, so that no other process can take the port before it listens.
        listener = listen_outside_ephemeral("127.0.0.1")
        port = str(listener.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
        shared["LOCAL_WORLD_SIZE"] = str(ranks)
        variables = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        variables[0][LISTENER_FD] = str(listener.fileno())
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in FORWARDED_SIGNALS}
    try:
        for rank, own in enumerate(variables):
            inherited = (listener.fileno(),) if listener is not None and rank == 0 else ()
            processes.append(subprocess.Popen(list(command), env={**environment, **own}, pass_fds=inherited))
        if listener is not None:
            listener.close()  # otherwise the others would wait if rank 0 ends
        return _wait(processes)
    finally:
        if listener is not None:
            listener.close()
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or for 30 s after the first failure; return the status of the first failure."""
    status, deadline = 0, float("inf")
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        failed = [process.returncode for process in processes if process.returncode]
        if failed and not status:
            status, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
        time.sleep(_POLL_SECONDS)
    status = status or next((process.returncode for process in processes if process.returncode), 0)
    return status if status >= 0 else 128 - status


def child_environment() -> dict[str, str]:
    """Return the environment for child processes."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if "OMP_WAIT_POLICY" not in environment:
        # By default a waiting OpenMP thread spins for milliseconds, which makes steps several times slower as soon as
        # anything else runs. A short spin is as fast on an idle machine; none at all is slower.
        environment.setdefault("GOMP_SPINCOUNT", "20000")
    return environment


def report_to_torchrun(message: str, environ: Mapping[str, str]) -> None:
    """Write the error of this rank to the file that torchrun reads, so that it ends torchrun's report."""
    file = environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        with suppress(OSError):  # the message is on stderr already
            Path(file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
