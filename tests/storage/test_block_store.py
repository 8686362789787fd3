"""Block stores: filled by many processes, read by window, complete or not, rejected if computed from something else."""

import json
import pickle
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.storage import block_queue, block_store
from simcast_hpc.storage.atomic_files import sweep
from simcast_hpc.storage.block_store import BLOCK, BlockStore
from simcast_hpc.storage.leases import Leases

WINDOWS = BLOCK + 5
IDENTITY = {"teacher": "aa", "source": "bb", "pseudo_dtype": "uint8", "windows": WINDOWS}


@pytest.fixture
def arrays() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (WINDOWS, 2, 4, 4), dtype=np.uint8)


def _store(directory, **changes) -> BlockStore:
    return BlockStore(directory, {**IDENTITY, **changes}, name="student.rollouts")


@pytest.fixture
def store(tmp_path, arrays) -> BlockStore:
    store = _store(tmp_path / "store")
    store.fill(lambda indices: arrays[indices.start : indices.stop], batch_size=3)
    return store


def test_windows_are_read_from_their_blocks(store, arrays):
    assert store.is_complete() and store.stored_blocks() == {0, 1}
    for index in (0, 1, BLOCK - 1, BLOCK, WINDOWS - 1):
        array = store.read(index)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, arrays[index])
        array[:] = 0  # a copy: the file must not change
        np.testing.assert_array_equal(store.read(index), arrays[index])


def test_a_store_can_be_sent_to_a_worker_process(store, arrays):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(BLOCK + 1), arrays[BLOCK + 1])


def test_nan_is_stored(tmp_path):
    arrays = np.full((3, 2), 0.5, np.float16)
    arrays[1, 0] = np.nan
    store = _store(tmp_path / "store", windows=3)
    store.fill(lambda indices: arrays[indices.start : indices.stop], batch_size=2)
    np.testing.assert_array_equal(store.read(1), arrays[1])


@pytest.mark.parametrize("key", list(IDENTITY))
def test_a_complete_store_of_another_identity_is_rejected_by_key_and_values(store, key):
    with pytest.raises(ConfigError, match=f"computed with {key}={IDENTITY[key]!r}, but this run has 7; choose another"):
        _store(store.directory, **{key: 7}).is_complete()


def test_a_damaged_block_is_named(store):
    store.path(1).write_bytes(store.path(1).read_bytes()[:50])
    store.read(0)
    with pytest.raises(DataError, match=r"block-000001\.npy is absent or damaged"):
        store.read(BLOCK)


def test_an_interrupted_fill_is_continued_and_a_complete_store_is_kept(tmp_path, arrays):
    store, computed = _store(tmp_path / "store"), []

    def compute(indices: range) -> np.ndarray:
        if len(computed) == BLOCK:
            raise KeyboardInterrupt
        computed.extend(indices)
        return arrays[indices.start : indices.stop]

    assert not store.is_complete()
    with pytest.raises(KeyboardInterrupt):
        store.fill(compute, batch_size=8)
    assert not store.is_complete() and store.stored_blocks() == {0} and not list(store.directory.glob("*.lease"))
    computed.clear()
    for _ in range(2):
        store.fill(compute, batch_size=8)
        assert computed == list(range(BLOCK, WINDOWS)) and store.is_complete()


def test_processes_divide_the_blocks_and_compute_each_window_once(tmp_path, monkeypatch):
    monkeypatch.setattr(block_store, "BLOCK", 4)
    arrays, computed = np.arange(50)[:, None], []

    def compute(indices: range) -> np.ndarray:
        computed.extend(indices)
        return arrays[indices.start : indices.stop]

    def fill(rank: int) -> None:
        _store(tmp_path / "store", windows=50).fill(compute, batch_size=3, rank=rank, ranks=4, lease_seconds=20.0)

    threads = [threading.Thread(target=fill, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = _store(tmp_path / "store", windows=50)
    assert store.is_complete() and sorted(computed) == list(range(50))
    assert [int(store.read(index)[0]) for index in range(50)] == list(range(50))
    assert all(path.suffix in (".npy", ".json") for path in store.directory.iterdir())


def test_a_block_that_was_taken_over_is_left_to_the_other_process(tmp_path, arrays, monkeypatch):
    """A process that was stopped for long finds its block with another owner, and continues with the next."""
    renewals = iter([True, False])
    monkeypatch.setattr(block_store.Lease, "renew", lambda _: next(renewals, True))
    store, written = _store(tmp_path / "store"), []
    write = store.write
    monkeypatch.setattr(store, "write", lambda block, array: written.append(block) or write(block, array))
    store.fill(lambda indices: arrays[indices.start : indices.stop], batch_size=8)
    assert written == [1, 0], "block 0 was given up, and computed at the end"


def test_blocks_of_another_identity_are_replaced(store, arrays):
    other = _store(store.directory, source="cc")
    other.fill(lambda indices: 255 - arrays[indices.start : indices.stop], batch_size=9)
    np.testing.assert_array_equal(other.read(BLOCK), 255 - arrays[BLOCK])


def test_a_directory_of_other_files_is_not_cleared(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ConfigError, match=r"student\.rollouts=.* contains thesis\.tex, which is not part of a store"):
        _store(tmp_path).fill(lambda _: np.zeros(1), batch_size=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_others_fill_with_something_else_is_not_cleared(tmp_path):
    other = Leases(tmp_path, rank=7, stale_seconds=60.0)
    with other.acquire("block-000000"):
        with pytest.raises(ConfigError, match=r"is being filled with another identity by rank 7, process"):
            _store(tmp_path).fill(lambda _: np.zeros(1), batch_size=1)
        assert other.owners() == [other.owner], "our lease on the claim is released"


def test_a_directory_that_is_claimed_for_another_identity_meanwhile_gets_no_block(tmp_path, arrays):
    store = _store(tmp_path)

    def compute(indices: range) -> np.ndarray:
        (tmp_path / "manifest.json").write_text(json.dumps({"complete": False, "identity": {"windows": 1}}))
        return arrays[indices.start : indices.stop]

    with pytest.raises(ConfigError, match="was claimed for another identity meanwhile"):
        store.fill(compute, batch_size=8)
    assert store.stored_blocks() == set()


def test_a_failed_write_keeps_the_old_block(store, arrays, monkeypatch):
    def fail(*_arguments):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(OSError, match="no space"):
            store.write(1, arrays[:1])
    np.testing.assert_array_equal(store.read(BLOCK), arrays[BLOCK])
    assert store.stored_blocks() == {0, 1}


def test_a_slow_writer_whose_temporary_file_was_swept_leaves_the_stored_block(store, arrays, monkeypatch):
    """The slower of two processes that write one block finds it stored, and its own temporary file removed."""
    save = np.save
    monkeypatch.setattr(np, "save", lambda *arguments: save(*arguments) or sweep(store.directory))
    store.write(1, arrays[BLOCK:])
    assert sorted(path.name for path in store.directory.iterdir()) == [
        "block-000000.npy",
        "block-000001.npy",
        "manifest.json",
    ]
    with pytest.raises(FileNotFoundError):
        store.write(2, arrays[:1])


def _operations(call) -> int:
    """Return how many files and folders a call opens, creates or lists."""
    counted = [0]

    def count(event: str, _arguments: object) -> None:
        counted[0] += active[0] and event in ("open", "os.listdir", "os.scandir", "os.remove", "os.utime")

    active = [True]
    sys.addaudithook(count)  # cannot be removed
    call()
    active[0] = False
    return counted[0]


def test_500_waiting_processes_make_few_operations(tmp_path, monkeypatch):
    """In ten minutes with 500 leased blocks; the first release looked at each block every two seconds."""
    blocks, processes, minutes = 500, 500, 10
    leases, now = Leases(tmp_path, rank=0, stale_seconds=300.0), [0.0]
    for block in range(blocks):
        assert leases.take(f"block-{block:06d}") is not None
    monkeypatch.setattr(block_queue, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=_advance(now)))
    looked: list[int] = []
    total = 0
    for rank in range(0, processes, 50):
        now[0] = 0.0
        queue = block_queue.BlockQueue(tmp_path, blocks, rank=rank, ranks=processes, lease_seconds=300.0)
        wait = block_queue.Pause(lambda: None, longest=75.0)

        def idle(queue=queue, wait=wait) -> None:
            while now[0] < 60 * minutes:
                for block in queue.candidates() or []:
                    looked.append(block)
                    assert leases.take(f"block-{block:06d}") is None
                wait()

        total += _operations(idle)
    per_process_and_minute = total / 10 / minutes
    assert per_process_and_minute < 30, (
        f"{per_process_and_minute:.1f} opens and listings per process and minute; a look at each of the {blocks} "
        "leases every 2 s, as in the first release, is above 10,000"
    )
    assert len(looked) == 10 * 8 * 4, "eight looks of four blocks each: in all processes, every block 3 times per look"


def _advance(now: list[float]):
    def sleep(seconds: float) -> None:
        now[0] += seconds

    return sleep


def test_blocks_of_a_lost_process_are_found_at_the_start_and_after_a_quarter_of_the_lease(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(block_queue, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for block in (0, 1, 2):
        (tmp_path / f"block-{block:06d}.lease").write_text("{}")
    (tmp_path / "block-000003.npy").touch()
    (tmp_path / "block-000002.1.lease").touch()
    for stranger in ("block-.npy", "block-x.lease", "claim.lease", "notes.lease", "block-000004.npy.part"):
        (tmp_path / stranger).touch()
    queue = block_queue.BlockQueue(tmp_path, 4, rank=0, ranks=1, lease_seconds=40.0)
    assert queue.candidates() == [0, 1, 2]
    assert queue.candidates() == []
    now[0] = 10.0
    assert sorted(queue.candidates() or []) == [0, 1, 2]
    queue.tried(0, taken=True)
    assert queue.candidates(), "a lost process may have left more"
    (tmp_path / "block-000001.lease").unlink()
    assert queue.candidates() == [1], "a free block comes first"
    for block in (0, 1, 2):
        (tmp_path / f"block-{block:06d}.npy").touch()
    assert queue.candidates() is None
