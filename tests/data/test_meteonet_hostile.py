"""Hostile MeteoNet files: no code runs, work and memory are bounded, and each ends in an error of that file."""

import bz2
import io
import pickle
import pickletools
import random
import tarfile
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.prepare.meteonet_dates import PickleError, read_dates
from simcast_hpc.data.prepare.meteonet_events import MeteoNetEvents
from simcast_hpc.data.prepare.meteonet_file import MeteoNetFile, find_files
from simcast_hpc.data.raw_layouts import MeteoNetLayout
from simcast_hpc.distributed.ranks import SingleRank
from tests.shared_data import shared

NAME = "reflectivity_old_SE_2016_08.3.npz"
SE = (515, 784)
TIMES = [datetime(2016, 8, 21) + n * timedelta(minutes=5) for n in range(3)]


def _header(descr: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


DATES = _npy(np.array(TIMES))


def _zip(path: Path, compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def _file(path: Path) -> MeteoNetFile:
    return MeteoNetFile(path, None, path.name, path.stat().st_size)


@pytest.mark.parametrize("protocol", range(6))
def test_dates_of_every_pickle_protocol_are_read(protocol):
    content = pickle.dumps(np.array([*TIMES, datetime(1999, 12, 31, 23, 59, 58, 765432)]), protocol=protocol)
    assert read_dates(content, count=4) == [*TIMES, datetime(1999, 12, 31, 23, 59, 58, 765432)]


def test_dates_of_python_2_are_read():
    state = b"\x07\xe0\x08\x15\x00\x19\x00\x00\x00\x00"  # bytes and indices as a file of Python 2 has them
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\n"
        b"dtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89](cdatetime\ndatetime\n"
        b"U\x0a" + state + b"\x85Retb."
    )
    assert read_dates(content, count=1) == [datetime(2016, 8, 21, 0, 25)]


def test_dates_of_published_files_equal_those_of_numpy():
    path = shared("data/radar/native/meteonet_npz") / NAME
    with np.load(path, allow_pickle=True) as file:
        assert _file(path).read_dates() == list(file["dates"])


class _Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _array_of(*items: object) -> bytes:
    array = np.empty(len(items), object)
    array[:] = items
    return pickle.dumps(array)


HOSTILE_PICKLES = {
    "call": lambda: pickle.dumps(_Calls(print, "called")),
    "call in the array": lambda: _array_of(_Calls(print, "called"), *TIMES[1:]),
    "array of the file's memory": lambda: pickle.dumps(np.zeros(3)),
    "array in the array": lambda: _array_of(np.zeros(3), *TIMES[1:]),
    "dtype of an address": lambda: pickle.dumps(np.dtype([("a", "O")])),
    "text": lambda: _array_of("2016-08-21", *TIMES[1:]),
    "integers": lambda: _array_of(1, 2, 3),
    "time zone": lambda: _array_of(TIMES[0].replace(tzinfo=UTC), *TIMES[1:]),
    "no array": lambda: pickle.dumps(list(TIMES)),
    "two axes": lambda: pickle.dumps(np.array([TIMES])),
    "other number": lambda: pickle.dumps(np.array(TIMES[:2])),
    "memo of 2^31": lambda: b"\x80\x03Nr\xff\xff\xff\x7f.",
    "bytes of 2^62": lambda: b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x3f.",
    "no stop": lambda: pickle.dumps(np.array(TIMES))[:-1] + b"N",
    "empty": lambda: b"",
    "month 13": lambda: pickle.dumps(np.array(TIMES)).replace(b"\x07\xe0\x08\x15", b"\x07\xe0\x0d\x15"),
    "stack": lambda: b"\x87.",
    "memo": lambda: b"h\x05.",
    "mark": lambda: b"t.",
    "values below a mark": lambda: b"N(\x85.",
    "large": lambda: b"N0" * 2**20 + b".",
    "attribute of a name": lambda: b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.",
    "name of a name": lambda: b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "nested": lambda: b"\x80\x02" + b"N" + b"\x85" * 50_000 + b".",
}


@pytest.mark.parametrize("case", HOSTILE_PICKLES)
def test_a_pickle_that_is_no_array_of_dates_is_an_error(case, capfd):
    content = HOSTILE_PICKLES[case]()
    start = time.process_time()
    with pytest.raises(PickleError):
        read_dates(content, count=3)
    assert time.process_time() - start < 2 and capfd.readouterr().out == ""


def test_mutated_pickles_end_in_dates_or_an_error():
    valid, numbers = pickle.dumps(np.array(TIMES), protocol=2), random.Random(0)
    codes = [ord(operation.code) for operation in pickletools.opcodes]
    read = 0
    for _ in range(3000):
        content = bytearray(valid)
        for _ in range(numbers.randint(1, 3)):
            content[numbers.randrange(len(content))] = numbers.choice((numbers.randrange(256), numbers.choice(codes)))
        try:
            dates = read_dates(bytes(content), count=3)
        except PickleError:
            continue
        read += 1
        assert len(dates) == 3 and all(type(date) is datetime for date in dates)
    assert 0 < read < 2000


FRAME = np.full((1, *SE), 24, np.int16)
OTHER_TYPE = b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': 7, 'fortran_order': False, 'shape': (1,)}".ljust(70)
HOSTILE_FILES = {
    "2^40 empty frames": ({"data": _header("<i2", (2**40, 0, 0))}, "dtype", "at most 3200 frames"),
    "2^40 frames": ({"data": _header("<i2", (2**40, *SE))}, "dtype", "at most 3200 frames"),
    "wide": ({"data": _header("<i2", (1, 2**20, 2**20))}, "dtype", "has shape"),
    "negative": ({"data": _header("<i2", (-1, *SE))}, "dtype", "has shape"),
    "2^40 dates": ({"dates": _header("|O", (2**40,))}, "dtype", "at most 3200"),
    "dates with axes": ({"dates": _header("|O", (1, 3))}, "dtype", "MeteoNet has datetime objects"),
    "long pickle": ({"dates": _header("|O", (3,)) + b"N0" * 2**21}, "truncated", "larger than 1 MiB"),
    "other header": ({"data": b"\x93NUMPY\x01\x00\x10\x00" + b"[" * 16}, "truncated", "not an npz file"),
    "other type": ({"data": OTHER_TYPE}, "truncated", ""),
    "no magic": ({"data": b"GIF89a"}, "truncated", "not an npz file"),
    "few frames": ({"data": _header("<i2", (3, *SE)) + FRAME.tobytes()}, "truncated", "0 of 807520 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_FILES)
def test_hostile_files_are_problems_of_the_file(tmp_path, case):
    members, kind, message = HOSTILE_FILES[case]
    _zip(tmp_path / NAME, **({"dates": DATES, "data": _npy(FRAME.repeat(3, axis=0))} | members))  # pyright: ignore[reportArgumentType]
    events, start = MeteoNetEvents(read_spec("meteonet"), tmp_path), time.process_time()
    events.complete(SingleRank())
    assert time.process_time() - start < 2
    [problem] = events.problems
    assert (problem.kind, problem.file) == (kind, NAME) and message in problem.message


def test_other_compressions_are_rejected_before_they_expand(tmp_path):
    _zip(tmp_path / NAME, zipfile.ZIP_BZIP2, dates=DATES, data=_header("<i2", (3, *SE)) + bytes(2**20))
    for read in (_file(tmp_path / NAME).read_dates, lambda: list(_file(tmp_path / NAME).frames())):
        with pytest.raises(DataError, match="has another compression than deflate"):
            read()


def test_encrypted_members_are_errors(tmp_path):
    _zip(tmp_path / NAME, dates=DATES)
    content = bytearray((tmp_path / NAME).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(DataError, match="truncated or not an npz file"):
        _file(tmp_path / NAME).read_dates()


LAYOUT = MeteoNetLayout(kind="meteonet", product="reflectivity_old", region="SE", event_frames=3)


def _tar(path: Path, mode: str, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))


def _member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member


def test_tar_members_keep_only_their_name(tmp_path):
    _tar(tmp_path / "a.tar", "w", _member(f"../../{NAME}"), _member("/etc/passwd"), _member(NAME, 0, tarfile.SYMTYPE))
    [file] = find_files(tmp_path, LAYOUT)
    assert file.path == tmp_path / "a.tar" / NAME


def test_tar_files_that_declare_too_much_are_errors(tmp_path):
    header = _member(NAME, 2**30).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header)
    with pytest.raises(DataError, match="1073741824 bytes; at most 536870912 are read"):
        find_files(tmp_path, LAYOUT)
    header = _member("x").tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header * 20_001)
    with pytest.raises(DataError, match="more than 20000 files"):
        find_files(tmp_path, LAYOUT)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00" + bytes(60), bz2.compress(b"x" * 99), bytes(700) + b"x"])
def test_damaged_tar_files_are_errors(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError):
        find_files(tmp_path, LAYOUT)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_large_headers_of_tar_files_are_not_read(tmp_path, kind, mode):
    _tar(tmp_path / "a.tar", mode, _member("x", 2**20, kind), _member(NAME))
    with pytest.raises(DataError, match="a header of 1048576 bytes; at most 65536 are read"):
        find_files(tmp_path, LAYOUT)


def test_names_of_200_characters_in_tar_files_are_read(tmp_path):
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            tar.addfile(_member("d" * 200 + f"/{NAME}"))
        assert len(find_files(tmp_path, LAYOUT)) == 1


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_later_link_of_the_same_name_in_a_tar_file_is_not_followed(tmp_path, kind):
    _zip(tmp_path / "good.npz", dates=DATES)
    content = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "good.npz").unlink()
    link = _member(NAME, 0, kind)
    link.linkname = "big"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(_member("big", 1000), io.BytesIO(bytes(1000)))
        tar.addfile(_member(NAME, len(content)), io.BytesIO(content))
        tar.addfile(link)
    (file,) = find_files(tmp_path, LAYOUT)
    assert [date.replace(tzinfo=None) for date in file.read_dates()] == TIMES


def test_sparse_and_other_compressed_tar_files_are_errors(tmp_path):
    header = _member("big", 0, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    with pytest.raises(DataError, match="big is a sparse file"):
        find_files(tmp_path, LAYOUT)
    _tar(tmp_path / "a.tar", "w:xz", _member(NAME))
    with pytest.raises(DataError, match="not a tar file"):
        find_files(tmp_path, LAYOUT)
