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

from .checkpoint_files import MANIFEST, Checkpoint, CheckpointError

logger = logging.getLogger(__name__)
_DAMAGED = ".damaged"
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.05, 1.0


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
        """
        self.folder, self.keep, self.ranks, self._check_owner = folder, keep, ranks, check_owner
        self._timeout_seconds = timeout_minutes * 60
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self.pending_step: int | None = None  # the step whose checkpoint is being written; the same on every rank
        with ranks.together():
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
            average: the moving average of the elements that this rank stores, by name.
            auxiliary: state outside the engine, complete on every rank.
            validation: the choice of the best weights so far.

        Raises:
            CheckpointError: the previous checkpoint could not be written; the one before it is kept.
        """
        self.wait()
        rank, size = self.ranks.rank, self.ranks.size
        final = self.folder / f"step-{step:08d}"
        exists, partial, error = self.ranks.broadcast(_make_temporary(final) if self.ranks.is_first else None)
        if exists:  # a resumed run that is at its last step already
            return
        if error:
            raise CheckpointError(f"a checkpoint in {self.folder} could not be written: {error}")
        # 1. Copies of what this rank stores
        fragments = list(stored_fragments(engine, self.ranks))
        share = {f"{key}/{one.name}": tensor for one in fragments for key, tensor in one.tensors.items()}
        share |= {f"ema/{name}": value for name, value in (average or {}).items()}
        note = _note(engine, fragments)
        if rank == 0 and auxiliary:
            share |= {f"auxiliary/{name}": value for name, value in auxiliary.items()}
            note["tensors"] = sorted(f"auxiliary/{name}" for name in auxiliary)
        share, ready = _to_host(share)
        # 2. The manifest
        manifest = {
            "step": step,
            "samples_seen": samples_seen,
            "identity": dict(identity),
            "ranks": size,
            "kinds": ["param", *MOMENTS, *(["ema"] if average is not None else [])],
            "parameters": {name: list(shape_of(parameter)) for name, parameter in trainable(engine)},
        }
        if validation is not None:
            manifest["validation"] = dict(validation)
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
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.pending_step = None
        failures = [message for message in self.ranks.gather(self._failure and str(self._failure)) if message]
        self._failure = None
        if failures:
            raise CheckpointError(f"a checkpoint in {self.folder} could not be written: {failures[0]}")

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
            ready()
            if share:
                write_tensors(path, share)
                note |= {"file": path.name, "sha256": file_hash(path)}
            write_json(partial / f"rank-{rank:05d}.json", note)
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

    def _collect(self, partial: Path, ranks: int) -> list[dict[str, Any]]:
        """Wait for the file descriptions of all ranks and return those of files."""
        deadline, pause = time.monotonic() + self._timeout_seconds, _POLL_SECONDS
        while True:
            names = {path.name for path in partial.iterdir()}  # one listing finds what is written and what failed
            notes = sorted(name for name in names if name.startswith("rank-") and name.endswith(".json"))
            if any(name.endswith(".failed") for name in names):
                raise CheckpointError("another rank could not write its share")
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
        return False, temporary, str(error)
    return False, temporary, None


def visible(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix and (path / MANIFEST).is_file())


def latest(folder: Path, ranks: TorchRanks | None = None) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None; with ``ranks`` the one that rank 0 sees, on all. A collective."""
    if ranks is None:
        paths = visible(folder)
        return Checkpoint(paths[-1]) if paths else None
    paths = ranks.on_first(lambda: visible(folder)[-1:])
    with ranks.together():
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
    """
    rank, size = ranks.rank, ranks.size
    paths, left = ranks.on_first(lambda: _all_steps(folder))
    damaged: dict[Path, str] = {}
    for path in reversed(paths):
        checkpoint, failure = None, None
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify(rank=rank, ranks=size)
        except (CheckpointError, OSError) as error:
            failure = str(error)
        failures = [text for text in ranks.gather(failure) if text]
        if not failures:
            with ranks.together():
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
