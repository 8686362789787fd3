"""Stage ``direct``: the long horizon on real sequences alone, without a teacher; the baseline of distillation."""

import torch

from simcast_hpc.config import TrainConfig
from simcast_hpc.data.augment import augment
from simcast_hpc.data.loader import Extension, MicroBatch
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distill.windows import Sample, window_of_codes


class DirectStage:
    """Each sequence of T + T'l frames is one window."""

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
        sequence = self.config.sequence
        codes = batch.codes.to(device, non_blocking=True)
        codes = augment(codes, batch.positions, self.config.data, seed=self.config.seed)
        first = torch.zeros(len(codes), dtype=torch.int64, device=device)
        return window_of_codes(codes, first, frames_in=sequence.frames_in, frames_out=sequence.frames_out)
