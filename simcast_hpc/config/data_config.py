"""Which data set a run reads, how windows are cut from its events, and how many frames a window has."""

from pathlib import Path
from typing import Self

from pydantic import Field, PositiveInt, model_validator

from .stage_sections import Operational, Section, StrictModel


class SequenceConfig(Section):
    """Numbers of input and output frames; output k (from 1) is valid ``k * step_minutes`` after the last input."""

    frames_in: PositiveInt = 13
    """Input frames."""
    frames_out: PositiveInt = 12
    """Forecast frames of student, direct and diffusion: the long horizon."""
    teacher_frames_out: PositiveInt = 6
    """Forecast frames of the teacher: the short horizon (SimCast section 3: half of the long one)."""

    @model_validator(mode="after")
    def _teacher_is_shorter(self) -> Self:
        if self.teacher_frames_out > self.frames_out:
            raise ValueError(
                f"sequence.teacher_frames_out={self.teacher_frames_out} is longer than sequence.frames_out="
                f"{self.frames_out}; choose at most {self.frames_out}, usually half of it"
            )
        return self


class HoldOutConfig(StrictModel):
    """Train without one fold of the events; an event's fold is a hash of its identifier."""

    folds: int = Field(ge=2)
    """Number of folds."""
    fold: int = Field(ge=0)
    """The fold that is held out, counted from 0."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(
                f"data.hold_out.fold={self.fold} is not below data.hold_out.folds={self.folds}; "
                f"choose 0 to {self.folds - 1}"
            )
        return self


class DataConfig(Section):
    """The data set, its location, and how windows are cut from its events."""

    dataset: Operational[str] = "sevir"
    """A built-in data set description (``sevir``, ``synthetic``, ...), or the path of a YAML file with one.

    Operational, because the run adds the content of the description to its scientific identity."""
    root: Operational[Path | None] = None
    """Folder of the archive or of the prepared shards."""
    frame_stride: PositiveInt = 1
    """Use every n-th frame of an event."""
    window_stride: PositiveInt = 12
    """Frames between the starts of consecutive windows of an event, after ``frame_stride``."""
    block_mean: PositiveInt = 1
    """Average n x n pixels in physical units over the valid pixels; requires a known encoding."""
    recode_as: Operational[str | None] = None
    """Encode the frames as this other data set does; requires a known encoding of both."""
    file_names: tuple[str, ...] | None = None
    """Use only events of these files (column ``file_name`` of the catalog); null uses all."""
    max_percent_missing: float | None = 0.0
    """Skip events with a larger share of missing pixels, in percent; null keeps all."""
    workers: Operational[int] = Field(default=0, ge=0)
    """Loader processes per rank; 0 reads in the training process."""
    augment: bool = False
    """Flip and rotate each training sample, by random numbers that depend on seed, sample and epoch only."""
    crop: PositiveInt | None = None
    """Cut a random square of this many pixels per side out of each training sample; null trains on full frames."""
    stage_to: Operational[str | None] = None
    """Copy prepared shards to this folder on the node's own disk first, such as ``$SLURM_TMPDIR``."""
    hold_out: HoldOutConfig | None = None
    """Exclude one fold of the events from the split ``train``; null trains on all."""
