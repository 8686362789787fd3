"""Who forecasts the condition of a training window: the student, or the one of several that never saw its event.

A student forecasts what it was trained on better than what it was not. A denoiser that learns under such conditions
trusts them more than it should later. Out of fold, the condition of each window comes from a student trained without
the window's event, as every forecast of a new event will.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, HoldOutConfig, TrainConfig
from simcast_hpc.data.folds import fold_of
from simcast_hpc.inference.load import TrainedModel, load_trained
from simcast_hpc.storage.run_directory import RunDirectory


class Conditions:
    """The student that ensembles stand on, and those of ``diffusion.fold_students`` by the fold that they held out."""

    def __init__(self, config: TrainConfig, student: Path):
        """Load and check them.

        Raises:
            ConfigError: one is not finished or of other frames or data, or an event of its fold was not held out.
        """
        self._frames_out = config.sequence.frames_out
        self.student = load_trained(student)
        reject_other_frames(config, student, self.student.config, horizon=True)
        self._by_fold = _by_fold(config, config.diffusion.fold_students or ())

    @property
    def inputs(self) -> dict[str, str]:
        """The hashes of all weights that conditions are made by."""
        folds = {f"student without fold {fold}": model.weights_hash for fold, model in enumerate(self._by_fold)}
        return {"student": self.student.weights_hash, **folds}

    def to(self, device: torch.device) -> None:
        """Put all networks on a device."""
        for model in (self.student, *self._by_fold):
            model.network.to(device)

    def forecast(self, past: Tensor, events: Sequence[str]) -> Tensor:
        """Return forecasts fp32 ``[B, T', H, W]`` after uint8 codes ``[B, T, H, W]`` of these events."""
        if not self._by_fold:
            return self.student.forecast(past, frames_out=self._frames_out)
        folds = torch.tensor([fold_of(event, len(self._by_fold)) for event in events])
        made = past.new_empty(len(past), self._frames_out, *past.shape[2:], dtype=torch.float32)
        for fold, model in enumerate(self._by_fold):
            rows = torch.nonzero(folds == fold)[:, 0].to(past.device)
            if len(rows):
                made[rows] = model.forecast(past[rows], frames_out=self._frames_out)
        return made


def reject_other_frames(config: TrainConfig, where: Path, theirs: TrainConfig, *, horizon: bool) -> None:
    """Refuse a finished run of other data than the diffusion's, or with ``horizon`` one of other frames.

    Raises:
        ConfigError: names the first key that differs, and both values.
    """
    pairs = [
        ("data.dataset", theirs.data.dataset, config.data.dataset),
        ("data.block_mean", theirs.data.block_mean, config.data.block_mean),
        ("data.recode_as", theirs.data.recode_as, config.data.recode_as),
    ]
    if horizon:
        pairs += [
            ("data.frame_stride", theirs.data.frame_stride, config.data.frame_stride),
            ("sequence.frames_in", theirs.sequence.frames_in, config.sequence.frames_in),
            ("frames of a forecast", theirs.frames_out, config.sequence.frames_out),
        ]
    for key, its, ours in pairs:
        if its != ours:
            raise ConfigError(f"the {theirs.stage} in {where} has {key}={its!r}, the diffusion needs {ours!r}")


def _by_fold(config: TrainConfig, paths: Sequence[Path]) -> list[TrainedModel]:
    found: dict[int, TrainedModel] = {}
    for path in paths:
        model = load_trained(path)
        reject_other_frames(config, path, model.config, horizon=True)
        held_out = _held_out(path, model.config, folds=len(paths))
        _reject_a_teacher_that_saw(path, model.config, held_out)
        if held_out.fold in found:
            missing = next(fold for fold in range(len(paths)) if fold not in found)
            raise ConfigError(
                f"diffusion.fold_students: {path} holds out fold {held_out.fold}, as another does, and none holds out "
                f"fold {missing} of {len(paths)}"
            )
        found[held_out.fold] = model
    return [found[fold] for fold in sorted(found)]


def _held_out(path: Path, theirs: TrainConfig, *, folds: int) -> HoldOutConfig:
    held_out = theirs.data.hold_out
    wanted = f"train it with data.hold_out={{folds: {folds}, fold: k}}"
    if held_out is None:
        raise ConfigError(
            f"diffusion.fold_students: the {theirs.stage} in {path} saw the events of all folds; {wanted}"
        )
    if held_out.folds != folds:
        raise ConfigError(
            f"diffusion.fold_students names {folds} runs, and the {theirs.stage} in {path} holds out fold "
            f"{held_out.fold} of {held_out.folds}; name one run a fold, or {wanted}"
        )
    return held_out


def _reject_a_teacher_that_saw(path: Path, theirs: TrainConfig, held_out: HoldOutConfig) -> None:
    """Refuse a student that learned of the held-out events through its teacher, by roll-outs or by first weights."""
    asked = theirs.student
    if theirs.stage != "student" or asked.teacher is None or (asked.extension != "teacher" and asked.init != "teacher"):
        return
    teacher, marker = load_trained(asked.teacher), RunDirectory(path).marker() or {"inputs": {}}
    if teacher.weights_hash != marker["inputs"].get("teacher"):
        raise ConfigError(
            f"diffusion.fold_students: {asked.teacher} holds another teacher than the student in {path} had, so what "
            "that one saw cannot be told"
        )
    if teacher.config.data.hold_out != held_out:
        raise ConfigError(
            f"diffusion.fold_students: the student in {path} holds out fold {held_out.fold} of {held_out.folds}, and "
            f"its teacher in {asked.teacher} saw those events; train the teacher with the same data.hold_out"
        )
