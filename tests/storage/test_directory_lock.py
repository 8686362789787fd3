"""Locks on directories: a second owner is rejected by name, a dead one is replaced, a suspended one stops."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.storage import leases
from simcast_hpc.storage.directory_lock import LostLockError, hold_directory, is_lock_file
from simcast_hpc.storage.process_identity import identity, is_dead

_HOLD = """
import sys, time
from pathlib import Path
from simcast_hpc.storage.directory_lock import hold_directory
with hold_directory(Path(sys.argv[1]), "training", lease_seconds=float(sys.argv[2])):
    print("locked", flush=True)
    time.sleep(60)
"""


def _start(directory: Path, *, seconds: float = 60.0, **environment: str) -> subprocess.Popen:
    """Start a process that holds the lock, and wait until it does."""
    line = [sys.executable, "-c", _HOLD, str(directory), str(seconds)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, env={**os.environ, **environment})
    assert process.stdout is not None and process.stdout.readline() == b"locked\n"
    return process


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def _move_to_another_machine(directory: Path, *, seconds_ago: float = 0.0) -> None:
    """Let the owner of the lock appear to run on another machine."""
    path = directory / ".simcast.lease"
    touched = path.stat().st_mtime - seconds_ago
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"machine": "another", "host": "node7"}), encoding="utf-8")
    os.utime(path, (touched, touched))


def test_a_second_process_is_rejected_at_once_and_told_who_the_owner_is(tmp_path):
    owner = _start(tmp_path, SLURM_JOB_ID="4242", SLURM_CLUSTER_NAME="alps")
    try:
        began = time.monotonic()
        with pytest.raises(ConfigError) as raised, hold_directory(tmp_path, "training"):
            pytest.fail("two owners")
        assert time.monotonic() - began < 2
    finally:
        _kill(owner)
    expected = (
        rf"run_dir={re.escape(str(tmp_path))} is locked by training: rank 0, process {owner.pid} of user \S+ on host "
        rf"{re.escape(socket.gethostname())}, Slurm job 4242, last heartbeat \d s ago; wait until it ends, stop it, or "
        r"choose another run_dir \(the lock of a lost process expires after 60 s\)"
    )
    assert re.fullmatch(expected, str(raised.value)), raised.value


def test_a_killed_owner_on_this_machine_is_replaced_at_once(tmp_path, caplog):
    owner = _start(tmp_path)
    _kill(owner)
    began = time.monotonic()
    with hold_directory(tmp_path, "training") as lock:
        lock.check()
        assert time.monotonic() - began < 2, "no wait for the expiry"
        assert f"process {owner.pid} of user" in caplog.text and "takes over" in caplog.text
    assert list(tmp_path.iterdir()) == [], "the files of both owners are removed"


@pytest.mark.parametrize("ending", ["exception", "terminate"])
def test_the_lock_is_released(tmp_path, ending):
    if ending == "exception":
        with pytest.raises(ZeroDivisionError), hold_directory(tmp_path, "training"):
            assert is_lock_file(*tmp_path.iterdir())
            _ = 1 / 0
    else:
        owner = _start(tmp_path)
        owner.send_signal(signal.SIGTERM)
        owner.communicate()
        assert owner.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_lost_owner_on_another_machine_is_replaced_when_its_lease_expires(tmp_path):
    _kill(_start(tmp_path))
    _move_to_another_machine(tmp_path)
    began = time.monotonic()
    with hold_directory(tmp_path, "training", lease_seconds=1.5):
        assert time.monotonic() - began >= 1.3


def test_a_living_owner_on_another_machine_is_recognized_by_its_heartbeat(tmp_path):
    _kill(_start(tmp_path))
    _move_to_another_machine(tmp_path)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.2):
            os.utime(tmp_path / ".simcast.lease")

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.raises(ConfigError, match=r"on host node7, last heartbeat 0 s ago"),
            hold_directory(tmp_path, "training", lease_seconds=2.0),
        ):
            pytest.fail("two owners")
    finally:
        ended.set()
        thread.join()


def test_a_requeued_slurm_job_replaces_its_earlier_start_on_another_node(tmp_path, monkeypatch):
    _kill(_start(tmp_path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1"))
    _move_to_another_machine(tmp_path)
    record = json.loads((tmp_path / ".simcast.lease").read_text(encoding="utf-8"))
    for job, restarts, dead in (("7", "1", False), ("8", "2", False), ("7", "2", True)):
        environ = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": restarts}
        assert is_dead(record, environ) is dead, (job, restarts)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with hold_directory(tmp_path, "training"):
        pass


def test_another_process_with_the_number_of_a_dead_one_does_not_hold_its_lock():
    own = identity({})
    assert not is_dead(own) and is_dead({**own, "started": own["started"] - 1})
    assert not is_dead({**own, "machine": "another", "started": 0}), "unknown here"


def test_a_suspended_owner_stops_instead_of_writing_on(tmp_path):
    with hold_directory(tmp_path, "training", lease_seconds=0.6) as first:
        first._ended.set()  # as if the process, with its thread, were suspended
        assert first._lease is not None
        time.sleep(0.7)
        with hold_directory(tmp_path, "training", lease_seconds=0.6) as second:
            with pytest.raises(LostLockError, match=r"the lock on .* was lost: .* this process stops"):
                first._ended.clear()
                first.check()
            second.check()
        assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_keeps_a_lock_without_calls_of_check(tmp_path):
    with hold_directory(tmp_path, "training", lease_seconds=0.6):
        time.sleep(1.0)
        with (
            pytest.raises(ConfigError, match="is locked by training"),
            hold_directory(tmp_path, "t", lease_seconds=0.6),
        ):
            pytest.fail("two owners")


def test_a_removed_lock_file_stops_its_owner(tmp_path):
    with hold_directory(tmp_path, "training", lease_seconds=0.3) as lock:
        (tmp_path / ".simcast.lease").unlink()
        time.sleep(0.2)
        with pytest.raises(LostLockError):
            lock.check()


class _ThreadRanks(Ranks):
    """Two ranks that are threads of this process."""

    size = 2

    def __init__(self, rank: int, things: list, barrier: threading.Barrier):
        self.rank, self._things, self._barrier = rank, things, barrier

    def gather(self, thing):
        self._things[self.rank] = thing
        self._barrier.wait(timeout=10)
        things = list(self._things)
        self._barrier.wait(timeout=10)
        return things


def test_all_ranks_learn_of_a_rejection(tmp_path):
    things, barrier, messages = [None, None], threading.Barrier(2), []

    def enter(rank: int) -> None:
        ranks = _ThreadRanks(rank, things, barrier)
        with pytest.raises(ConfigError) as raised, hold_directory(tmp_path, "training", ranks=ranks):
            pytest.fail("two owners")
        messages.append(str(raised.value))

    with hold_directory(tmp_path, "a pipeline"):
        threads = [threading.Thread(target=enter, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(messages) == 2 and messages[0] == messages[1]
    assert "is locked by a pipeline: rank 0, process" in messages[0]


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_a_full_or_read_only_disk_is_an_error_that_leaves_no_lock(tmp_path, monkeypatch, code, reason):
    class Full:
        def __init__(self, descriptor: int, *_args, **_options):
            os.close(descriptor)

        def __enter__(self):
            raise OSError(code, os.strerror(code))

        def __exit__(self, *_args):
            return None

    monkeypatch.setattr(leases.os, "fdopen", Full)
    message = rf"--out=.*/new cannot be written: {reason}"
    with pytest.raises(ConfigError, match=message), hold_directory(tmp_path / "new", "training", field="--out"):
        pytest.fail("locked")
    assert list(tmp_path.iterdir()) == []


def test_independent_outputs_of_one_directory_have_their_own_locks(tmp_path):
    names = ["test", "test.1", "a/b", ""]
    for name in names:
        for other in names:
            if other != name:
                with hold_directory(tmp_path, "x", name=name), hold_directory(tmp_path, "x", name=other):
                    pass
    second = hold_directory(tmp_path, "x", name="test")
    with hold_directory(tmp_path, "x", name="test"), pytest.raises(ConfigError), second:
        pytest.fail("two owners")
