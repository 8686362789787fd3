"""Files of ``torch.save``: tensors as those of ``torch.load``, or an error in bounded time and memory."""

import io
import pickle
import random
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.inference.published_file import Match, open_file
from tests.memory_limits import limited_memory

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
DICTIONARY = b"\x80\x02}X\x01\x00\x00\x00a"


@pytest.fixture(autouse=True)
def memory_limit():
    with limited_memory():
        yield


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the only state dict, or of the one that a checkpoint calls so."""
    with open_file(path) as opened:
        first = next((one for one in opened.mappings if one.key == "state_dict"), None)
        if first is None:
            first = opened.mappings[0] if opened.mappings else opened.select(["a"]).mapping
        return opened.load(Match(first, "", len(first.tensors)))


def archive(pickled: bytes, *, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("archive/data.pkl", pickled)
        for name, content in {"data/0": bytes(16), **members}.items():
            file.writestr(f"archive/{name}", content)
    return stream.getvalue()


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, count: int = 4, key: str = "0") -> bytes:
    """Return the instructions of a tensor of float32 in storage ``key`` with ``count`` elements."""
    text = struct.pack("<I", len(key)) + key.encode()
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX" + text + b"X\x03\x00\x00\x00cpu" + integer(count)
    return TENSOR + b"(" + storage + b"tQ" + integer(offset) + sizes(*size) + sizes(*stride) + b"\x89}tR"


def nested() -> bytes:
    """Return a dictionary with a key of tuples that are nested 60 times: its hash takes 2**60 steps."""
    levels = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(1, 61))
    return b"\x80\x02})" + levels + b"K\x01s."


def twice() -> bytes:
    """Return an archive with two members data/0."""
    stream = io.BytesIO(archive(DICTIONARY + tensor((4,), (1,)) + b"s."))
    with zipfile.ZipFile(stream, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("archive/data/0", bytes(16))
    return stream.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "hash": (lambda: archive(nested()), "a key of a dictionary has type tuple"),
    "equal hashes": (
        lambda: archive(b"\x80\x02}(" + b"".join(integer(n * (2**61 - 1)) + b"N" for n in range(1, 50_000)) + b"u."),
        "a key of a dictionary has type int",
    ),
    "bytearray": (
        lambda: archive(b"\x80\x02cbuiltins\nbytearray\n" + integer(6 << 30) + b"\x85R."), "other objects than tensors"
    ),
    "compressed pickle": (lambda: archive(b"\x80\x02" + bytes(32 << 20), compression=8), "'data.pkl' is compressed"),
    "long pickle": (lambda: archive(b"\x80\x02" + bytes(32 << 20)), "'data.pkl' has 33554434 bytes; at most 16777216"),
    "many instructions": (lambda: archive(b"\x80\x02" + b"N" * (2 << 20)), "more than 1000000 instructions"),
    "storage": (lambda: archive(DICTIONARY + tensor((4,), (1,), count=2**40) + b"s."), "declares 1099511627776 el"),
    "absent storage": (lambda: archive(DICTIONARY + tensor((4,), (1,), key="9") + b"s."), "no member 'data/9'"),
    "size": (lambda: archive(DICTIONARY + tensor((5,), (1,)) + b"s."), "out of bounds"),
    "offset": (lambda: archive(DICTIONARY + tensor((4,), (1,), offset=1) + b"s."), "out of bounds"),
    "negative offset": (lambda: archive(DICTIONARY + tensor((4,), (1,), offset=-1) + b"s."), "damaged"),
    "negative stride": (lambda: archive(DICTIONARY + tensor((4,), (-1,)) + b"s."), "damaged"),
    "expanded": (lambda: archive(DICTIONARY + tensor((2**20, 2**20), (0, 0)) + b"s."), r"shape \[1048576, 1048576\]"),
    "large integers": (lambda: archive(DICTIONARY + tensor((1,), (2**900,)) + b"s."), "damaged"),
    "repeated member": (twice, "'archive/data/0' occurs twice"),
    "empty stack": (lambda: archive(b"\x80\x02s."), "uses more values than it has"),
    "below a mark": (lambda: archive(b"\x80\x02}(s."), "uses more values than it has"),
    "memo": (lambda: archive(b"\x80\x02h\x01."), "damaged"),
    "cycle": (lambda: archive(b"\x80\x02}q\x01X\x01\x00\x00\x00ah\x01s."), "its first entry 'a' has type dict"),
    "byte order": (lambda: archive(DICTIONARY + tensor((4,), (1,)) + b"s.", byteorder=b"big"), "byte order is b'big'"),
    "no pickle": (lambda: archive(b"").replace(b"data.pkl", b"data.pkx"), "has 0 members FOLDER/data.pkl"),
    "legacy": (lambda: pickle.dumps({"a": 1}, 2), "not a zip file"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_an_error_in_bounded_time(tmp_path, case):
    make, says = HOSTILE[case]
    path = tmp_path / "a.pt"
    path.write_bytes(make())
    start = time.process_time()
    with pytest.raises(ConfigError, match=rf"a\.pt.*{says}"):
        read_state_dict(path)
    assert time.process_time() - start < 8


def test_tensors_equal_those_of_torch(tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    state: dict[str, torch.Tensor] = {
        "base": base, "view": base.reshape(4, 6)[1:, ::2], "transposed": base.reshape(4, 6).T,
        "parameter": torch.nn.Parameter(torch.ones(2, 3)), "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 5),
        "expanded": torch.ones(1).expand(7), "flags": torch.tensor([True, False]), "step": torch.tensor(2**40),
        **{str(kind): torch.arange(5).to(kind) for kind in (torch.half, torch.bfloat16, torch.double, torch.int8)},
        "complex": torch.tensor([1 + 2j]),
    }  # fmt: skip
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(1, 2, 5, 5)).sum().backward()
    optimizer.step()
    for content in (
        state,
        OrderedDict(state),
        module.state_dict(),
        {
            "epoch": 3, "lr": 1e-3, "state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()],
            "none": None, "large": 2**80, "sizes": base.shape, "device": torch.device("cpu"), "dtype": torch.float32,
        },
    ):  # fmt: skip
        torch.save(content, tmp_path / "a.pt")
        expected = torch.load(tmp_path / "a.pt", weights_only=True)
        expected = expected.get("state_dict", expected)
        read = read_state_dict(tmp_path / "a.pt")
        assert list(read) == list(expected)
        for key, value in read.items():
            torch.testing.assert_close(value, expected[key].detach(), rtol=0, atol=0)
            assert value.stride() == expected[key].stride()


def test_mutated_files_are_read_or_an_error(tmp_path):
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, tmp_path / "a.pt")
    valid, numbers, path = (tmp_path / "a.pt").read_bytes(), random.Random(1), tmp_path / "b.pt"
    begin = valid.index(b"\x80\x02}")
    failed = 0
    for _ in range(300):
        content = bytearray(valid)
        with zipfile.ZipFile(tmp_path / "a.pt") as file:
            pickled = bytearray(file.read("a/data.pkl"))
        for _ in range(numbers.randint(1, 3)):
            pickled[numbers.randrange(len(pickled))] = numbers.randrange(256)
        path.write_bytes(archive(bytes(pickled), **{"data/1": bytes(16)}))
        try:
            read_state_dict(path)
        except ConfigError:
            failed += 1
        content[numbers.randrange(len(content))] = numbers.randrange(256)
        path.write_bytes(content[: numbers.choice((None, None, numbers.randrange(begin, len(content))))])
        try:
            read_state_dict(path)
        except ConfigError:
            failed += 1
    assert 250 < failed < 600
