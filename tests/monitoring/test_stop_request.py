"""Stop requests: signals, STOP files, and the errors that they end a run with."""

import os
import signal

import pytest

from simcast_hpc.monitoring import stop_request
from simcast_hpc.monitoring.stop_request import StopReason, StopRequest
from simcast_hpc.train.stop_errors import PausedError, StoppedError, raise_for, raise_on_signal, reject_stop_file


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_signal_requests_a_pause_and_the_previous_handler_is_restored(number, tmp_path):
    previous = signal.getsignal(number)
    request = StopRequest([tmp_path], checks_files=False)
    with pytest.raises(RuntimeError), request.handle_signals():
        assert request() == StopReason.NONE
        os.kill(os.getpid(), number)
        assert request() == StopReason.PAUSE
        assert request.cause == f"signal {number.name}"
        raise RuntimeError
    assert signal.getsignal(number) is previous


def test_stop_file_in_the_run_directory_or_its_parent_is_checked_every_two_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stop_request.time, "monotonic", lambda: now[0])
    run_dir = tmp_path / "teacher"
    run_dir.mkdir()
    request = StopRequest([run_dir, tmp_path], checks_files=True)
    assert request() == StopReason.NONE
    (tmp_path / "STOP").touch()
    now[0] += 1.9
    assert request() == StopReason.NONE, "a parallel file system is not queried at every step"
    now[0] += 0.1
    assert request() == StopReason.STOP
    assert str(tmp_path / "STOP") in request.cause
    assert StopRequest([run_dir, tmp_path], checks_files=False)() == StopReason.NONE, "only one rank checks"


def test_stop_file_outranks_a_later_signal(tmp_path):
    (tmp_path / "STOP").touch()
    request = StopRequest([tmp_path], checks_files=True)
    with request.handle_signals():
        assert request() == StopReason.STOP
        os.kill(os.getpid(), signal.SIGUSR2)
        assert request() == StopReason.STOP


def test_exit_statuses_and_messages():
    assert (PausedError.exit_status, StoppedError.exit_status) == (85, 75), "slurm/job.sh reads these"
    with pytest.raises(PausedError, match=r"^signal USR2: saved at step 3; start again to resume$"):
        raise_for(StopReason.PAUSE, cause="signal USR2", saved="saved at step 3")
    with pytest.raises(StoppedError, match=r"^a/STOP exists: saved at step 3; remove the file and start again"):
        raise_for(StopReason.STOP, cause="a/STOP exists", saved="saved at step 3")


def test_rejects_to_start_while_a_stop_file_exists(tmp_path):
    reject_stop_file([tmp_path / "absent", tmp_path])
    (tmp_path / "STOP").touch()
    with pytest.raises(StoppedError, match="STOP exists: nothing was started"):
        reject_stop_file([tmp_path / "absent", tmp_path])


def test_signal_leaves_short_work_at_once():
    with pytest.raises(PausedError, match="signal SIGTERM; start again to resume"), raise_on_signal():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the block went on")
