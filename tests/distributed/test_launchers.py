"""Commands on several ranks of this machine: environment, exit status, and forwarded signals."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from simcast_hpc.distributed import launchers
from simcast_hpc.distributed.launchers import child_environment, run_ranks


def run(code: str, *, ranks: int) -> int:
    return run_ranks(
        [sys.executable, "-c", f"import os, sys, time\n{code}"], ranks=ranks, environment=child_environment()
    )


def test_single_rank_has_no_launcher_variables(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert run("sys.exit(7 if 'RANK' in os.environ else 0)", ranks=1) == 0


def test_ranks_have_their_numbers_and_one_port(tmp_path):
    names = "'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT'"
    code = f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(' '.join(os.environ[n] for n in [{names}]))"
    assert run(code, ranks=2) == 0
    first, second = ((tmp_path / str(rank)).read_text().split() for rank in range(2))
    assert first[:3] == ["0", "0", "2"] and second[:3] == ["1", "1", "2"] and first[3] == second[3]


def test_rank_0_inherits_the_socket_that_listens_at_the_port():
    code = """
from datetime import timedelta
from simcast_hpc.distributed.ranks import find_rank
from simcast_hpc.distributed import rendezvous
def bind(address, port):
    raise OSError(98, 'would be a second socket')
rendezvous._bind = bind
store = rendezvous.open_store(find_rank(os.environ), timeout=timedelta(seconds=60))
store.set(os.environ['RANK'], 'here')
store.wait(['0', '1'])"""
    assert run(code, ranks=2) == 0


def test_returns_the_status_of_the_first_failure_and_kills_the_others(monkeypatch):
    monkeypatch.setattr(launchers, "_GRACE_SECONDS", 0.1)
    start = time.monotonic()
    assert run("time.sleep(60) if os.environ['RANK'] == '0' else sys.exit(3)", ranks=2) == 3
    assert time.monotonic() - start < 30


def test_returns_128_plus_the_number_of_a_signal():
    assert run("os.kill(os.getpid(), 9)", ranks=1) == 137


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_forwards_signals_to_every_rank(number, tmp_path):
    code = f"""
import signal
signal.signal({number:d}, lambda *_: sys.exit(85))
open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').close()
time.sleep(60)"""
    sender = threading.Thread(target=_send_when_ready, args=(number, [tmp_path / "0", tmp_path / "1"]))
    sender.start()
    assert run(code, ranks=2) == 85
    sender.join()


def _send_when_ready(number: int, files: list[Path]) -> None:
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), number)
