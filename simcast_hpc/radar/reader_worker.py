"""The reader process: reads foreign files within limits of memory and time, for :mod:`reader_process`.

A native library may crash, loop or allocate without bound on a damaged file. Here it ends only this process.
"""

import json
import logging
import os
import resource
import select
import socket
import threading
from pathlib import Path
from typing import Any

from simcast_hpc.config import SimcastError

from .frame_messages import choice_from_json, pack, pack_times
from .read_frame import frame_times_in_process, read_frames_in_process

_PARENT_CHECK_SECONDS = 5.0
_MAX_RECORDS, _MAX_TEXT = 100, 4000
_MAX_FILE_BYTES = 256 << 20  # temporary files of readers, and what libraries print


def serve(descriptor: int, parent: int, memory_bytes: int) -> None:
    """Answer the requests of the parent until it closes the connection.

    Args:
        descriptor: file descriptor of the connection.
        parent: process id of the parent.
        memory_bytes: limit of the address space.
    """
    connection = socket.socket(fileno=descriptor)
    threading.Thread(target=_end_with_parent, args=(connection, parent), daemon=True).start()
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    records = _Records()
    logging.getLogger().addHandler(records)
    logging.captureWarnings(True)
    send(connection, "ready")
    requests = connection.makefile("rb")
    while line := requests.readline():
        send(connection, _answer(connection, line, records))


def send(connection: socket.socket, content: Any) -> None:
    """Send a message."""
    for part in pack(content):
        connection.sendall(part)


def _answer(connection: socket.socket, line: bytes, records: "_Records") -> dict[str, Any]:
    request = json.loads(line)
    path = Path(request["path"])
    logging.getLogger().setLevel(request["level"])
    records.lines.clear()
    try:
        os.chdir(request["folder"])
        _limit_cpu(request["seconds"])

        def announce() -> None:
            send(connection, "reading")

        choice = choice_from_json(request["choice"])
        if request["task"] == "times":
            result: Any = pack_times(frame_times_in_process(path, choice, on_start=announce))
        else:
            result = read_frames_in_process(path, choice, on_start=announce)
            size = sum(frame.values.nbytes for frame in result)
            if size > request["max_bytes"]:
                return {"too_large": size, "records": records.lines}
    except SimcastError as error:
        return {"error": type(error).__name__, "message": str(error), "records": records.lines}
    except MemoryError:
        return {"memory": True, "records": records.lines}
    return {"result": result, "records": records.lines}


def _limit_cpu(seconds: float) -> None:
    """Let the kernel end this process after ``seconds`` more of CPU time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _end_with_parent(connection: socket.socket, parent: int) -> None:
    """End this process when the parent closes the connection or dies, also while a reader is busy."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    while not poll.poll(1000 * _PARENT_CHECK_SECONDS):
        if os.getppid() != parent:
            break
    os._exit(0)


class _Records(logging.Handler):
    """Collects log records for the parent as ``[logger, level, text]``."""

    def __init__(self):
        super().__init__()
        self.lines: list[list[Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) < _MAX_RECORDS:
            text = record.getMessage()[:_MAX_TEXT]
            if record.name == "py.warnings":  # the following lines are source code
                text = text.partition("\n")[0]
            self.lines.append([record.name, record.levelno, text])
