"""The weights with the best validation score so far: kept on disk, chosen in the same way by a resumed run.

The choice is part of every checkpoint. A run that resumes at step S continues with the choice as it was at step S, and
the weights of every choice to which a checkpoint refers are kept, so that it does not matter when the run was killed.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from simcast_hpc.config import ConfigError, ValidationConfig
from simcast_hpc.distributed.named_tensors import Tensors
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.storage.atomic_files import sweep, write_tensors
from simcast_hpc.storage.run_directory import file_hash

from .checkpoint import Checkpoint, CheckpointError, visible

logger = logging.getLogger(__name__)
STATE = "validation"


class Choice(NamedTuple):
    """The best validation so far.

    Attributes:
        step: optimizer step of the best validation; None before the first one.
        value: its score; None if undefined.
        weights: SHA-256 of its weights; empty if they are not kept.
        since: validations since then.
    """

    step: int | None = None
    value: float | None = None
    weights: str = ""
    since: int = 0


class BestWeights:
    """Keeps the weights of the best validation in ``folder``, one file per step: ``step-00000120.safetensors``.

    A later score must be better to replace an earlier one. An undefined score is worse than any other; as long as all
    are undefined, the last weights are kept, with a warning.
    """

    def __init__(
        self,
        folder: Path,
        config: ValidationConfig,
        *,
        higher_is_better: bool,
        checkpoints: Path,
        fingerprint: str,
        ranks: TorchRanks,
        check_owner: Callable[[], None] = lambda: None,
    ):
        """Start without a choice.

        Args:
            folder: of the weights.
            config: the score, whether its best weights are exported, and the patience.
            higher_is_better: direction of the score.
            checkpoints: folder of the checkpoints, whose choices are kept.
            fingerprint: of the validation data and the members of ensembles.
            ranks: the ranks; the first one writes.
            check_owner: raises an error if this process must not write any more.
        """
        self.folder, self.config, self.choice = folder, config, Choice()
        self._higher, self._checkpoints, self._fingerprint = higher_is_better, checkpoints, fingerprint
        self._ranks, self._check_owner = ranks, check_owner
        self._saved_step: int | None = None  # of the newest checkpoint, which may not be visible yet

    @property
    def stopped(self) -> bool:
        """Whether as many validations as the patience were no better: training ends."""
        return self.config.patience is not None and self.choice.since >= self.config.patience

    def update(self, step: int, scores: Mapping[str, float], weights: Tensors) -> None:
        """Take the scores and weights of a validation; keep the weights if they are the best. A collective.

        Raises:
            CheckpointError: the weights cannot be written; the previous ones are kept.
        """
        value = scores.get(self.config.score)
        if value is not None and math.isnan(value):
            value = None
        if value is None and self._ranks.is_first:
            logger.warning("%s is undefined at step %d: it selects no weights", self.config.score, step)
        since = 0
        if self.choice.step is not None and not self._is_better(value, self.choice.value):
            since = self.choice.since + 1
            self.choice = self.choice._replace(since=since)
            if self.stopped:
                logger.info(
                    "early stopping at step %d: %s has not improved in %d validations", step, self.config.score,
                    since,
                )  # fmt: skip
            if self.choice.value is not None:
                return
        digest = ""
        if self.config.export == "best":
            with self._ranks.together():
                if self._ranks.is_first:
                    digest = self._write(step, weights)
            digest = self._ranks.broadcast(digest)
        self.choice = Choice(step, value, digest, since)
        if self._ranks.is_first:
            self._remove_unused()

    def state(self) -> dict[str, Any]:
        """Return the choice for a checkpoint of this step."""
        self._saved_step = self.choice.step
        return {**self.choice._asdict(), "data": self._fingerprint}

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Continue with the choice of a checkpoint, or without one; remove the weights of later steps. A collective.

        Raises:
            ConfigError: the choice was made on other validation data or with other members.
            CheckpointError: the weights of the choice are missing or damaged.
        """
        stored = (checkpoint.manifest.get(STATE) if checkpoint is not None else None) or {}
        last = 0 if checkpoint is None else checkpoint.step
        with self._ranks.together():
            if stored and stored.get("data") != self._fingerprint:
                raise ConfigError(
                    f"{self.folder.parent} was validated on other data or members: the split val has fingerprint "
                    f"{self._fingerprint}, but had {stored.get('data')}; restore it, or choose another run_dir"
                )
            if stored:
                self.choice = Choice(*(stored[name] for name in Choice._fields))
            self._saved_step = self.choice.step
            if self._ranks.is_first and self.folder.is_dir():
                self._check_owner()
                sweep(self.folder)
                for path in self.folder.glob("step-*.safetensors"):
                    if _step_of(path) > last:
                        path.unlink()
            if self._ranks.is_first and self.choice.weights:
                self.weights()

    def weights(self) -> Tensors:
        """Return the weights of the choice.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        assert self.choice.step is not None
        path = self._path(self.choice.step)
        try:
            if file_hash(path) == self.choice.weights:
                return load_file(path)
        except (OSError, SafetensorError):
            pass
        raise CheckpointError(
            f"{path}, the weights of the best validation, are missing or damaged; restore the file from a copy, or "
            f"remove {self._checkpoints} to train from step 0"
        )

    def exported(self, last: Checkpoint) -> Tensors:
        """Return the weights that are exported: those of the choice, or of the last checkpoint.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        return self.weights() if self.config.export == "best" else last.model_weights()

    def description(self, last: Checkpoint) -> dict[str, Any]:
        """Return what the marker of the finished run contains about validation."""
        return {
            "score": self.config.score,
            "best_step": self.choice.step,
            "best_value": self.choice.value,
            "export": self.config.export,
            "exported_step": self.choice.step if self.config.export == "best" else last.step,
            "stopped_early": self.stopped,
        }

    def _is_better(self, value: float | None, best: float | None) -> bool:
        if value is None or best is None:
            return value is not None
        return value > best if self._higher else value < best

    def _write(self, step: int, weights: Tensors) -> str:
        self._check_owner()
        path = self._path(step)
        try:
            self.folder.mkdir(exist_ok=True)
            write_tensors(path, weights)
            return file_hash(path)
        except OSError as error:
            raise CheckpointError(
                f"{path}, the weights of the best validation, could not be written: {error}; the previous ones are kept"
            ) from error

    def _remove_unused(self) -> None:
        """Remove the weights to which neither the current choice nor a checkpoint refers."""
        used = {self.choice.step, self._saved_step}
        for path in visible(self._checkpoints):
            try:
                used.add((Checkpoint(path).manifest.get(STATE) or {}).get("step"))
            except CheckpointError:  # the writer has just removed it, or it is damaged: remove nothing now
                return
        for path in self.folder.glob("step-*.safetensors"):
            if _step_of(path) not in used:
                with suppress(OSError):
                    path.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-").removesuffix(".safetensors"))
