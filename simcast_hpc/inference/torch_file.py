"""Read the tensors of a file of ``torch.save`` without unpickling it.

``torch.load(weights_only=True)`` runs no code, but a file of some hundred bytes can still occupy it for years (hashes
of nested tuples) or make it allocate any amount of memory. Here the instructions of the pickle are followed with values
of this module only, and the tensors are views of the bytes that the file stores.
"""

import io
import math
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simcast_hpc.storage.zip_members import check_members

_LARGEST_PICKLE = 16 << 20
_MOST_OPERATIONS = 1_000_000  # a tensor needs about 30
_MOST_AXES = 64
_MOST_EXPANDED = 1 << 24  # elements of a tensor that repeats those of its storage
_LARGEST_KEY = 2**31  # larger integers can be chosen so that all have one hash
_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()}
_DICTIONARY, _TENSOR, _PARAMETER, _SIZE, _DEVICE = (
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size",
    "torch.device",
)  # fmt: skip
_INERT = {f"torch.{str(dtype).removeprefix('torch.')}" for dtype in _DTYPES.values()}
_NAMES = {_DICTIONARY, _TENSOR, _PARAMETER, _SIZE, _DEVICE, *_STORAGES, *_INERT}
_PLAIN = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "NONE", "NEWTRUE",
    "NEWFALSE",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class OtherObject:
    """An object of the file that is neither tensor, container, number nor text, by the name of its class or function.

    Nothing of it is imported, called or kept: checkpoints contain such objects next to their weights.
    """

    name: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file that is not loaded: a view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """The content of a file of ``torch.save`` (PyTorch >= 1.6): containers, numbers, texts and two other classes.

    Each tensor is a :class:`StoredTensor`, each object of another class an :class:`OtherObject`.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: it is damaged, compressed or older.
    """

    def __init__(self, path: Path):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip file as torch.save has written since PyTorch 1.6")
        self._zip = zipfile.ZipFile(path)
        self._storages: dict[str, bytearray] = {}
        try:
            check_members(self._zip)
            self._members = {member.filename: member for member in self._zip.infolist()}
            pickles = [name for name in self._members if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1:
                raise ValueError(f"it has {len(pickles)} members FOLDER/data.pkl; torch.save writes one")
            self._folder = pickles[0].removesuffix("data.pkl")
            order = self._read("byteorder") if f"{self._folder}byteorder" in self._members else b"little"
            if order != b"little":
                raise ValueError(f"its byte order is {order[:20]!r}; only little-endian files are read")
            self.content: Any = _Machine().run(self._read("data.pkl", _LARGEST_PICKLE))
        except BaseException:
            self.close()
            raise

    def load(self, tensor: StoredTensor) -> Tensor:
        """Return a tensor of the content; tensors of one storage share memory.

        Raises:
            ValueError, RuntimeError: it exceeds the bytes that the file stores.
        """
        storage = tensor.storage
        if storage.key not in self._storages:
            self._storages[storage.key] = bytearray(self._read(f"data/{storage.key}"))
        content = self._storages[storage.key]
        if len(content) < storage.count * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key!r} declares {storage.count} elements in {len(content)} bytes")
        if math.prod(tensor.size) > (max(storage.count, _MOST_EXPANDED) if storage.count else 0):
            raise ValueError(f"a tensor of shape {list(tensor.size)} is stored in {storage.count} elements")
        if not storage.count:
            return torch.empty(tensor.size, dtype=storage.dtype)
        data = torch.frombuffer(content, dtype=storage.dtype, count=storage.count)
        return data.as_strided(tensor.size, tensor.stride, tensor.offset)

    def close(self) -> None:
        """Close the file; loaded tensors remain valid."""
        self._zip.close()

    def _read(self, name: str, most: int | None = None) -> bytes:
        member = self._members.get(self._folder + name)
        if member is None:
            raise ValueError(f"it has no member {name!r}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name!r} is compressed; torch.save stores without compression")
        if most is not None and member.file_size > most:
            raise ValueError(f"{name!r} has {member.file_size} bytes; at most {most} are valid")
        return self._zip.read(member)


class _Machine:
    """Stack, marks and memo of a pickle."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for number, (code, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if number == _MOST_OPERATIONS:
                raise ValueError(f"its pickle has more than {_MOST_OPERATIONS} instructions")
            if code.name == "STOP":
                break
            self._step(code.name, argument)
        return self._pop()

    def _pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("its pickle uses more values than it has")
        return self.stack.pop()

    def _top(self) -> Any:
        self.stack.append(self._pop())
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("its pickle has no mark")
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def _step(self, name: str, argument: Any) -> None:
        # 1. Values
        if name in _PLAIN:
            self.stack.append(_CONSTANTS.get(name, argument))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            self.stack.append({} if name == "EMPTY_DICT" else [])
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop() for _ in range(_TUPLES[name]))[::-1])
        elif name == "TUPLE":
            self.stack.append(tuple(self._since_mark()))
        elif name == "GLOBAL":
            found = ".".join(argument.split(" "))
            self.stack.append(_Name(found) if found in _NAMES else OtherObject(found))
        # 2. Stack and memo
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        # 3. Containers
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._since_mark()
            if not isinstance(self._top(), OtherObject):
                _expect(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._since_mark()
            if not isinstance(self._top(), OtherObject):
                self._set_items(_expect(self.stack[-1], dict), items)
        # 4. Objects
        elif name == "BINPERSID":
            self.stack.append(_storage(self._pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = _expect(self._pop(), tuple), self._pop()
            other = isinstance(function, OtherObject)
            self.stack.append(function if other else _call(_expect(function, _Name).name, arguments))
        elif name == "BUILD":  # attributes of a dictionary or tensor, such as _metadata
            self._pop()
            if not isinstance(self._top(), dict | StoredTensor | OtherObject):
                raise ValueError("its pickle sets the state of something else than a dictionary or tensor")
        elif name != "PROTO":
            raise ValueError(f"its pickle contains the instruction {name}, which tensors do not need")

    @staticmethod
    def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, OtherObject):
                continue
            if not (key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < _LARGEST_KEY)):
                raise ValueError(f"a key of a dictionary has type {type(key).__name__}; texts and integers are valid")
            target[key] = value


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"its pickle has {type(value).__name__} where {kind.__name__.strip('_')} is required")
    return value


def _storage(value: Any) -> _Storage:
    match value:
        case ("storage", _Name(name), str(key), str(), int(count)) if name in _STORAGES and count >= 0:
            return _Storage(key, _STORAGES[name], count)
    raise ValueError("its pickle refers to something else than a storage of numbers")


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case ("torch._utils._rebuild_tensor_v2", (_Storage() as storage, int(offset), tuple(size), tuple(stride), *_)):
            if len(size) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in size + stride[:_MOST_AXES]):
                return StoredTensor(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, *_):
            return tensor
        case ("torch.Size", (tuple(),)) | ("torch.device", _):
            return arguments
    raise ValueError(f"its pickle calls {name} with invalid arguments")
