"""Child processes of a benchmark run, each with a time limit of its own; one that hangs or crashes ends only itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measurements import ROOT

POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A Python module to run.

    Attributes:
        name: for messages and the summary.
        words: the module and its arguments.
        progress: a file that the process rewrites as it proceeds; see ``stall``.
        stall: seconds without a change of ``progress`` after which the process is stopped.
    """

    name: str
    words: tuple[str, ...]
    progress: Path | None = None
    stall: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a task ended: its exit status, None if it was stopped, and the reason in words (empty after status 0)."""

    task: Task
    status: int | None
    reason: str
    seconds: float


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen
    began: float
    seen: tuple[float, int] = (0.0, 0)
    changed: float = field(default_factory=time.perf_counter)

    def has_stalled(self) -> bool:
        """Return whether the progress file has not changed for too long."""
        if self.task.progress is not None:
            try:
                stat = self.task.progress.stat()
                now = (stat.st_mtime, stat.st_size)
            except OSError:
                now = (0.0, 0)
            if now != self.seen:
                self.seen, self.changed = now, time.perf_counter()
        return time.perf_counter() - self.changed > self.task.stall


def child_environment() -> dict[str, str]:
    """Return the environment of this process with the repository on PYTHONPATH and the default implementation."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SIMCAST_KERNELS")}
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def run_one(task: Task, seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a task for at most ``seconds``."""
    return run_all([task], seconds, workers=1, environment=environment)[0]


def run_all(
    tasks: Sequence[Task],
    seconds: float,
    *,
    workers: int,
    environment: Mapping[str, str] | None = None,
    ended: Callable[[Ended], object] = lambda end: None,
) -> list[Ended]:
    """Run tasks in their order, ``workers`` at a time, for at most ``seconds`` in total; return how each ended.

    Tasks that did not start in time are reported as stopped after 0 s. A stopped task is killed with all its children.
    """
    deadline, waiting = time.perf_counter() + seconds, list(tasks)
    running: list[_Running] = []
    results: list[Ended] = []

    def end(task: Task, status: int | None, reason: str, spent: float) -> None:
        result = Ended(task=task, status=status, reason=reason, seconds=round(spent, 1))
        results.append(result)
        ended(result)

    try:
        while waiting or running:
            now = time.perf_counter()
            while waiting and len(running) < workers and now < deadline:
                running.append(_start(waiting.pop(0), environment))
            if waiting and now >= deadline:
                for task in waiting:
                    end(task, None, f"not started within {seconds:.0f} s", 0.0)
                waiting.clear()
            for one in list(running):
                status, spent = one.process.poll(), now - one.began
                if status is not None:
                    end(one.task, status, "" if status == 0 else _status_in_words(status), spent)
                elif now >= deadline:
                    _kill(one.process)
                    end(one.task, None, f"stopped after {spent:.0f} s", spent)
                elif one.has_stalled():
                    _kill(one.process)
                    end(one.task, None, f"stopped after {one.task.stall:.0f} s without a result", spent)
                else:
                    continue
                running.remove(one)
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        for one in running:  # after an interrupt
            _kill(one.process)
    return results


def _start(task: Task, environment: Mapping[str, str] | None) -> _Running:
    process = subprocess.Popen(
        [sys.executable, "-m", *task.words],
        cwd=ROOT,
        env=dict(environment or child_environment()),
        start_new_session=True,  # so that its children can be killed with it
    )
    return _Running(task=task, process=process, began=time.perf_counter())


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()


def _status_in_words(status: int) -> str:
    return f"ended by signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
