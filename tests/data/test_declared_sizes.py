"""Small archives, shards and forecasts that declare huge or odd arrays: our error, before memory is allocated."""

import resource
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.inspection import inspect
from simcast_hpc.data.prepare import open_raw
from simcast_hpc.data.shards.shard_reader import ShardSource
from simcast_hpc.evaluation.entries import file_entry
from tests.archives import FILE, make_archive, open_archive, random_codes
from tests.data.shards import prepared
from tests.data.test_shard_contents import changed

LONG = 2**40


@pytest.fixture(autouse=True)
def memory_limit():
    """Limit the address space to 4 GiB more than now, so that a fault of ours ends in a MemoryError."""
    former = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 30), former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, former)


def replace(name: str, *shape: int, dtype: object = "u1", chunks: tuple[int, ...] | None = None) -> Callable:
    """Return a change of a file: a dataset that is declared, but not stored."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, shape, dtype, chunks=chunks)

    return change


def repeat_text(name: str) -> Callable:
    """Return a change of a file: 131,072 references to one stored text of 1 MB, which HDF5 expands to 128 GiB."""

    def change(file: h5py.File) -> list[tuple[int, bytes]]:
        if name in file:
            del file[name]
        one = file.create_dataset("one", data=np.array(["x" * 2**20], object), dtype=h5py.string_dtype())
        many = file.create_dataset(name, data=np.array([""] * 2**17, object), dtype=h5py.string_dtype())
        file.flush()
        with Path(file.filename).open("rb") as raw:
            raw.seek(one.id.get_offset())
            return [(many.id.get_offset(), raw.read(16) * 2**17)]

    return change


def patched(path: Path, change: Callable) -> Path:
    """Change a file with h5py, and then bytes at offsets that the change returns."""
    with h5py.File(path, "r+") as file:
        patches = change(file) or []
    with path.open("r+b") as raw:
        for offset, content in patches:
            raw.seek(offset)
            raw.write(content)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replace("id", LONG, dtype="S16", chunks=(64,)), r"/id declares 17592186044416 bytes"),
        (replace("id", LONG, dtype=h5py.string_dtype(), chunks=(64,)), r"/id declares \d+ bytes"),
        (replace("time", LONG, 5, dtype="f8", chunks=(64, 5)), r"/time declares \d+ bytes"),
        (replace("vil", 1, 2**20, 2**20, 5, chunks=(1, 64, 64, 5)), r"/vil declares 5497558138880 bytes"),
        (replace("vil", 2**40, 2**30, chunks=(1, 64)), r"/vil declares"),
        (repeat_text("id"), r"/id has a text of 1048576 bytes"),
        (replace("id", 3, 2, dtype="S4"), r"/id is \|S4 \(3, 2\); it must be texts"),
        (replace("id", 7, dtype="S4"), "it has 7 ids for 1 events"),
        (replace("id", 1, dtype="f4"), "/id is float32"),
        (replace("time", 1, 5, dtype="S4"), r"/time is \|S4; it must be numbers"),
        (replace("time", 1, 5, dtype=[("a", "f8")]), r"/time is .*it must be numbers"),
        (lambda file: file.__setitem__("id", h5py.Empty("S4")), "/id is"),
        (lambda file: file["vil"].attrs.__setitem__("units", ["kg/m2"] * 9), r"units='an array of shape \(9,\)'"),
    ],
)
def test_archives(tmp_path, change, says):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    path = patched(root / "data" / FILE, change)
    assert path.stat().st_size < 8 << 20
    with pytest.raises(DataError, match=says):
        open_archive(root)
    with pytest.raises(DataError, match=says):
        open_raw(read_spec("synthetic"), root)
    with pytest.raises(DataError, match=says):
        inspect(read_spec("synthetic"), root)


def test_types_that_numpy_does_not_have_are_a_problem_of_the_file(tmp_path):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    with h5py.File(root / "data" / FILE, "r+") as file:
        h5py.h5d.create(file.id, b"id", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((1,)))
    with pytest.raises(DataError, match="No NumPy equivalent"):
        open_archive(root)


@pytest.mark.parametrize("ids", [np.array([b"E000"]), np.array(["E000"], object)], ids=["fixed", "variable"])
def test_ids_times_and_units_of_other_valid_types_are_read(tmp_path, ids):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    with h5py.File(root / "data" / FILE, "r+") as file:
        file["id"], file["time"] = ids, np.array([[0, 300, 600, 900, 1200]], "u4")
        file["vil"].attrs["units"] = np.array([read_spec("synthetic").encoding.unit.encode()])
    assert len(open_archive(root)) == 1


@pytest.mark.parametrize("times", [np.array([[600, 300, 900, 1200, 1500]], "u4"), [[0, np.nan, 600, 900, 1200]]])
def test_times_that_do_not_ascend_are_rejected(tmp_path, times):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    with h5py.File(root / "data" / FILE, "r+") as file:
        file["time"] = times
    with pytest.raises(DataError, match="the times of event E000 are not ascending"):
        open_archive(root)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("declared")
    return prepared(make_archive(folder / "raw", random_codes(2, 5)), folder / "shards", events_per_shard=2)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("index.h5", replace("time", LONG, dtype="i8", chunks=(64,)), r"/time declares 8796093022208 bytes"),
        ("index.h5", replace("id", LONG, dtype="S16", chunks=(64,)), r"/id declares \d+ bytes"),
        ("index.h5", replace("more", LONG, 64, dtype="f8", chunks=(1, 64)), r"/more declares \d+ bytes"),
        ("index.h5", replace("id", 2, dtype=h5py.string_dtype()), "id is object; it must be numbers or texts of fixed"),
        ("index.h5", lambda file: file.__setitem__("more", h5py.Empty("f4")), "is damaged: Empty"),
        ("shard-00000.h5", replace("codes", 2, 2**20, 2**20, 5, chunks=(1, 5, 64, 5)), r"/codes declares \d+ bytes"),
        ("shard-00000.h5", replace("codes", LONG, chunks=(64,)), r"/codes declares \d+ bytes"),
    ],
)
def test_shards(shards, tmp_path, name, change, says):
    root = changed(shards, tmp_path / "copy", name, change)
    with pytest.raises(DataError, match=says):
        ShardSource(read_spec("synthetic"), root, split="train", frames=5).read(0)
    if name == "index.h5":
        with pytest.raises(DataError, match=says):
            inspect(read_spec("synthetic"), root)
    else:
        assert any("declares" in problem.message for problem in inspect(read_spec("synthetic"), root).problems)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replace("event", LONG, dtype="S16", chunks=(64,)), r"/event declares \d+ bytes"),
        (replace("start", LONG, dtype="i8", chunks=(64,)), r"/start declares \d+ bytes"),
        (repeat_text("event"), "/event has a text of 1048576 bytes"),
        (replace("start", 1, dtype=h5py.string_dtype()), "/start is object; it must be numbers"),
        (lambda file: file.__setitem__("unused", h5py.Empty("f4")), None),
    ],
)
def test_forecasts(tmp_path, change, says):
    with h5py.File(tmp_path / "forecasts.h5", "w") as file:
        file["event"], file["start"] = np.array(["E0"], object), [0]
        file["forecast"] = np.zeros((1, 4, 8, 8), np.uint8)
    path = patched(tmp_path / "forecasts.h5", change)
    if says is None:
        assert file_entry("x", path)
    else:
        with pytest.raises(DataError, match=says):
            file_entry("x", path)


def test_a_chunk_that_is_stored_in_more_bytes_than_it_has_is_rejected(tmp_path):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    with h5py.File(root / "data" / FILE, "r+") as file:
        del file["vil"]
        stored = file.create_dataset("vil", (1, 16, 16, 5), "u1", chunks=(1, 16, 16, 5), compression="gzip")
        stored.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(8 << 20)))  # 8 kB for a chunk of 1280 bytes
    with pytest.raises(DataError, match=r"/vil has a chunk of 81\d\d bytes, which can have at most 5536"):
        open_archive(root)


@pytest.mark.parametrize(
    "options", [{"compression": "gzip"}, hdf5plugin.LZ4(), hdf5plugin.Zstd(), {"fletcher32": True}]
)
def test_chunks_that_cannot_be_compressed_are_read(tmp_path, options):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    codes = np.random.default_rng(1).integers(0, 255, (1, 64, 64, 5), np.uint8)
    with h5py.File(root / "data" / FILE, "r+") as file:
        del file["vil"]
        file.create_dataset("vil", data=codes, chunks=(1, 1, 16, 5), **options)
    assert np.array_equal(open_archive(root).read(0), np.moveaxis(codes[0], -1, 0))
