"""Compressed chunks: those that expand beyond their size are an error, and all that filters write is read."""

import bz2
import struct
import time
import zlib
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.hdf5_files import OpenFiles
from simcast_hpc.data.hdf5_guard import check_hdf5
from simcast_hpc.data.inspection import inspect
from simcast_hpc.data.prepare import open_raw
from simcast_hpc.data.shards.shard_reader import ShardSource
from tests.archives import FILE, make_archive, open_archive, random_codes
from tests.data.shards import prepared
from tests.data.test_shard_contents import changed
from tests.memory_limits import limited_memory

SHAPE = (2, 48, 48, 25)
CHUNK = (1, 48, 48, 25)
FILTERS = {
    "gzip": {"compression": "gzip"}, "gzip shuffle": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"}, "szip": {"compression": "szip"}, "lz4": hdf5plugin.LZ4(), "zstd": hdf5plugin.Zstd(),
    "blosc": hdf5plugin.Blosc(), "bitshuffle": hdf5plugin.Bitshuffle(), "bzip2": hdf5plugin.BZip2(),
    "bitshuffle only": hdf5plugin.Bitshuffle(cname="none"), "none": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def memory_limit():
    with limited_memory():
        yield


def write(path: Path, filters: dict, stored: bytes, *, chunk: tuple[int, ...] = CHUNK) -> Path:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("vil", (2, *chunk[1:]), "u1", chunks=chunk, **filters)
        dataset[0] = 1
        dataset.id.write_direct_chunk((1, 0, 0, 0), stored)
    return path


def read(path: Path, row: int) -> np.ndarray:
    files = OpenFiles()
    dataset = files.get(path)["vil"]
    files.check_row(path, dataset, row)
    return dataset[row]


def deflated(size: int, *, prefix: bytes = b"") -> bytes:
    packer = zlib.compressobj(6)
    parts = [packer.compress(prefix)] + [packer.compress(bytes(1 << 22)) for _ in range(size >> 22)]
    return b"".join([*parts, packer.flush()])


def zstd(size: int) -> bytes:
    return bytes.fromhex("28b52ffde0") + struct.pack("<Q", size) + b"\x03\x00\x00\x00"


HEADERS = {
    "zstd": (hdf5plugin.Zstd(), zstd(3 << 30)),
    "zstd 4": (hdf5plugin.Zstd(), bytes.fromhex("28b52ffda0") + struct.pack("<I", 3 << 30) + b"\x03\x00\x00\x00"),
    "lz4": (hdf5plugin.LZ4(), struct.pack(">QI", 3 << 30, 1 << 20) + bytes(64)),
    "bitshuffle": (hdf5plugin.Bitshuffle(), struct.pack(">QI", 3 << 30, 1 << 13) + bytes(64)),
    "blosc": (hdf5plugin.Blosc(), b"\x02\x01\x01\x01" + struct.pack("<III", 0x7FFFFFEF, 0x7FFFFFEF, 80) + bytes(64)),
    "szip": ({"compression": "szip"}, struct.pack("<I", 3 << 30) + bytes(64)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_state_other_sizes_are_rejected(tmp_path, case):
    path = write(tmp_path / "a.h5", *HEADERS[case])
    assert (read(path, 0) == 1).all()
    with pytest.raises(DataError, match=r"/vil has a chunk that expands to (3221225472|2147483631) bytes"):
        read(path, 1)
    with h5py.File(path) as file, pytest.raises(DataError, match="has a chunk that expands"):
        check_hdf5(file, path)


def test_a_chunk_that_stores_more_than_its_size_is_rejected(tmp_path):
    path = write(tmp_path / "a.h5", FILTERS["gzip"], deflated(128 << 20))  # 57,600 bytes by its size
    with pytest.raises(DataError, match=r"/vil has a chunk of \d+ bytes, which can have at most 68896"):
        read(path, 0)


def test_a_large_chunk_of_gzip_or_bzip2_is_rejected(tmp_path):
    chunk = (1, 384, 384, 49)
    noise = np.random.default_rng(1).integers(0, 256, 2 << 20, np.uint8).tobytes()
    path = write(tmp_path / "a.h5", FILTERS["gzip"], deflated(32 << 20, prefix=noise), chunk=chunk)
    with pytest.raises(DataError, match="expands to 8132609 bytes or more; it can have at most 8132608"):
        read(path, 1)
    path = write(tmp_path / "b.h5", FILTERS["bzip2"], bz2.compress(bytes(32 << 20)))
    with pytest.raises(DataError, match="expands to 68897 bytes or more"):
        read(path, 1)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("chunk", [(1, 4, 4, 1), CHUNK, (2, 48, 24, 7)])
def test_incompressible_and_constant_chunks_of_every_filter_are_read(tmp_path, name, chunk):
    codes = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
    codes[1] = 7
    codes = codes[:, :8, :8, :3] if chunk[1] == 4 else codes
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("vil", data=codes, chunks=chunk, **FILTERS[name])
    for row in (0, 1):
        np.testing.assert_array_equal(read(tmp_path / "a.h5", row), codes[row])
    with h5py.File(tmp_path / "a.h5") as file:
        check_hdf5(file, tmp_path / "a.h5")


@pytest.mark.parametrize("libver", ["earliest", "v110"])
def test_one_large_chunk_among_many_is_found_fast(tmp_path, libver):
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        dataset = file.create_dataset("vil", (20_000, 2, 2, 2), "u1", chunks=(1, 2, 2, 2), compression="gzip")
        for row in range(20_000):
            dataset.id.write_direct_chunk((row, 0, 0, 0), bytes(20 if row != 11_111 else 20_000))
    start = time.process_time()
    with pytest.raises(DataError, match="has a chunk of 20000 bytes, which can have at most 4105"):
        OpenFiles().get(tmp_path / "a.h5")
    assert time.process_time() - start < 1


def test_filters_and_numbers_of_chunks_that_are_not_supported_are_rejected(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("vil", (2, 9, 9, 9), "u1", chunks=(1, 9, 9, 9), **hdf5plugin.Blosc2())
    with pytest.raises(DataError, match=r"/vil has the HDF5 filters \[32026\]"):
        OpenFiles().get(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("vil", (2, 2000, 2000, 2), "u1", chunks=(1, 2, 2, 1))
    with pytest.raises(DataError, match="is split into 2000000 chunks per read"):
        OpenFiles().get(tmp_path / "b.h5")


def test_archives_and_shards_are_checked_before_they_are_read(tmp_path):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    shards = prepared(make_archive(tmp_path / "raw", random_codes(2, 5)), tmp_path / "shards", events_per_shard=2)

    def change(name: str):
        def replace(file: h5py.File) -> None:
            shape, offset = file[name].shape, (0,) * file[name].ndim
            chunk = (1, *shape[1:]) if name == "vil" else file[name].chunks
            attributes = dict(file[name].attrs)
            del file[name]
            dataset = file.create_dataset(name, shape, "u1", chunks=chunk, **hdf5plugin.Zstd())
            dataset.attrs.update(attributes)
            dataset[:] = 1
            dataset.id.write_direct_chunk(offset, zstd(3 << 30))

        return replace

    with h5py.File(root / "data" / FILE, "r+") as file:
        change("vil")(file)
    for run in (lambda: open_archive(root).read(0), lambda: open_raw(read_spec("synthetic"), root).read(0)):
        with pytest.raises(DataError, match="expands to 3221225472 bytes"):
            run()
    copy = changed(shards, tmp_path / "copy", "shard-00000.h5", change("codes"))
    source = ShardSource(read_spec("synthetic"), copy, split="train", frames=5)
    with pytest.raises(DataError, match="expands to 3221225472 bytes"):
        for index in range(len(source)):
            source.read(index)
    assert any("expands to 3221225472" in problem.message for problem in inspect(read_spec("synthetic"), copy).problems)
