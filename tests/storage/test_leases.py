"""Leases: one owner at a time, released at the end, taken over by exactly one process when it is stale."""

import os
import random
import threading

import pytest

from simcast_hpc.storage import leases as leases_module
from simcast_hpc.storage.leases import Leases


def _leases(directory, rank: int = 0, stale_seconds: float = 60.0) -> Leases:
    return Leases(directory, rank=rank, stale_seconds=stale_seconds)


def _age(directory, seconds: float) -> None:
    """Move the last renewal of all leases into the past."""
    for path in directory.glob("*.lease"):
        past = path.stat().st_mtime - seconds
        os.utime(path, (past, past))


def _in_threads(count: int, target) -> None:
    """Run ``target(number)`` in threads that start at the same moment, and raise the first error."""
    barrier, errors = threading.Barrier(count), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            target(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_a_lease_has_one_owner_until_it_is_released(tmp_path):
    one, other = _leases(tmp_path), _leases(tmp_path, 1)
    with one.acquire("block") as first:
        assert first is not None and one.owners() == [one.owner]
        with other.acquire("block") as second, other.acquire("another") as free:
            assert second is None and free is not None
        with one.acquire("block") as again:
            assert again is None, "not twice by the same process either"
    with other.acquire("block") as second:
        assert second is not None and other.owners() == [other.owner]
    assert list(tmp_path.iterdir()) == []


def test_an_exception_releases_the_lease(tmp_path):
    leases = _leases(tmp_path)
    with pytest.raises(ZeroDivisionError), leases.acquire("block"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_stale_lease_is_taken_over_and_the_former_owner_notices(tmp_path, caplog):
    former, other = _leases(tmp_path, stale_seconds=60.0), _leases(tmp_path, 1)
    lease = former.take("block")
    assert lease is not None
    _age(tmp_path, 59.0)
    with other.acquire("block") as early:
        assert early is None
    _age(tmp_path, 2.0)
    assert other.owners() == []
    with other.acquire("block") as successor:
        assert successor is not None
        assert f"no heartbeat from {former.owner} for 61 s: {other.owner} takes over block" in caplog.text
        lease._renewed -= 60.0
        assert not lease.renew(), "it has another owner now"
        lease.release()
        assert other.owners() == [other.owner], "another's lease is not removed"
    with _leases(tmp_path, 2).acquire("block") as third:
        assert third is not None, "the stale lease can be taken over again after a release"


def test_renewal_keeps_a_lease_fresh(tmp_path):
    leases = _leases(tmp_path)
    lease = leases.take("block")
    assert lease is not None

    def age() -> float:
        return (leases_module._file_system_time(tmp_path) - (tmp_path / "block.lease").stat().st_mtime_ns) / 1e9

    _age(tmp_path, 50.0)
    assert lease.renew() and age() > 49, "a recent renewal is not repeated"
    lease._renewed -= 16.0
    assert lease.renew() and age() < 10


def test_a_lease_that_is_renewed_while_it_is_taken_over_keeps_its_owner(tmp_path, monkeypatch):
    owner, other = _leases(tmp_path), _leases(tmp_path, 1)
    lease = owner.take("block")
    assert lease is not None
    _age(tmp_path, 100.0)
    create = os.open

    def renew_before(path, *arguments):
        if str(path).endswith("block.1.lease"):
            os.utime(tmp_path / "block.lease")
        return create(path, *arguments)

    monkeypatch.setattr(os, "open", renew_before)
    assert other.take("block") is None and lease._is_ours()
    assert [path.name for path in tmp_path.iterdir()] == ["block.lease"]


def test_one_of_many_takes_over_a_stale_lease(tmp_path):
    for attempt in range(10):
        name = f"block-{attempt}"
        _leases(tmp_path).take(name)
        _age(tmp_path, 100.0)
        taken = []
        _in_threads(16, lambda rank, name=name, taken=taken: taken.append(_leases(tmp_path, rank).take(name)))
        assert len([lease for lease in taken if lease is not None]) == 1
        assert _leases(tmp_path).take(name) is None


def test_there_is_never_a_second_owner_while_owners_release_and_die(tmp_path):
    """Threads acquire one lease; half of the owners release it, half are lost and leave a stale one."""
    inside, owned = [], []

    def work(rank: int) -> None:
        dice = random.Random(rank)
        for _ in range(30):
            lease = _leases(tmp_path, rank).take("block")
            if lease is None:
                continue
            inside.append(rank)
            assert inside == [rank]
            inside.remove(rank)
            owned.append(rank)
            if dice.random() < 0.5:
                lease.release()
            else:
                os.utime(lease._path, (1.0, 1.0))

    _in_threads(8, work)
    assert len(owned) > 30


def test_an_empty_lease_counts(tmp_path):
    (tmp_path / "block.lease").touch()
    leases = _leases(tmp_path)
    with leases.acquire("block") as lease:
        assert lease is None and leases.owners() == ["an unknown process"]
