"""Stage ``teacher``: the short horizon, on randomly placed sub-windows of each sequence (SimCast section 3.2)."""

import torch

from simcast_hpc.config import TrainConfig
from simcast_hpc.data.augment import augment
from simcast_hpc.data.loader import Extension, MicroBatch
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distill.windows import Sample, starts, window_of_codes


class TeacherStage:
    """Windows of T + T's frames that begin anywhere in a sequence of T + T'l: T'l - T's + 1 places."""

    extension: Extension | None = None

    def __init__(self, config: TrainConfig):
        self.config = config
        self.sequence_frames = config.sequence.frames_in + config.sequence.frames_out
        self.inputs: dict[str, str] = {}

    def open(self, source: WindowSource, device: torch.device) -> None:
        """Nothing besides the windows is needed."""

    def initialise(self, model: torch.nn.Module) -> None:
        """The model starts as it was drawn."""

    def sample(self, batch: MicroBatch, device: torch.device) -> Sample:
        """Return the training sample of a micro batch."""
        sequence, seed = self.config.sequence, self.config.seed
        codes = batch.codes.to(device, non_blocking=True)
        codes = augment(codes, batch.positions, self.config.data, seed=seed)
        choices = sequence.frames_out - sequence.teacher_frames_out + 1
        first = starts(batch.positions, seed=seed, purpose="teacher-start", choices=choices, device=device)
        return window_of_codes(codes, first, frames_in=sequence.frames_in, frames_out=sequence.teacher_frames_out)
