"""Checkpoints: the complete training state by name, independent of ZeRO stage and number of ranks.

A checkpoint is a folder with one safetensors file per rank, which contains that rank's share of the parameters (fp32
master value and both Adam moments), and a manifest with hashes. A thread writes it from host copies into a hidden
directory, and one rename at the end makes it visible, so that it is complete or absent; a checkpoint is hidden by a
rename before it is removed. The ranks must share the file system.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from simcast_hpc.config import SimcastError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.distributed.named_tensors import Tensors, is_owner, parameter_names, read_state
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.storage.atomic_files import publish, remove, sweep, temporary_path, write_json, write_tensors
from simcast_hpc.storage.run_directory import file_hash, reject_another

logger = logging.getLogger(__name__)
_MANIFEST, _DAMAGED = "manifest.json", ".damaged"
_LARGEST_MANIFEST = 2**26
_FILE_NAME = re.compile(r"[\w-][\w.-]*")
_POLL_SECONDS = 0.05
_AUXILIARY = ("auxiliary/", "beside/")  # the second in checkpoints of earlier commits
_MODEL_PREFIX = "model."


class CheckpointError(SimcastError, RuntimeError):
    """A checkpoint could not be written, is damaged, or belongs to another run."""


class CheckpointWriter:
    """Writes checkpoints in the background, one at a time, and keeps the newest ``keep``."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        ranks: TorchRanks,
        timeout_minutes: float,
        check_owner: Callable[[], None] = lambda: None,
    ):
        """Create the folder and remove what killed writers left in it.

        Args:
            folder: of the checkpoints.
            keep: number of checkpoints that remain.
            ranks: the ranks, each of which writes its share.
            timeout_minutes: of the wait for the shares of other ranks.
            check_owner: raises an error if this process must not write to the folder any more.
        """
        self.folder, self.keep, self.ranks, self._check_owner = folder, keep, ranks, check_owner
        self._timeout_seconds = timeout_minutes * 60
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self.pending_step: int | None = None  # the step whose checkpoint is being written; the same on every rank
        if ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)

    def failed(self) -> bool:
        """Return whether this rank could not write its share, or lost the folder to another process; no collective."""
        if self._failure is None:
            try:
                self._check_owner()
            except SimcastError as error:
                self._failure = error
        return self._failure is not None

    def save(
        self,
        engine: Any,
        *,
        step: int,
        samples_seen: int,
        identity: Mapping[str, Any],
        average: Tensors | None = None,
        auxiliary: Tensors | None = None,
        validation: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy the state to the host and start writing it. A collective.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps done.
            samples_seen: samples that they were computed from.
            identity: of the run, for :meth:`Checkpoint.require`.
            average: this rank's share of the moving average.
            auxiliary: state outside the engine, complete on every rank.
            validation: the choice of the best weights so far.

        Raises:
            CheckpointError: the previous checkpoint could not be written; the one before it is kept.
        """
        self.wait()
        rank, size = self.ranks.rank, self.ranks.size
        final = self.folder / f"step-{step:08d}"
        if self.ranks.broadcast(final.exists()):  # a resumed run that is at its last step already
            return
        partial, error = self.ranks.broadcast(_make_temporary(final) if self.ranks.is_first else None)
        if error:
            raise CheckpointError(f"a checkpoint in {self.folder} could not be written: {error}")
        share: Tensors = {}
        for number, (name, tensors) in enumerate(read_state(engine)):
            if is_owner(number, rank=rank, ranks=size):
                share |= {f"{key}/{name}": _to_host(value) for key, value in tensors.items()}
        share |= {f"ema/{name}": _to_host(value) for name, value in (average or {}).items()}
        if rank == 0:
            share |= {f"auxiliary/{name}": _to_host(value) for name, value in (auxiliary or {}).items()}
        manifest = {"step": step, "samples_seen": samples_seen, "identity": dict(identity), "ranks": size}
        if validation is not None:
            manifest["validation"] = dict(validation)
        self._thread = threading.Thread(target=self._write, args=(partial, final, share, manifest), daemon=True)
        self._thread.start()
        self.pending_step = step

    def wait(self) -> None:
        """Wait until the pending checkpoint is written. A collective.

        Raises:
            CheckpointError: on every rank, if writing failed on any.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.pending_step = None
        failures = [message for message in self.ranks.gather(self._failure and str(self._failure)) if message]
        self._failure = None
        if failures:
            raise CheckpointError(f"a checkpoint in {self.folder} could not be written: {failures[0]}")

    def _write(self, partial: Path, final: Path, share: Tensors, manifest: dict[str, Any]) -> None:
        rank = self.ranks.rank
        try:
            path = partial / f"rank-{rank:05d}.safetensors"
            write_tensors(path, share)
            note = {"file": path.name, "sha256": file_hash(path), "tensors": sorted(share)}
            write_json(partial / f"rank-{rank:05d}.json", note)
            if rank == 0:
                manifest["files"] = self._collect(partial, manifest["ranks"])
                write_json(partial / _MANIFEST, manifest)
                self._check_owner()
                publish(partial, final)
                for old in visible(self.folder)[: -self.keep]:
                    remove(old)
        except Exception as error:
            self._failure = error
            with suppress(OSError):
                (partial / f"rank-{rank:05d}.safetensors").unlink(missing_ok=True)
                (partial / f"rank-{rank:05d}.failed").touch()

    def _collect(self, partial: Path, ranks: int) -> list[dict[str, Any]]:
        """Wait for the file descriptions of all ranks and return them."""
        deadline = time.monotonic() + self._timeout_seconds
        while len(notes := sorted(partial.glob("rank-*.json"))) < ranks:
            if any(partial.glob("rank-*.failed")):
                raise CheckpointError("another rank could not write its share")
            if time.monotonic() > deadline:
                raise CheckpointError(f"{len(notes)} of {ranks} ranks wrote their share in {self._timeout_seconds} s")
            time.sleep(_POLL_SECONDS)
        return [json.loads(note.read_text(encoding="utf-8")) for note in notes]


class Checkpoint:
    """A checkpoint on disk, read tensor by tensor."""

    def __init__(self, path: Path):
        """Read the manifest.

        Raises:
            CheckpointError: it is missing or invalid.
        """
        self.path = path
        try:
            self.manifest: dict[str, Any] = read_json_file(
                path / _MANIFEST, error=CheckpointError, what="the manifest", most_bytes=_LARGEST_MANIFEST
            )
            names = [note["file"] for note in self.manifest["files"]]
            self._file_of = {str(name): note["file"] for note in self.manifest["files"] for name in note["tensors"]}
            self._step = int(self.manifest["step"])
            if not isinstance(self.manifest["identity"], dict):
                raise TypeError("identity is not a mapping")
        except (CheckpointError, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CheckpointError(f"{path} is not a checkpoint: {error!r}") from error
        if outside := [name for name in names if not _FILE_NAME.fullmatch(str(name)) or not isinstance(name, str)]:
            raise CheckpointError(f"{path / _MANIFEST}: file {outside[0]!r} is not a name within the checkpoint")

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._step

    def verify(self, *, rank: int = 0, ranks: int = 1) -> None:
        """Compare the hashes of this rank's share of the files.

        Raises:
            CheckpointError: a file is missing or differs.
        """
        for note in self.manifest["files"][rank::ranks]:
            path = self.path / note["file"]
            if not path.is_file() or file_hash(path) != note.get("sha256"):
                raise CheckpointError(f"{path} is missing or damaged")

    def require(self, identity: Mapping[str, Any]) -> None:
        """Reject an identity that differs from that of the checkpoint.

        Raises:
            ConfigError: names the first keys that differ, with both values.
        """
        reject_another(self.manifest["identity"], identity, where=self.path)

    def tensors(self, name: str) -> Tensors:
        """Return the fp32 ``param``, ``exp_avg`` and ``exp_avg_sq`` of one parameter.

        Raises:
            CheckpointError: the checkpoint has no such parameter.
        """
        return {key: self._tensor(f"{key}/{name}") for key in ("param", "exp_avg", "exp_avg_sq")}

    def average(self, name: str) -> torch.Tensor:
        """Return the fp32 moving average of one parameter.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        return self._tensor(f"ema/{name}")

    def auxiliary(self) -> Tensors:
        """Return the state of the run that DeepSpeed does not hold, by name."""
        keys = [key for key in self._file_of if key.startswith(_AUXILIARY)]
        return {key.partition("/")[2]: self._tensor(key) for key in keys}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all fp32 parameters by name: their moving averages if the checkpoint has them."""
        kind = "ema/" if any(key.startswith("ema/") for key in self._file_of) else "param/"
        names = sorted(key.removeprefix(kind) for key in self._file_of if key.startswith(kind))
        return {name: self._tensor(kind + name) for name in names}

    def model_weights(self) -> dict[str, torch.Tensor]:
        """Return the part of :meth:`weights` that is exported: the submodule ``model``, without that prefix."""
        weights = self.weights().items()
        return {name.removeprefix(_MODEL_PREFIX): value for name, value in weights if name.startswith(_MODEL_PREFIX)}

    def check_names(self, engine: Any) -> None:
        """Reject a checkpoint whose parameters are not those of the engine.

        Raises:
            CheckpointError: names the first parameters that are missing or unexpected.
        """
        expected = set(parameter_names(engine))
        stored = {key.removeprefix("param/") for key in self._file_of if key.startswith("param/")}
        if expected != stored:
            raise CheckpointError(
                f"{self.path} does not fit the model: missing parameters {sorted(expected - stored)[:3]}, "
                f"unexpected {sorted(stored - expected)[:3]}"
            )

    def _tensor(self, key: str) -> torch.Tensor:
        if key not in self._file_of:
            raise CheckpointError(f"{self.path} contains no {key}")
        path = self.path / self._file_of[key]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {key} cannot be read: {error}") from error


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the host; on a CPU the gathered tensor may be the live one, which the next step changes."""
    host = tensor.detach().cpu()
    return host.clone() if host.device == tensor.device else host


def _make_temporary(final: Path) -> tuple[Path, str | None]:
    """Create the directory in which a checkpoint is written; return it and the error, if there was one."""
    temporary = temporary_path(final)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        return temporary, str(error)
    return temporary, None


def visible(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix and (path / _MANIFEST).is_file())


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None."""
    paths = visible(folder)
    return Checkpoint(paths[-1]) if paths else None


def reject_another_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Compare the newest readable checkpoint with the identity of the run.

    Raises:
        ConfigError: it belongs to another configuration or other data.
    """
    for path in reversed(visible(folder)):
        try:
            newest = Checkpoint(path)
        except CheckpointError:
            continue
        newest.require(identity)
        return


def newest_intact(folder: Path, ranks: TorchRanks) -> Checkpoint | None:
    """Return the newest checkpoint whose hashes match, or None if there is no checkpoint. A collective.

    Damaged checkpoints that are newer are then renamed to ``step-N.damaged``, with a warning.

    Raises:
        CheckpointError: every checkpoint is damaged; none is renamed, so that no later start begins at step 0 either.
    """
    rank, size = ranks.rank, ranks.size
    paths, left = ranks.broadcast(_all_steps(folder))
    damaged: dict[Path, str] = {}
    for path in reversed(paths):
        checkpoint, failure = None, None
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify(rank=rank, ranks=size)
        except CheckpointError as error:
            failure = str(error)
        failures = [text for text in ranks.gather(failure) if text]
        if not failures:
            if ranks.is_first:
                for each, message in damaged.items():
                    logger.warning("%s: renamed to %s.damaged; %s is used", message, each.name, path.name)
                    each.rename(each.with_name(each.name + _DAMAGED))
            return checkpoint
        damaged[path] = failures[0]
    if paths or left:
        oldest = damaged[paths[0]] if paths else left[0]
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged; the oldest: {oldest}; restore one from a copy, or remove "
            f"{folder} to train from step 0"
        )
    return None


def _all_steps(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return what has the name of a checkpoint, also links and folders without a manifest, and what is damaged."""
    paths = sorted(folder.glob("step-*"))
    return [path for path in paths if not path.suffix], [path for path in paths if path.suffix == _DAMAGED]
