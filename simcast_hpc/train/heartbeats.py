"""Heartbeats of the ranks in the store of the process group, and the ranks that a hang is blamed on.

The store is served from rank 0's memory, so heartbeats cost no operation of the shared file system and work while it
hangs. A heartbeat is a counter, not a time: it is missing if it is the same at two readings, so the clocks of the nodes
need not agree. Only the first two ranks that suspect a hang read all heartbeats; the others read what they found.
"""

import json
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

STORE_SECONDS = 10.0  # how long a key is waited for
_READERS = 2
_MAX_NAMED = 16
_MAX_STACKS = 8
_MAX_PLACES = 4
_MIN_INTERVAL_SECONDS = 5.0
_HEARTBEATS_PER_LIMIT = 10
_MAX_PER_SECOND = 200  # heartbeats of all ranks together


class RankState(NamedTuple):
    """What a rank last wrote.

    Attributes:
        beats: number of its heartbeats.
        step: its last optimizer step.
        host: its node.
        function: the innermost function of its main thread while it waits for long; empty otherwise.
    """

    beats: int
    step: int
    host: str
    function: str = ""


class HangSummary(NamedTuple):
    """The state of all ranks in a hang, the same on every rank.

    Attributes:
        text: the ranks without a heartbeat, those that are behind, and the functions in which ranks wait; at most 16
            ranks of each.
        stacks: the ranks that write their stacks, at most 8: those that are behind or wait in another function than
            most ranks first.
        alive: number of ranks with a heartbeat.
    """

    text: str
    stacks: list[int]
    alive: int


class Heartbeats:
    """The heartbeats of all ranks; every method but :meth:`record` may block if rank 0 does not answer.

    Args:
        connect: returns a connection to the store of its own, so that a blocked operation of another thread does not
            block this one; called in the thread that writes heartbeats.
        rank: this rank.
        ranks: number of ranks.
    """

    def __init__(self, connect: Callable[[], Any], *, rank: int, ranks: int):
        self._connect, self._rank, self._ranks = connect, rank, ranks
        self._store: Any = None
        self._host, self._beats, self._step = socket.gethostname(), 0, 0
        self._before: dict[int, RankState] | None = None
        self._mutex = threading.Lock()

    def record(self, step: int) -> None:
        """Set the step of the next heartbeats. Cheap enough for every step."""
        self._step = step

    def write(self, *, waits: bool = False) -> None:
        """Write the heartbeat of this rank; with ``waits`` also the function in which its main thread is."""
        self._beats += 1
        state = RankState(self._beats, self._step, self._host, main_function() if waits else "")
        self._connected().set(f"heartbeat/{self._rank}", json.dumps(state))

    def suspect(self, step: int) -> bool:
        """Read all heartbeats for the first time if this rank is one of the first to suspect a hang after ``step``.

        Returns:
            Whether this rank is a reader.
        """
        if self._connected().add(f"suspect/{step}", 1) > _READERS:
            return False
        self._before = self._read()
        return True

    def summarize(self, step: int) -> HangSummary:
        """Return the summary of a hang after ``step``: of the first reader, the same on every rank.

        Raises:
            RuntimeError: rank 0 does not answer, or no reader has written a summary within the store's timeout.
        """
        store, key = self._connected(), f"hang/{step}"
        if self._before is not None and store.add(f"summarize/{step}", 1) == 1:
            store.set(key, json.dumps(summary_of(self._before, self._read(), self._ranks)))
        summary = HangSummary(*json.loads(store.get(key)))
        store.add(f"summarized/{step}", 1)
        return summary

    def all_summarized(self, step: int, alive: int) -> bool:
        """Return whether all ranks with a heartbeat have the summary, so that rank 0, which serves it, may exit."""
        return self._connected().add(f"summarized/{step}", 0) >= alive

    def _connected(self) -> Any:
        with self._mutex:
            if self._store is None:
                self._store = self._connect()
            return self._store

    def _read(self) -> dict[int, RankState]:
        store, keys = self._connected(), [f"heartbeat/{rank}" for rank in range(self._ranks)]
        # A key that does not exist would block: a rank that has written nothing.
        present = range(self._ranks) if store.check(keys) else [n for n, key in enumerate(keys) if store.check([key])]
        values = store.multi_get([keys[rank] for rank in present])
        return {rank: RankState(*json.loads(value)) for rank, value in zip(present, values, strict=True)}


def heartbeat_interval(limit_seconds: float, ranks: int) -> float:
    """Return the seconds between two heartbeats of a rank: 200 per second of all ranks, and ten within the limit."""
    return min(limit_seconds / _HEARTBEATS_PER_LIMIT, max(_MIN_INTERVAL_SECONDS, ranks / _MAX_PER_SECOND))


def summary_of(before: dict[int, RankState], now: dict[int, RankState], ranks: int) -> HangSummary:
    """Return the summary of two readings between which every rank that runs has written a heartbeat."""
    silent = [rank for rank in range(ranks) if rank not in now or before.get(rank) == now[rank]]
    alive = [rank for rank in range(ranks) if rank not in set(silent)]
    last = max((now[rank].step for rank in alive), default=0)
    behind = [rank for rank in alive if now[rank].step < last]

    def named(numbers: list[int]) -> str:
        shown = [f"{rank} ({now[rank].host})" if rank in now else str(rank) for rank in numbers[:_MAX_NAMED]]
        return ", ".join(shown) + (f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else "")

    parts = [f"{len(alive)} of {ranks} ranks run"]
    if silent:
        parts.append(f"no heartbeat from rank {named(silent)}")
    if behind:
        steps = f"{min(now[rank].step for rank in behind)} to {max(now[rank].step for rank in behind)}"
        parts.append(f"behind at step {steps}: rank {named(behind)}")
    waiting: dict[str, list[int]] = defaultdict(list)
    for rank in alive:
        waiting[now[rank].function].append(rank)
    functions = sorted(waiting, key=lambda function: len(waiting[function]))
    for function in functions[:_MAX_PLACES]:
        if function and len(waiting) > 1:
            parts.append(f"in {function}: rank {named(waiting[function])}")
    rest = [rank for function in functions for rank in waiting[function] if rank not in set(behind)]
    return HangSummary("; ".join(parts), [*behind, *rest][:_MAX_STACKS], len(alive))


def main_function() -> str:
    """Return the innermost Python function of the main thread, its file and line."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "" if frame is None else f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def spread_ranks(ranks: int) -> list[int]:
    """Return at most 8 ranks, spread over all nodes, that write their stacks if there is no summary."""
    count = min(ranks, _MAX_STACKS)
    return [number * ranks // count for number in range(count)]
