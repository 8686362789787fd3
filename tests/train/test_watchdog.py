"""The watchdog ends a hung rank with a bounded report, whatever store, file system or stderr do meanwhile."""

import os
import subprocess
import sys
import time

import pytest
import torch

from simcast_hpc.train.heartbeats import Heartbeats, RankState, heartbeat_interval, spread_ranks, summary_of
from simcast_hpc.train.watchdog import HUNG_STATUS

_HUNG = """
import os, sys, time, torch
from pathlib import Path
from simcast_hpc.train import watchdog
from simcast_hpc.train.heartbeats import Heartbeats
watchdog._REPORT_SECONDS, watchdog._SUMMARY_SECONDS, watchdog._LINGER_SECONDS = 3.0, 1.0, 1.0
folder = Path(sys.argv[1])
class Blocked:
    def __getattr__(self, name): time.sleep(60)
stores = {"none": None, "memory": torch.distributed.HashStore, "blocked": Blocked}
store = stores[sys.argv[2]]
beats = None if store is None else Heartbeats(store, rank=0, ranks=2)
if sys.argv[3:] == ["no-files"]:
    Path.open = lambda *_, **__: time.sleep(60)
ranks = 1 if beats is None else 2
with watchdog.Watchdog(folder, limit_minutes=0.5 / 60, rank=0, ranks=ranks, heartbeats=beats) as dog:
    dog(7, None)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("store", "more", "says"),
    [
        ("none", [], "after step 7; the stacks"),
        ("memory", [], "after step 7; 1 of 2 ranks run; no heartbeat from rank 1; the stacks"),
        ("memory", ["no-files"], "no heartbeat from rank 1"),
        ("blocked", [], "no heartbeats can be read: rank 0"),
    ],
)
def test_a_hung_rank_ends_in_time_whatever_else_hangs(tmp_path, store, more, says):
    since = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _HUNG, str(tmp_path), store, *more], capture_output=True, text=True, timeout=50,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == HUNG_STATUS and time.monotonic() - since < 40
    assert "no optimizer step for 0 s after step 7" in done.stderr and says in done.stderr
    assert "most recent call first" in done.stderr
    assert (tmp_path / "rank-00000.txt").is_file() == (not more)


def test_operations_per_rank_do_not_grow_with_the_ranks():
    """At a hang of 1,024 ranks two of them read all heartbeats; every other rank makes six operations."""
    store, counts = torch.distributed.HashStore(), [0] * 1024

    class Counted:
        def __init__(self, rank: int):
            self.rank = rank

        def __getattr__(self, name: str):
            counts[self.rank] += 1
            return getattr(store, name)

    ranks = [Heartbeats(lambda rank=rank: Counted(rank), rank=rank, ranks=1024) for rank in range(1024)]
    for one in ranks:
        one.record(5)
        one.write()
    readers = [one for one in ranks if one.suspect(5)]
    for one in ranks:
        if one is not ranks[700]:
            one.write(waits=True)
    summaries = {str(one.summarize(5)) for one in readers + [one for one in ranks if one not in readers]}
    assert len(readers) == 2 and len(summaries) == 1
    assert "1023 of 1024 ranks run; no heartbeat from rank 700 (" in summaries.pop()
    assert ranks[0].all_summarized(5, 1023) and max(counts) <= 12 and sorted(counts)[-3] <= 6


def test_a_rank_that_waits_elsewhere_is_named_and_writes_its_stacks():
    now = {rank: RankState(9, 4, f"n{rank // 8}", "all_reduce (c10d.py:1)") for rank in range(4096)}
    before = {rank: state._replace(beats=3) for rank, state in now.items()}
    now[3000] = now[3000]._replace(function="read (shard_reader.py:9)")
    now[5] = now[5]._replace(step=3)
    summary = summary_of(before, now, 4096)
    assert (
        "in read (shard_reader.py:9): rank 3000 (n375)" in summary.text
        and "behind at step 3 to 3: rank 5" in summary.text
    )
    assert summary.stacks[:2] == [5, 3000] and len(summary.stacks) == 8 and len(summary.text) < 2000


def test_a_report_is_bounded_if_most_ranks_are_lost():
    states = {rank: RankState(1, 4, f"node-with-a-long-name-{rank}") for rank in range(4096)}
    summary = summary_of(states, states | {1: states[1]._replace(beats=2)}, 4096)
    assert "and 4079 more" in summary.text and len(summary.text) < 2000
    assert summary.stacks == [1] and summary.alive == 1
    assert spread_ranks(3) == [0, 1, 2] and len(set(spread_ranks(4096))) == 8


def test_heartbeats_are_bounded_per_second():
    assert heartbeat_interval(1200, 8) == 5 and 4096 / heartbeat_interval(1200, 4096) <= 200
    assert heartbeat_interval(6, 4096) == 0.6, "ten within the limit"
