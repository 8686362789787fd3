"""NumPy archives of other people: read exactly, or an error of ours before memory is allocated."""

import io
import pickle
import random
import struct
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.evaluation.entries import ForecastFile
from simcast_hpc.report.example_window import ResultsError, read_example
from simcast_hpc.storage.npz_files import load_npz
from simcast_hpc.verification.sufficient_statistics import Statistics


def _header(descr: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _zip(path: Path, content: bytes, *, name: str = "forecast.npy", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(name, content)
    return path


def _pickled() -> bytes:
    return _header("|O", (1,)) + pickle.dumps(np.array([print], object))


def _overlapping(path: Path, names: tuple[bytes, bytes]) -> None:
    """Write two members that share the bytes of the second one, which the first one contains as it is stored."""

    def local(name: bytes, content: bytes, stored: bytes) -> tuple[bytes, bytes]:
        facts = struct.pack("<3I2H", zlib.crc32(content), len(stored), len(content), len(name), 0)
        return struct.pack("<4s5H", b"PK\3\4", 20, 0, 8, 0, 33) + facts + name, facts

    def block(content: bytes) -> bytes:  # of deflate, without compression
        return struct.pack("<BHH", 0, len(content), len(content) ^ 0xFFFF) + content

    inner = _header("|u1", (2**20,)) + bytes(2**20)
    packed = zlib.compress(inner, wbits=-15)
    second, second_facts = local(names[1], inner, packed)
    head = _header("|u1", (len(second) + len(inner),))
    quoted = block(head) + block(second)
    first, first_facts = local(names[0], head + second + inner, quoted + packed)
    content = first + quoted + packed
    table = b"".join(
        struct.pack("<4s6H", b"PK\1\2", 20, 20, 0, 8, 0, 33) + facts + struct.pack("<3H2I", 0, 0, 0, 0, offset) + name
        for facts, offset, name in (
            (first_facts, 0, names[0]), (second_facts, len(first + quoted) - len(second), names[1])
        )
    )  # fmt: skip
    path.write_bytes(content + table + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(table), len(content), 0))


def _repeated(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            file.writestr("forecast.npy", _header("|u1", (9,)) + bytes(9))


HOSTILE = {
    "declared size": lambda path: _zip(path, _header("|u1", (2**40,)) + bytes(9)),
    "many axes": lambda path: _zip(path, _header("<f8", (2**20, 2**20, 2**20)) + bytes(9)),
    "negative": lambda path: _zip(path, _header("|u1", (-1,))),
    "overlap": lambda path: _overlapping(path, (b"a.npy", b"b.npy")),
    "repeated": _repeated,
    "no item size": lambda path: _zip(path, _header("|V0", (2**60,))),
    "objects": lambda path: _zip(path, _pickled()),
    "header": lambda path: _zip(path, b"\x93NUMPY\x01\x00\x10\x00" + b"[" * 16),
    "text": lambda path: _zip(path, b"hello"),
    "no array": lambda path: _zip(path, b"hello", name="readme.txt"),
    "bzip2": lambda path: _zip(path, _header("|u1", (9,)) + bytes(9), compression=zipfile.ZIP_BZIP2),
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "absent": lambda path: None,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_an_error_that_names_the_file(tmp_path, case, capfd):
    path, start = tmp_path / "a.npz", time.process_time()
    HOSTILE[case](path)
    with pytest.raises(DataError, match=r"the forecasts .*a\.npz (cannot be read|is damaged or not an npz file): ."):
        load_npz(path, error=DataError, what="the forecasts")
    if path.is_file():
        with pytest.raises(DataError, match=r"a\.npz"):
            ForecastFile(path)
        with pytest.raises(ResultsError, match=r"a\.npz"):
            read_example(path)
        with pytest.raises(ValueError, match=r"a\.npz"):
            Statistics.load(path)
    assert time.process_time() - start < 2 and capfd.readouterr().out == ""


def test_a_bomb_is_an_error_before_it_expands(tmp_path):
    path = _zip(tmp_path / "a.npz", _header("|u1", (2**20,)) + bytes(2**20))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        size = file.infolist()[0].file_size
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (2**31).to_bytes(4, "little")))
    with pytest.raises(DataError, match="declares 2147483648 bytes, stored in"):
        load_npz(path, error=DataError, what="the file")


def test_members_that_share_bytes_are_rejected(tmp_path):
    _overlapping(tmp_path / "a.npz", (b"a.npy", b"b.npy"))
    with zipfile.ZipFile(tmp_path / "a.npz") as file:  # the standard library reads 2 MiB from 1 kB
        assert [len(file.read(name)) for name in ("a.npy", "b.npy")] == [128 + 35 + 128 + 2**20, 128 + 2**20]
    with pytest.raises(DataError, match=r"'a\.npy' overlaps another member"):
        load_npz(tmp_path / "a.npz", error=DataError, what="the file")


def test_arrays_of_every_dtype_and_layout_are_read_exactly(tmp_path):
    arrays = {
        "codes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "fortran": np.asfortranarray(np.eye(3)[:2]),
        "big": np.arange(3, dtype=">f4"),
        "text": np.array(["a", "bc"]), "empty": np.zeros((0, 5)), "one": np.array(3.5),
    }  # fmt: skip
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read = load_npz(tmp_path / "a.npz", error=DataError, what="the file")
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype


def test_mutated_archives_are_read_or_an_error(tmp_path):
    np.savez(tmp_path / "a.npz", forecast=np.zeros((1, 2, 3, 4), np.uint8), event=np.array(["S1"]), start=np.array([0]))
    valid, numbers, path = (tmp_path / "a.npz").read_bytes(), random.Random(1), tmp_path / "b.npz"
    failed = 0
    for _ in range(300):
        content = bytearray(valid)
        for _ in range(numbers.randint(1, 4)):
            content[numbers.randrange(len(content))] = numbers.randrange(256)
        path.write_bytes(content[: numbers.choice((None, numbers.randrange(len(content))))])
        try:
            ForecastFile(path)
        except DataError:
            failed += 1
    assert 100 < failed < 300
