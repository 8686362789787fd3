"""A checkpoint on disk: its manifest, its hashes, and any range of elements of its tensors.

A file contains flattened tensors ``KIND/NAME`` of fp32, with KIND ``param``, ``exp_avg``, ``exp_avg_sq`` or ``ema``.
Its entry in the manifest states which elements they are: ``slices`` maps a name to the first element and the number of
elements, or ``partition: [i, n]`` stands for the i-th of n equal ranges of every parameter. ``tensors`` lists complete
tensors.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from simcast_hpc.config import SimcastError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.distributed.named_tensors import MOMENTS, Tensors, parameter_names
from simcast_hpc.storage.run_directory import file_hash, reject_another

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 2**26
_FILE_NAME = re.compile(r"[\w-][\w.-]*")
_AUXILIARY = ("auxiliary/", "beside/")  # the second in checkpoints of earlier commits
_MODEL_PREFIX = "model."


class CheckpointError(SimcastError, RuntimeError):
    """A checkpoint could not be written, is damaged, or belongs to another run."""


class UnreadableError(CheckpointError):
    """A file of a checkpoint exists, but cannot be read at present; the checkpoint may be intact."""


class _Piece(NamedTuple):
    """Consecutive elements of a flattened tensor in one file."""

    start: int
    length: int
    file: str


class Checkpoint:
    """A checkpoint on disk, read by ranges of elements; each file is opened once.

    Attributes:
        path: its folder.
        manifest: the content of its manifest.
        opened: number of files that were opened.
        bytes_read: bytes of the tensors that were read.
    """

    def __init__(self, path: Path):
        """Read the manifest.

        Raises:
            CheckpointError: it is missing or invalid.
            UnreadableError: it exists, but cannot be read.
        """
        self.path = path
        self.opened = self.bytes_read = 0
        self._open: dict[str, Any] = {}
        try:
            self.manifest: dict[str, Any] = read_json_file(
                path / MANIFEST, error=CheckpointError, what="the manifest", most_bytes=_LARGEST_MANIFEST
            )
            notes = self.manifest["files"]
            names = [note["file"] for note in notes]
            self._whole = {str(name): note["file"] for note in notes for name in note.get("tensors", ())}
            self._shapes = {
                str(name): tuple(int(size) for size in shape)
                for name, shape in self.manifest.get("parameters", {}).items()
            }
            self._kinds = [str(kind) for kind in self.manifest.get("kinds", ())]
            self._slices = _slices(notes, self._shapes)
            self._partitions = {
                (int(index), int(count)): note["file"]
                for note in notes
                if "partition" in note
                for index, count in [note["partition"]]
            }
            self._step = int(self.manifest["step"])
            if not isinstance(self.manifest["identity"], dict):
                raise TypeError("identity is not a mapping")
        except (CheckpointError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
                raise UnreadableError(f"{path / MANIFEST} cannot be read: {cause}") from error
            raise CheckpointError(f"{path} is not a checkpoint: {error!r}") from error
        if outside := [name for name in names if not isinstance(name, str) or not _FILE_NAME.fullmatch(name)]:
            raise CheckpointError(f"{path / MANIFEST}: file {outside[0]!r} is not a name within the checkpoint")

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._step

    def verify(self, *, rank: int = 0, ranks: int = 1) -> None:
        """Compare the hashes of this rank's share of the files.

        Raises:
            CheckpointError: a file is missing or differs.
            UnreadableError: a file exists, but cannot be read, for example without permission.
        """
        for note in self.manifest["files"][rank::ranks]:
            path = self.path / note["file"]
            try:
                intact = path.is_file() and file_hash(path) == note.get("sha256")
            except OSError as error:
                raise UnreadableError(f"{path} cannot be read: {error}") from error
            if not intact:
                raise CheckpointError(f"{path} is missing or damaged")

    def require(self, identity: Mapping[str, Any]) -> None:
        """Reject an identity that differs from that of the checkpoint.

        Raises:
            ConfigError: names the first keys that differ, with both values.
        """
        reject_another(self.manifest["identity"], identity, where=self.path)

    def read(self, kind: str, name: str, start: int, length: int) -> torch.Tensor:
        """Return ``length`` elements from ``start`` of the flattened fp32 state ``kind`` of a parameter.

        Args:
            kind: ``param``, ``exp_avg``, ``exp_avg_sq``, or ``ema``, the moving average.
            name: of the parameter.
            start: the first element.
            length: number of elements.

        Raises:
            CheckpointError: the checkpoint does not contain all of them, or they cannot be read.
        """
        key = f"{kind}/{name}"
        if not length and start == 0 and prod(self._shapes.get(name, (1,))) == 0 and kind in self._kinds:
            return torch.empty(0)  # a parameter without elements
        if key in self._whole:
            return self._elements(self._whole[key], key, start, length)
        stop, parts = start + length, []
        for piece in self._pieces(name, start, stop) if kind in self._kinds else ():
            low, high = max(start, piece.start), min(stop, piece.start + piece.length)
            if low < high:
                parts.append(self._elements(piece.file, key, low - piece.start, high - low))
        found = sum(part.numel() for part in parts)
        if found != length or not length:
            raise CheckpointError(f"{self.path} contains {found} of {length} elements of {key}")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def tensors(self, name: str) -> Tensors:
        """Return the complete fp32 ``param``, ``exp_avg`` and ``exp_avg_sq`` of one parameter.

        Raises:
            CheckpointError: the checkpoint has no such parameter.
        """
        return {key: self._tensor(f"{key}/{name}") for key in ("param", *MOMENTS)}

    def average(self, name: str) -> torch.Tensor:
        """Return the complete fp32 moving average of one parameter.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        return self._tensor(f"ema/{name}")

    def auxiliary(self) -> Tensors:
        """Return the state of the run that DeepSpeed does not hold, by name."""
        keys = [key for key in self._whole if key.startswith(_AUXILIARY)]
        return {key.partition("/")[2]: self._tensor(key) for key in keys}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all fp32 parameters by name: their moving averages if the checkpoint has them."""
        kind = "ema" if "ema" in self._kinds or any(key.startswith("ema/") for key in self._whole) else "param"
        return {name: self._tensor(f"{kind}/{name}") for name in sorted(self._names())}

    def model_weights(self) -> dict[str, torch.Tensor]:
        """Return the part of :meth:`weights` that is exported: the submodule ``model``, without that prefix."""
        weights = self.weights().items()
        return {name.removeprefix(_MODEL_PREFIX): value for name, value in weights if name.startswith(_MODEL_PREFIX)}

    def check_names(self, engine: Any) -> None:
        """Reject a checkpoint whose parameters are not those of the engine.

        Raises:
            CheckpointError: names the first parameters that are missing or unexpected.
        """
        expected, stored = set(parameter_names(engine)), self._names()
        if expected != stored:
            raise CheckpointError(
                f"{self.path} does not fit the model: missing parameters {sorted(expected - stored)[:3]}, "
                f"unexpected {sorted(stored - expected)[:3]}"
            )

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        self._open.clear()

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[_Piece]:
        """Yield the stored ranges of a parameter that may contain elements of ``start .. stop``, in ascending order."""
        pieces = self._slices.get(name, [])
        first = max(0, bisect_right(pieces, start, key=lambda piece: piece.start) - 1)
        for piece in pieces[first:]:
            if piece.start >= stop:
                break
            yield piece
        size = prod(self._shapes.get(name, (0,)))
        if self._partitions and size:
            count = next(iter(self._partitions))[1]
            each = -(-size // count)
            for index in range(start // each, -(-stop // each)):
                if (file := self._partitions.get((index, count))) is not None:
                    yield _Piece(index * each, min(each, size - index * each), file)

    def _names(self) -> set[str]:
        """Return the names of the parameters."""
        whole = {key.removeprefix("param/") for key in self._whole if key.startswith("param/")}
        return whole | set(self._shapes)

    def _tensor(self, key: str) -> torch.Tensor:
        kind, _, name = key.partition("/")
        if key not in self._whole and (name not in self._shapes or kind not in self._kinds):
            raise CheckpointError(f"{self.path} contains no {key}")
        if key in self._whole:
            return self._elements(self._whole[key], key, 0, None)
        shape = self._shapes[name]
        return self.read(kind, name, 0, prod(shape)).view(shape)

    def _elements(self, name: str, key: str, start: int, length: int | None) -> torch.Tensor:
        """Return elements of the flattened tensor ``key`` of a file; the whole tensor in its shape for no length."""
        path = self.path / name
        try:
            if name not in self._open:
                self._open[name] = safe_open(path, framework="pt").__enter__()
                self.opened += 1
            file = self._open[name]
            if not length:
                found = file.get_tensor(key)  # complete; a tensor without elements has no rows
                found = found if length is None else found.flatten()[:0]
            else:
                part = file.get_slice(key)
                shape = part.get_shape()
                row = prod(shape[1:])
                low, high = start // row, -(-(start + length) // row)
                # The slice is a copy of whole rows; a scalar has none.
                rows = part[low:high].flatten() if shape else file.get_tensor(key).view(1)
                found = rows[start - low * row :][:length]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {key} cannot be read: {error}") from error
        self.bytes_read += found.nbytes
        return found


def _slices(notes: list[dict[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[_Piece]]:
    """Return the stored ranges of each parameter in ascending order."""
    pieces: dict[str, list[_Piece]] = {name: [] for name in shapes}
    for note in notes:
        for name, (start, length) in note.get("slices", {}).items():
            pieces[name].append(_Piece(int(start), int(length), note["file"]))
    for found in pieces.values():
        found.sort()
    return pieces
