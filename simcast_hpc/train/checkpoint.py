"""Checkpoints: the complete training state by name, independent of ZeRO stage and number of ranks.

A checkpoint is a folder with one safetensors file per rank, which contains the elements of the parameters that the
rank holds (fp32 master values, both Adam moments, moving average), and a manifest with hashes. Nothing is gathered. A
thread writes it from host copies into a hidden directory, and one rename at the end makes it visible, so that it is
complete or absent; a checkpoint is hidden by a rename before it is removed. The ranks must share the file system.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from simcast_hpc.config import SimcastError
from simcast_hpc.distributed.named_tensors import MOMENTS, Tensors, trainable
from simcast_hpc.distributed.partitions import Fragment, shape_of, stage_3_partition, stored_fragments
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.storage.atomic_files import publish, remove, sweep, temporary_path, write_json, write_tensors
from simcast_hpc.storage.run_directory import file_hash

from .checkpoint_files import MANIFEST, Checkpoint, CheckpointError, UnreadableError

logger = logging.getLogger(__name__)
_DAMAGED = ".damaged"
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.05, 1.0


class _OtherRankError(CheckpointError):
    """Rank 0 ended because of an error of another rank, which reports it."""


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
        """Create the folder and remove what killed writers left in it. A collective.

        Args:
            folder: of the checkpoints.
            keep: number of checkpoints that remain.
            ranks: the ranks, each of which writes its share.
            timeout_minutes: of the wait for the shares of other ranks.
            check_owner: raises an error if this process must not write to the folder any more.

        Raises:
            CheckpointError: on every rank, if rank 0 cannot create or list the folder.
        """
        self.folder, self.keep, self.ranks, self._check_owner = folder, keep, ranks, check_owner
        self._timeout_seconds = timeout_minutes * 60
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._written, self._others_failed = threading.Event(), threading.Event()
        self.pending_step: int | None = None  # the step whose checkpoint is being written; the same on every rank
        _on_first(self._prepare_folder, ranks)

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)

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
            average: the moving average of the elements that this rank stores, by name.
            auxiliary: state outside the engine, complete on every rank.
            validation: the choice of the best weights so far.

        Raises:
            CheckpointError: the previous checkpoint could not be written; the one before it is kept.
        """
        self.wait()
        final = self.folder / f"step-{step:08d}"
        exists, partial, error = self.ranks.broadcast(_make_temporary(final) if self.ranks.is_first else None)
        if exists:  # a resumed run that is at its last step already
            return
        if error:
            raise CheckpointError(f"a checkpoint in {self.folder} could not be written: {error}")
        # 1. Copies of what this rank stores
        share, ready, note = {}, lambda: None, {}
        try:
            share, ready, note = self._copy_share(engine, average, auxiliary)
        except Exception as error:  # for example without host memory; the other ranks receive it in `wait`
            self._failure = error
        # 2. The manifest
        manifest = {
            "step": step,
            "samples_seen": samples_seen,
            "identity": dict(identity),
            "ranks": self.ranks.size,
            "kinds": ["param", *MOMENTS, *(["ema"] if average is not None else [])],
            "parameters": {name: list(shape_of(parameter)) for name, parameter in trainable(engine)},
        }
        if validation is not None:
            manifest["validation"] = dict(validation)
        self._written.clear()
        self._others_failed.clear()
        self._thread = threading.Thread(
            target=self._write, args=(partial, final, share, ready, note, manifest), daemon=True
        )
        self._thread.start()
        self.pending_step = step

    def wait(self) -> None:
        """Wait until the pending checkpoint is written. A collective.

        Raises:
            CheckpointError: on every rank, if writing failed on any.
        """
        # 1. The shares: rank 0 must not wait for a rank whose share, and its mark of the failure, cannot be written
        pending, self._thread, self.pending_step = self._thread, None, None
        if pending is not None:
            self._written.wait()
        failures = self._gather_failures()
        if failures:
            self._others_failed.set()
        # 2. The manifest, which rank 0 writes
        if pending is not None:
            pending.join()
            failures = failures or self._gather_failures()
        self._failure = None
        if failures:
            raise CheckpointError(f"a checkpoint in {self.folder} could not be written: {failures[0]}")

    def _gather_failures(self) -> list[str]:
        """Return the failures of all ranks. A collective."""
        own = None if self._failure is None else f"rank {self.ranks.rank}: {self._failure}"
        found = [
            message for message in self.ranks.gather((own, isinstance(self._failure, _OtherRankError))) if message[0]
        ]
        return [message for message, _ in sorted(found, key=lambda pair: pair[1])]

    def _copy_share(
        self, engine: Any, average: Tensors | None, auxiliary: Tensors | None
    ) -> tuple[Tensors, Callable[[], None], dict[str, Any]]:
        """Return host copies of what this rank stores, a function that waits for them, and their description."""
        fragments = list(stored_fragments(engine, self.ranks))
        share = {f"{key}/{one.name}": tensor for one in fragments for key, tensor in one.tensors.items()}
        share |= {f"ema/{name}": value for name, value in (average or {}).items()}
        note = _note(engine, fragments)
        if self.ranks.is_first and auxiliary:
            share |= {f"auxiliary/{name}": value for name, value in auxiliary.items()}
            note["tensors"] = sorted(f"auxiliary/{name}" for name in auxiliary)
        return *_to_host(share), note

    def _write(
        self,
        partial: Path,
        final: Path,
        share: Tensors,
        ready: Callable[[], None],
        note: dict[str, Any],
        manifest: dict[str, Any],
    ) -> None:
        rank = self.ranks.rank
        path = partial / f"rank-{rank:05d}.safetensors"
        try:
            if self._failure is not None:
                raise self._failure
            ready()
            if share:
                write_tensors(path, share)
                note |= {"file": path.name, "sha256": file_hash(path)}
            write_json(partial / f"rank-{rank:05d}.json", note)
            self._written.set()
            if rank == 0:
                manifest["files"] = self._collect(partial, manifest["ranks"])
                write_json(partial / MANIFEST, manifest)
                self._check_owner()
                publish(partial, final)
                for old in visible(self.folder)[: -self.keep]:
                    remove(old)
        except Exception as error:
            self._failure = error
            with suppress(OSError):
                path.unlink(missing_ok=True)
                (partial / f"rank-{rank:05d}.failed").touch()
        finally:
            self._written.set()

    def _collect(self, partial: Path, ranks: int) -> list[dict[str, Any]]:
        """Wait for the file descriptions of all ranks and return those of files."""
        deadline, pause = time.monotonic() + self._timeout_seconds, _POLL_SECONDS
        while True:
            names = {path.name for path in partial.iterdir()}  # one listing finds what is written and what failed
            notes = sorted(name for name in names if name.startswith("rank-") and name.endswith(".json"))
            if self._others_failed.is_set() or any(name.endswith(".failed") for name in names):
                raise _OtherRankError("another rank could not write its share")
            if len(notes) >= ranks:
                break
            if time.monotonic() > deadline:
                raise CheckpointError(f"{len(notes)} of {ranks} ranks wrote their share in {self._timeout_seconds} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)
        read = [json.loads((partial / name).read_text(encoding="utf-8")) for name in notes]
        return [note for note in read if "file" in note]


def _note(engine: Any, fragments: Sequence[Fragment]) -> dict[str, Any]:
    """Return which elements a rank stores, for the manifest; see ``checkpoint_files.py``."""
    partition = stage_3_partition(engine)
    if fragments and partition is not None:
        return {"partition": list(partition)}
    return {"slices": {one.name: [one.start, one.length] for one in fragments}}


def _to_host(tensors: Tensors) -> tuple[Tensors, Callable[[], None]]:
    """Return copies on the host and a function that waits until they are complete.

    Copies from a GPU go to pinned memory and do not wait for the device; the next optimizer step follows them on the
    same stream.
    """
    copies: Tensors = {}
    device = None
    for key, tensor in tensors.items():
        pinned = tensor.is_cuda
        copies[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        copies[key].copy_(tensor.detach(), non_blocking=pinned)
        device = tensor.device if pinned else device
    if device is None:
        return copies, lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return copies, event.synchronize


def _make_temporary(final: Path) -> tuple[bool, Path, str | None]:
    """Create the directory in which a checkpoint is written.

    Returns:
        Whether the checkpoint exists already, the directory, and the error, if there was one.
    """
    temporary = temporary_path(final)
    try:
        if final.exists():
            return True, temporary, None
        temporary.mkdir(parents=True)
    except OSError as error:
        return False, temporary, f"rank 0: {error}"
    return False, temporary, None


def visible(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix and (path / MANIFEST).is_file())


def latest(folder: Path, ranks: TorchRanks | None = None) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None; with ``ranks`` the one that rank 0 sees, on all. A collective."""
    if ranks is None:
        paths = visible(folder)
        return Checkpoint(paths[-1]) if paths else None
    paths = _on_first(lambda: visible(folder)[-1:], ranks)
    with ranks.together(CheckpointError):
        return Checkpoint(paths[0]) if paths else None


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
            Or the folder or a file cannot be read by a rank, which says nothing about the checkpoint. On every rank.
    """
    rank, size = ranks.rank, ranks.size
    paths, left = _on_first(lambda: _all_steps(folder), ranks)
    damaged: dict[Path, str] = {}
    for path in reversed(paths):
        checkpoint, failure = None, None
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify(rank=rank, ranks=size)
        except Exception as error:
            failure = (f"rank {rank}: {error}", type(error) is CheckpointError)
        failures = [found for found in ranks.gather(failure) if found]
        if unreadable := [message for message, is_damage in failures if not is_damage]:
            raise UnreadableError(f"{unreadable[0]}; make it readable, or remove {path} to resume from an older one")
        if not failures:
            if damaged:
                _on_first(lambda path=path: _rename_damaged(damaged, path.name), ranks)
            return checkpoint
        damaged[path] = failures[0][0]
    if paths or left:
        oldest = damaged[paths[0]] if paths else left[0]
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged; the oldest: {oldest}; restore one from a copy, or remove "
            f"{folder} to train from step 0"
        )
    return None


def _on_first(function: Callable[[], Any], ranks: TorchRanks) -> Any:
    """Return what ``function`` returns on rank 0, on every rank; its OSError is a CheckpointError on every rank."""
    result, failure = None, None
    if ranks.is_first:
        try:
            result = function()
        except OSError as error:
            failure = error
    result, message = ranks.broadcast((result, failure and f"rank 0: {failure}"))
    if message:
        raise CheckpointError(message) from failure
    return result


def _rename_damaged(damaged: Mapping[Path, str], used: str) -> None:
    for path, message in damaged.items():
        path.rename(path.with_name(path.name + _DAMAGED))
        logger.warning("%s: renamed to %s.damaged; %s is used", message, path.name, used)


def _all_steps(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return what has the name of a checkpoint, also links and folders without a manifest, and what is damaged.

    Raises:
        OSError: the folder exists and cannot be listed (a glob would find nothing there).
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.startswith("step-"))
    except FileNotFoundError:
        paths = []
    return [path for path in paths if not path.suffix], [path for path in paths if path.suffix == _DAMAGED]
