"""Micro-batches: content, and independence of workers, ranks and resuming."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.loader import MicroBatch, micro_batches, prefetch_to_device, warn_about_cores
from simcast_hpc.data.sample_order import sample_index
from simcast_hpc.data.shards.shard_reader import ShardSource
from tests.archives import FILE, make_archive, open_archive, random_codes
from tests.data.shards import prepared


class IndexExtension:
    """An extension whose pixel values encode the window index."""

    def read(self, index: int) -> np.ndarray:
        return np.full((2, 16, 16), index / 64, np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("loader"), random_codes(5, 11))


def _take(source, count: int, **options) -> list[MicroBatch]:
    layout: dict[str, Any] = {"seed": 2, "first_step": 0, "global_size": 6, "micro_size": 3, "rank": 0, "world_size": 1}
    return list(islice(micro_batches(source, **(layout | options)), count))


def _assert_equal(left: list[MicroBatch], right: list[MicroBatch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.positions == other.positions and one.indices == other.indices
        torch.testing.assert_close(one.windows, other.windows, rtol=0, atol=0)
        assert (one.extension is None) == (other.extension is None)
        if one.extension is not None:
            torch.testing.assert_close(one.extension, other.extension, rtol=0, atol=0)


def test_batch_contains_the_windows_of_its_positions(root):
    source = open_archive(root)
    for number, batch in enumerate(_take(source, 9)):
        assert batch.positions == list(range(3 * number, 3 * number + 3))
        assert batch.indices == [sample_index(position, seed=2, size=len(source)) for position in batch.positions]
        assert batch.windows.dtype == torch.uint8 and batch.windows.shape == (3, 5, 16, 16)
        assert batch.extension is None
        for codes, index in zip(batch.windows, batch.indices, strict=True):
            np.testing.assert_array_equal(codes.numpy(), source.read(index))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("extension", [None, IndexExtension()], ids=["plain", "extended"])
def test_workers_do_not_change_the_batches(root, workers, extension):
    source = open_archive(root)
    source.read(0)  # the workers are forked from a process that has the file open
    without_workers = _take(source, 8, extension=extension)
    _assert_equal(_take(source, 8, workers=workers, extension=extension), without_workers)
    _assert_equal(_take(source, 8, extension=extension), without_workers)


def test_extension_belongs_to_its_window(root):
    for batch in _take(open_archive(root), 4, extension=IndexExtension()):
        assert batch.extension is not None
        assert batch.extension.dtype == torch.float16 and batch.extension.shape == (3, 2, 16, 16)
        assert (batch.extension[:, 0, 0, 0] * 64).tolist() == batch.indices


@pytest.mark.parametrize(("world_size", "micro_size"), [(1, 6), (2, 3), (3, 1), (6, 1)])
def test_ranks_together_read_each_sample_of_a_step_once(root, world_size, micro_size):
    source = open_archive(root)
    micro_steps = 6 // (world_size * micro_size)
    seen: list[int] = []
    for rank in range(world_size):
        own = _take(source, micro_steps, first_step=4, micro_size=micro_size, rank=rank, world_size=world_size)
        seen += [index for batch in own for index in batch.indices]
    assert sorted(seen) == sorted(sample_index(24 + position, seed=2, size=len(source)) for position in range(6))


def test_resuming_continues_the_order(root):
    source = open_archive(root)
    _assert_equal(_take(source, 10)[6:], _take(source, 4, first_step=3))


def test_each_epoch_reads_each_window_once(root):
    source = open_archive(root)
    size = len(source)
    assert size % 3, "the epoch must end inside a micro-batch"
    indices = [index for batch in _take(source, size) for index in batch.indices]
    for epoch in range(3):
        assert sorted(indices[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_order_depends_only_on_the_seed(root):
    source = open_archive(root)
    one, other = _take(source, 6), _take(source, 6, seed=3)
    assert [batch.indices for batch in one] != [batch.indices for batch in other]
    torch.manual_seed(99)
    _assert_equal(_take(source, 6), one)


@pytest.mark.parametrize("workers", [0, 1])
def test_names_a_damaged_file_with_and_without_workers(tmp_path, workers):
    root = make_archive(tmp_path, random_codes(3, 11))
    source = open_archive(root)
    path = root / "data" / FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"storms\.h5: event E\d+ cannot be read"):
        _take(source, 1, workers=workers)


def test_shards_and_archive_give_the_same_batches(root, tmp_path):
    source = ShardSource(
        read_spec("synthetic"), prepared(root, tmp_path / "shards"), split="train", frames=5, window_stride=2
    )
    _assert_equal(_take(source, 8, workers=2), _take(open_archive(root), 8))
    _assert_equal(_take(source, 4, first_step=3, workers=1), _take(open_archive(root), 10)[6:])


def test_more_workers_than_cores_are_no_warning(root, monkeypatch, recwarn):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    batches = micro_batches(
        open_archive(root), seed=2, first_step=0, global_size=6, micro_size=3, rank=0, world_size=1, workers=2
    )
    next(batches)
    assert not [one for one in recwarn if "DataLoader" in str(one.message)]


def test_prefetch_on_a_cpu_changes_nothing(root):
    batches = micro_batches(open_archive(root), seed=2, first_step=0, global_size=6, micro_size=3, rank=0, world_size=1)
    _assert_equal(list(islice(prefetch_to_device(batches, torch.device("cpu")), 3)), _take(open_archive(root), 3))


@pytest.mark.gpu
def test_prefetch_on_a_gpu_keeps_content_and_order(root):
    batches = micro_batches(
        open_archive(root),
        seed=2,
        first_step=0,
        global_size=6,
        micro_size=3,
        rank=0,
        world_size=1,
        extension=IndexExtension(),
    )
    expected = _take(open_archive(root), 20, extension=IndexExtension())
    for copied, read in zip(prefetch_to_device(batches, torch.device("cuda")), expected, strict=False):
        assert copied.windows.is_cuda and torch.equal(copied.windows.cpu(), read.windows)
        assert copied.extension is not None and torch.equal(copied.extension.cpu(), read.extension)


def test_failing_program_does_not_wait_for_workers(root):
    """Workers ignore SIGTERM, which Python sends at exit, so the loader must kill them."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from simcast_hpc.data.loader import micro_batches\n"
        "from tests.archives import open_archive\n"
        "batches = micro_batches(open_archive(Path(sys.argv[1])), seed=0, first_step=0, global_size=4, micro_size=2,\n"
        "                        rank=0, world_size=1, workers=2)\n"
        "next(batches)\n"
        "raise SystemExit(3)\n"
    )
    repository = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(repository), str(repository / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)], env=os.environ | {"PYTHONPATH": path}, timeout=60, check=False
    )
    assert done.returncode == 3


def test_workers_above_the_cores_are_a_warning(caplog):
    for workers, cores in ((0, 1), (1, 2), (7, 8)):
        warn_about_cores(workers, cores=cores)
    assert not caplog.records
    warn_about_cores(4, cores=2)
    assert "data.workers=4" in caplog.text and "at most 1 workers, or request 5 cores" in caplog.text
