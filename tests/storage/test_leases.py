"""Leases: one process holds a piece of work, gives it back, and loses it when it has been silent too long."""

import os
import threading

import pytest

from simcast_hpc.storage.leases import Leases


def _leases(folder, rank: int = 0, stale_seconds: float = 60.0) -> Leases:
    return Leases(folder, rank=rank, stale_seconds=stale_seconds)


def _grow_old(folder, seconds: float) -> None:
    """Let every lease have been touched so long ago."""
    for path in folder.glob("*.lease"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def test_one_holds_it_until_it_is_given_back(tmp_path):
    one, other = _leases(tmp_path), _leases(tmp_path, 1)
    with one.held("block") as mine:
        assert mine is not None and one.holders() == [one.holder]
        with other.held("block") as theirs, other.held("another") as free:
            assert theirs is None and free is not None
        with one.held("block") as again:
            assert again is None, "not twice by the same process either"
    with other.held("block") as theirs:
        assert theirs is not None and other.holders() == [other.holder]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_gives_it_back(tmp_path):
    leases = _leases(tmp_path)
    with pytest.raises(ZeroDivisionError), leases.held("block"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_what_was_silent_is_taken_over_and_the_loser_is_told(tmp_path, caplog):
    lost, other = _leases(tmp_path, stale_seconds=60.0), _leases(tmp_path, 1)
    taken = lost._take("block")
    assert taken is not None
    _grow_old(tmp_path, 59.0)
    with other.held("block") as early:
        assert early is None
    _grow_old(tmp_path, 2.0)
    assert other.holders() == []
    with other.held("block") as theirs:
        assert theirs is not None
        assert f"{lost.holder} has been silent for 61 s: {other.holder} takes over block" in caplog.text
        taken._beaten -= 60.0
        assert not taken.beat(), "it is another's now"
        taken.release()
        assert other.holders() == [other.holder], "what is another's is not given back"


def test_a_beat_keeps_it_fresh(tmp_path):
    leases = _leases(tmp_path)
    lease = leases._take("block")
    assert lease is not None
    _grow_old(tmp_path, 50.0)
    assert lease.beat() and leases._now() - (tmp_path / "block.lease").stat().st_mtime > 49, "too soon to touch it"
    lease._beaten -= 16.0
    assert lease.beat() and leases._now() - (tmp_path / "block.lease").stat().st_mtime < 10


def test_of_many_that_see_it_stale_one_gets_it(tmp_path):
    _leases(tmp_path)._take("block")
    _grow_old(tmp_path, 100.0)
    everybody = [_leases(tmp_path, rank) for rank in range(16)]
    together, got = threading.Barrier(len(everybody)), []

    def take(leases: Leases) -> None:
        together.wait()
        got.append(leases._take("block"))

    threads = [threading.Thread(target=take, args=(leases,)) for leases in everybody]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in got if lease is not None]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["block.lease"]


def test_a_lease_cut_short_in_its_making_is_one_all_the_same(tmp_path):
    (tmp_path / "block.lease").touch()
    leases = _leases(tmp_path)
    with leases.held("block") as lease:
        assert lease is None and leases.holders() == ["a process unknown"]
