"""Forecasts that condition the diffusion model: by the student, or out of fold by students that never saw the event.

A student forecasts its own training events better than new ones, so a denoiser trained on such conditions trusts them
more than it should. Out of fold, the condition of each window is forecast by a student that was trained without the
window's event, as every operational forecast is.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, HoldOutConfig, TrainConfig
from simcast_hpc.data.event_folds import fold_of
from simcast_hpc.data.open_windows import require_same_dataset
from simcast_hpc.inference.trained_model import TrainedModel, load_trained
from simcast_hpc.storage.run_directory import RunDirectory


class ConditionForecasts:
    """The student of the ensemble, and the students of ``diffusion.fold_students`` by the fold that they held out."""

    def __init__(self, config: TrainConfig, student: Path):
        """Load and check the students.

        Raises:
            ConfigError: one is not finished or has other frames or data, or saw events of the fold it should not have.
        """
        self._frames_out = config.sequence.frames_out
        self.student = load_trained(student)
        reject_other_data(config, student, self.student.config, forecasts=True)
        self._by_fold = _load_fold_students(config, config.diffusion.fold_students or ())

    @property
    def inputs(self) -> dict[str, str]:
        """The hashes of the weights of all students."""
        folds = {f"student without fold {fold}": model.weights_hash for fold, model in enumerate(self._by_fold)}
        return {"student": self.student.weights_hash, **folds}

    def to(self, device: torch.device) -> None:
        """Move all students to a device."""
        for model in (self.student, *self._by_fold):
            model.network.to(device)

    def forecast(self, past: Tensor, events: Sequence[str]) -> Tensor:
        """Return forecasts, fp32 ``[B, T', H, W]`` in [0, 1], from uint8 frames ``[B, T, H, W]`` of these events."""
        if not self._by_fold:
            return self.student.forecast(past, frames_out=self._frames_out)
        folds = torch.tensor([fold_of(event, len(self._by_fold)) for event in events])
        forecasts = past.new_empty(len(past), self._frames_out, *past.shape[2:], dtype=torch.float32)
        for fold, model in enumerate(self._by_fold):
            rows = torch.nonzero(folds == fold)[:, 0].to(past.device)
            if len(rows):
                forecasts[rows] = model.forecast(past[rows], frames_out=self._frames_out)
        return forecasts


def reject_other_data(config: TrainConfig, run_dir: Path, finished: TrainConfig, *, forecasts: bool) -> None:
    """Reject a finished run on other data than the diffusion's; if it ``forecasts``, also one with other frames.

    Raises:
        ConfigError: names the first field that differs, and both values.
    """
    pairs = [
        ("data.block_mean", finished.data.block_mean, config.data.block_mean),
        ("data.recode_as", finished.data.recode_as, config.data.recode_as),
    ]
    if forecasts:
        pairs += [
            ("data.frame_stride", finished.data.frame_stride, config.data.frame_stride),
            ("sequence.frames_in", finished.sequence.frames_in, config.sequence.frames_in),
            ("sequence.frames_out", finished.frames_out, config.sequence.frames_out),
        ]
    for key, value, required in pairs:
        if value != required:
            raise ConfigError(
                f"the {finished.stage} in {run_dir} has {key}={value!r}, the diffusion needs {required!r}"
            )
    require_same_dataset(config.data, finished.data, f"the {finished.stage} in {run_dir}")


def _load_fold_students(config: TrainConfig, paths: Sequence[Path]) -> list[TrainedModel]:
    """Return the fold students in the order of their folds."""
    by_fold: dict[int, TrainedModel] = {}
    for path in paths:
        model = load_trained(path)
        reject_other_data(config, path, model.config, forecasts=True)
        hold_out = _checked_hold_out(path, model.config, folds=len(paths))
        _reject_informed_teacher(path, model.config, hold_out)
        if hold_out.fold in by_fold:
            missing = next(fold for fold in range(len(paths)) if fold not in by_fold)
            raise ConfigError(
                f"diffusion.fold_students: {path} and another run both hold out fold {hold_out.fold}; no run holds out "
                f"fold {missing} of {len(paths)}"
            )
        by_fold[hold_out.fold] = model
    return [by_fold[fold] for fold in sorted(by_fold)]


def _checked_hold_out(path: Path, finished: TrainConfig, *, folds: int) -> HoldOutConfig:
    hold_out = finished.data.hold_out
    if hold_out is None:
        raise ConfigError(
            f"diffusion.fold_students: the {finished.stage} in {path} was trained on the events of all folds; set "
            f"data.hold_out={{folds: {folds}, fold: k}} in its run"
        )
    if hold_out.folds != folds:
        raise ConfigError(
            f"diffusion.fold_students lists {folds} runs, but the {finished.stage} in {path} holds out fold "
            f"{hold_out.fold} of {hold_out.folds}; list one run per fold"
        )
    return hold_out


def _reject_informed_teacher(path: Path, finished: TrainConfig, hold_out: HoldOutConfig) -> None:
    """Reject a student whose teacher saw the held-out events: its rollouts or initial weights carry them over."""
    student = finished.student
    if finished.stage != "student" or student.teacher is None or "teacher" not in (student.extension, student.init):
        return
    teacher, marker = load_trained(student.teacher), RunDirectory(path).marker() or {"inputs": {}}
    if teacher.weights_hash != marker["inputs"].get("teacher"):
        raise ConfigError(
            f"diffusion.fold_students: the teacher in {student.teacher} is not the one that the student in {path} was "
            "trained with, so its training events are unknown"
        )
    if teacher.config.data.hold_out != hold_out:
        raise ConfigError(
            f"diffusion.fold_students: the student in {path} holds out fold {hold_out.fold} of {hold_out.folds}, but "
            f"its teacher in {student.teacher} was trained on those events; train it with the same data.hold_out"
        )
