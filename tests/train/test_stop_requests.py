"""What asks a run to leave: signals while it listens, a STOP file at most every two seconds, and what came before."""

import os
import signal

import pytest

from simcast_hpc.train import preemption as stop
from simcast_hpc.train.preemption import PausedError, StoppedError, StopReason, StopRequest, reject_to_start


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_asks_and_its_former_handler_comes_back(number, tmp_path):
    before = signal.getsignal(number)
    request = StopRequest([tmp_path], looks=False)
    with request.listening():
        assert request() == StopReason.NONE
        os.kill(os.getpid(), number)
        assert request() == StopReason.PAUSE
        assert request.why == f"signal {number.name}"
    assert signal.getsignal(number) is before


def test_the_handler_comes_back_after_a_failure(tmp_path):
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(RuntimeError), StopRequest([tmp_path], looks=False).listening():
        raise RuntimeError
    assert signal.getsignal(signal.SIGUSR2) is before


def test_a_file_in_the_run_folder_or_above_asks_and_is_looked_for_every_two_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    run_dir = tmp_path / "teacher"
    run_dir.mkdir()
    request = StopRequest([run_dir, tmp_path], looks=True)
    assert request() == StopReason.NONE
    (tmp_path / "STOP").touch()
    now[0] += 1.9
    assert request() == StopReason.NONE, "a parallel file system is not asked at every step"
    now[0] += 0.1
    assert request() == StopReason.STOP
    assert str(tmp_path / "STOP") in request.why
    assert StopRequest([run_dir, tmp_path], looks=False)() == StopReason.NONE, "one rank looks, and tells the others"


def test_a_stop_file_outlasts_a_later_signal(tmp_path):
    (tmp_path / "STOP").touch()
    request = StopRequest([tmp_path], looks=True)
    with request.listening():
        assert request() == StopReason.STOP
        os.kill(os.getpid(), signal.SIGUSR2)
        assert request() == StopReason.STOP


def test_their_statuses_are_what_the_batch_scripts_know():
    assert (PausedError.exit_status, StoppedError.exit_status) == (85, 75)


def test_a_run_does_not_begin_where_a_stop_file_stands(tmp_path):
    reject_to_start([tmp_path / "absent", tmp_path])
    (tmp_path / "STOP").touch()
    with pytest.raises(StoppedError, match="STOP is there: nothing done"):
        reject_to_start([tmp_path / "absent", tmp_path])
