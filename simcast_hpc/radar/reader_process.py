"""Run the readers of foreign files in a child process, whose death is an error of the file that it read.

One process serves all files; it starts at the first file and ends with its parent. Environment variables set its
limits: ``SIMCAST_READER_MEMORY_GIB`` (address space, 4) and ``SIMCAST_READER_SECONDS`` (per file, 60). The answer for
one file is limited to an eighth of the memory, because the parent holds it.
"""

import atexit
import contextlib
import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from simcast_hpc.config import ConfigError, DataError

from .frame_messages import PREFIX_BYTES, InvalidMessageError, choice_to_json, unpack, unpack_prefix, unpack_times
from .radar_frame import FieldChoice, QuantityError, RadarFrame

logger = logging.getLogger(__name__)
MEMORY_VARIABLE, SECONDS_VARIABLE = "SIMCAST_READER_MEMORY_GIB", "SIMCAST_READER_SECONDS"
_MEMORY_GIB, _SECONDS = 4.0, 60.0
_START_SECONDS = 300.0  # imports from a shared file system may be slow
_SHORT_SHARE, _SHORT_SECONDS = 1 / 6, 2.0  # of the limit, and at least, in a short attempt
_STOP_SECONDS = 2.0  # left to a reader after a request to stop
_POLL_SECONDS = 0.1
# A leak in a library must not accumulate.
_FILES_PER_PROCESS = 5000
_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
# Of the launcher of this process; a library that initializes MPI must not take the reader for a rank.
_MPI_PREFIXES = ("OMPI_", "PMI", "PRTE_", "MPI", "HYD", "I_MPI_", "MV2_", "SLURM_")
_COMMAND = (
    "import json, sys; number, parent, memory, path = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from simcast_hpc.radar.reader_worker import serve; serve(number, parent, memory)"
)
Stop = Callable[[], object]


class ReadingStopped(BaseException):
    """A request to stop ended the reading of a file, which may be valid; not an ``Exception``, which handlers catch."""


class _DiedError(Exception):
    """The reader process died or exceeded a limit; the message is a predicate with the reason."""

    def __init__(self, reason: str, *, is_final: bool = False):
        super().__init__(reason)
        self.is_final = is_final  # a new process would fail in the same way


def read_times(path: Path, choice: FieldChoice, *, stop: Stop | None = None, short: bool = False) -> list[datetime]:
    """Return the times of a file, read in the reader process; see :func:`read_frames`."""
    times = _request(path, {"task": "times", "choice": choice_to_json(choice)}, stop, short)
    try:
        return unpack_times(times)
    except InvalidMessageError as error:
        raise DataError(f"{path} cannot be read: the reader process returned {error}") from error


def read_frames(path: Path, choice: FieldChoice, *, stop: Stop | None = None, short: bool = False) -> list[RadarFrame]:
    """Return the frames of a file, read in the reader process.

    Args:
        path: the file.
        choice: field to read if the file contains several.
        stop: returns whether to stop; called several times per second.
        short: allow only a sixth of the time, at least 2 s; for a first attempt, so that a file that takes too long
            does not delay others.

    Raises:
        DataError: as the reader, or the reader process died or exceeded a limit.
        ConfigError: as the reader, or the process cannot be started.
        ReadingStopped: ``stop`` returned true.
    """
    frames = _request(path, {"task": "frames", "choice": choice_to_json(choice)}, stop, short)
    if not isinstance(frames, list) or not all(isinstance(one, RadarFrame) for one in frames):
        raise DataError(f"{path} cannot be read: the reader process returned no frames")
    return frames


class _Timer:
    """Time left to the process; a request to stop shortens it."""

    def __init__(self, seconds: float, stop: Stop | None):
        self._stop, self._is_stopped, self._end = stop, False, math.inf
        self.restart(seconds)

    def restart(self, seconds: float) -> None:
        """Allow ``seconds`` from now on, unless a request to stop has limited the time."""
        self._seconds = seconds
        if not self._is_stopped:
            self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise an error if no time is left.

        Raises:
            _DiedError: the time is over.
            ReadingStopped: it is over because of a request to stop.
        """
        if not self._is_stopped and self._stop is not None and self._stop():
            self._is_stopped = True
            self._end = min(self._end, time.monotonic() + _STOP_SECONDS)
        if time.monotonic() > self._end:
            if self._is_stopped:
                raise ReadingStopped("a request to stop ended the reading of a file")
            raise _DiedError(f"did not finish within {self._seconds:g} s ({SECONDS_VARIABLE})", is_final=True)


class _Process:
    """One reader process."""

    def __init__(self, memory_bytes: int):
        """Start the process and wait until it is ready.

        Raises:
            ConfigError: it does not start.
        """
        self.owner, self.memory_bytes, self.files = os.getpid(), memory_bytes, 0
        self._connection, own = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_MPI_PREFIXES)}
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment |= dict.fromkeys(threads, "1") | {"MALLOC_ARENA_MAX": "2"}
        arguments = json.dumps([own.fileno(), self.owner, memory_bytes, sys.path])
        # The child inherits the mask: signals for the process group are the parent's to handle.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, arguments],
                stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                pass_fds=[own.fileno()], env=environment,
            )  # fmt: skip
        finally:
            own.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            ready = self._receive(_Timer(_START_SECONDS, None))
        except _DiedError as error:
            self.close()
            raise ConfigError(f"the reader process does not start: it {error}") from error
        except BaseException:
            self.close()
            raise
        if ready != "ready":
            self.close()
            raise ConfigError("the reader process does not start: its first message is invalid")

    @property
    def max_answer_bytes(self) -> int:
        """Largest size of the frames of one file."""
        return self.memory_bytes // 8

    def ask(self, request: dict[str, Any], seconds: float, stop: Stop | None) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            _DiedError: the process died, or exceeded its time.
            ReadingStopped: ``stop`` returned true.
        """
        self._output.seek(0)
        self._output.truncate()
        self.files += 1
        # Imports of packages, for whose time the file is not responsible, end with the message "reading".
        timer = _Timer(_START_SECONDS + seconds, stop)
        line = json.dumps(request | {"seconds": seconds, "max_bytes": self.max_answer_bytes}) + "\n"
        try:
            self._connection.sendall(line.encode("ascii"))
        except OSError as error:
            raise _DiedError(self._cause_of_death()) from error
        answer = self._receive(timer)
        if answer == "reading":
            timer.restart(seconds)
            answer = self._receive(timer)
        if not isinstance(answer, dict):
            raise _DiedError("returned an invalid message")
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        if self.owner == os.getpid():
            self._child.kill()
            self._child.wait()
        self._output.close()

    def _receive(self, timer: "_Timer") -> Any:
        try:
            sizes = unpack_prefix(bytes(self._receive_bytes(PREFIX_BYTES, timer)), self.max_answer_bytes)
            header = self._receive_bytes(sizes.header, timer)
            return unpack(bytes(header), self._receive_bytes(sizes.arrays, timer))
        except InvalidMessageError as error:
            raise _DiedError(f"returned {error}") from error

    def _receive_bytes(self, count: int, timer: "_Timer") -> bytearray:
        received = bytearray(count)
        rest = memoryview(received)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while rest:
            timer.check()
            if poll.poll(1000 * _POLL_SECONDS):
                try:
                    size = self._connection.recv_into(rest)
                except OSError:
                    size = 0
                if not size:
                    raise _DiedError(self._cause_of_death())
                rest = rest[size:]
        return received

    def _cause_of_death(self) -> str:
        try:
            status = self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        lines: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 4000))
            lines = self._output.read().decode("ascii", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        printed = "".join(character for character in last if character.isprintable())[:200]
        if status == -signal.SIGXCPU:
            return f"used more CPU time than the limit {SECONDS_VARIABLE}"
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            return f"crashed with {name}" + (f" ({printed})" if printed else "")
        return f"exited with status {status}" + (f" ({printed})" if printed else "")


_lock = threading.RLock()
_process: _Process | None = None


def _request(path: Path, request: dict[str, Any], stop: Stop | None, short: bool) -> Any:
    memory, seconds = _limits()
    if short:
        seconds = min(seconds, max(_SHORT_SHARE * seconds, _SHORT_SECONDS))
    request |= {"path": str(path), "folder": os.getcwd(), "level": logging.getLogger("simcast_hpc").getEffectiveLevel()}
    with _lock:
        for is_last in (False, True):
            process = _running(memory)
            is_new = process.files == 0
            try:
                answer = process.ask(request, seconds, stop)
            except _DiedError as error:
                close()
                # Another file may have damaged the process, or the kernel ended it to free memory.
                if is_last or is_new or error.is_final:
                    raise DataError(f"{path} cannot be read: the reader process {error}; it may be damaged") from error
                continue
            except BaseException:
                close()  # the connection is between two messages
                raise
            _log(answer.get("records"))
            if "memory" in answer:
                close()
                if is_last or is_new:
                    raise DataError(
                        f"{path} cannot be read: it needs more than {memory / 2**30:g} GiB ({MEMORY_VARIABLE}); it may "
                        "be damaged"
                    )
                continue
            return _result(path, answer, process.max_answer_bytes)
    raise AssertionError("unreachable")


def _result(path: Path, answer: dict[str, Any], max_bytes: int) -> Any:
    if "too_large" in answer:
        raise DataError(
            f"{path} contains frames of {answer['too_large']} bytes; the limit is {max_bytes}, an eighth of "
            f"{MEMORY_VARIABLE}; raise it, or divide the file"
        )
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in (ConfigError, QuantityError)}
        raise kinds.get(str(answer["error"]), DataError)(str(answer.get("message")))
    return answer.get("result")


def _running(memory: int) -> _Process:
    global _process
    if _process is not None and (_process.memory_bytes != memory or _process.files >= _FILES_PER_PROCESS):
        close()
    if _process is None:
        _process = _Process(memory)
    return _process


def close() -> None:
    """End the reader process; the next file starts a new one."""
    global _process
    with _lock:
        if _process is not None:
            _process.close()
            _process = None


def _limits() -> tuple[int, float]:
    """Return the limits of memory in bytes and of time in seconds.

    Raises:
        ConfigError: a variable is not a positive number.
    """
    values = []
    for name, default in ((MEMORY_VARIABLE, _MEMORY_GIB), (SECONDS_VARIABLE, _SECONDS)):
        text = os.environ.get(name, "")
        try:
            value = float(text) if text else default
        except ValueError:
            value = math.nan
        if not 0 < value < 1e6:
            raise ConfigError(f"{name}={text!r} is invalid; it must be a positive number")
        values.append(value)
    return int(values[0] * 2**30), values[1]


def _log(records: Any) -> None:
    """Log what the process logged, as if its readers ran here."""
    for record in records if isinstance(records, list) else ():
        if [type(part) for part in record] == [str, int, str]:
            name, level, text = record
            logging.getLogger(name).log(level, "%s", text)


def _forget() -> None:
    """Leave the reader process of the parent to the parent, in a forked child."""
    global _lock, _process
    _lock = threading.RLock()
    if _process is not None:
        _process.close()
        _process = None


atexit.register(close)
os.register_at_fork(after_in_child=_forget)
