"""HDF5 files on a disk that is full at any point: an error, no crash, and the old file keeps its content."""

import os
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest

from simcast_hpc.storage.hdf5_target import Hdf5Target, atomic_hdf5, hdf5_target

# Other processes see a crash; the limit on file sizes has the effect of a full disk, and needs no root.
SCRIPT = """
import gc, resource, sys
from pathlib import Path
from tests.storage.test_hdf5_target import write, limited
path, size = Path(sys.argv[1]), int(sys.argv[2])
before = path.read_bytes()
for limit in range(0, size, max(1, size // 30)):
    with limited(limit):
        try:
            write(path)
            sys.exit(f"no error at {limit} bytes")
        except OSError as error:
            assert error.errno == 27, error
        gc.collect()
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
write(path)
"""


class limited:
    """Context in which files can have at most this many bytes."""

    def __init__(self, size: int):
        self._size, self._before = size, resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def write(target) -> None:
    """Write compressed chunks, attributes and a group, as the products and shards do, atomically."""
    values = np.random.default_rng(0).random((50, 20, 30)).astype(np.float32)
    with atomic_hdf5(target, libver="v110") as file:
        field = file.create_dataset("field", values.shape, "f4", chunks=(1, 20, 30), compression="gzip")
        for number, frame in enumerate(values):
            field[number] = frame
            field.attrs[f"frame {number}"] = "text" * 20
        file.create_group("group").create_dataset("numbers", data=np.arange(1000))


def test_a_disk_that_is_full_at_any_point_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "file.h5"
    write(path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(path.stat().st_size)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["field"][49], np.random.default_rng(0).random((50, 20, 30))[49].astype("f4"))


def test_content_equals_that_of_a_file_and_of_memory_after_a_failure(tmp_path):
    generator = np.random.default_rng(1)
    with limited(3000), Hdf5Target(tmp_path / "target") as target, open(tmp_path / "plain", "w+b"):
        expected = bytearray()
        for _ in range(200):
            begin, part = int(generator.integers(0, 6000)), generator.bytes(int(generator.integers(1, 300)))
            target.seek(begin)
            assert target.write(part) == len(part)
            expected[len(expected) :] = bytes(max(0, begin - len(expected)))
            expected[begin : begin + len(part)] = part
            if generator.random() < 0.1:
                size = int(generator.integers(0, 6500))
                assert target.truncate(size) == size
                expected[size:] = bytes(max(0, size - len(expected)))
        assert target.seek(0, os.SEEK_END) == len(expected)
        target.seek(0)
        assert target.read() == expected and target.failure is not None


def test_failure_is_raised_after_the_block_and_can_be_checked_earlier(tmp_path):
    with limited(100), pytest.raises(OSError, match="File too large"), hdf5_target(tmp_path / "a") as target:
        target.write(bytes(50))
        target.check()
        target.write(bytes(51))
        with pytest.raises(OSError, match="File too large"):
            target.check()
