"""Stages ``teacher`` and ``direct``: a network from past to future frames, trained on real sequences.

``teacher`` learns the short horizon T_s on sub-windows at random positions of each sequence (SimCast, section 3.2);
``direct`` learns the long horizon T_l on whole sequences, the baseline of distillation.
"""

import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.augment import augment
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.open_windows import target_spec
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion.counter_noise import training_noise
from simcast_hpc.distill.cut_windows import EnsembleSample, Sample, starts, window_of_codes
from simcast_hpc.losses import ForecastLoss, build_loss
from simcast_hpc.models import build_model, missing_value, noise_shape, with_grid
from simcast_hpc.train.forecast_validation import ForecastValidation

from .stage import Stage


class ForecastModule(torch.nn.Module):
    """A forecasting network and its loss, so that one forward pass returns the scalar to differentiate.

    The loss does not count a border of ``margin`` pixels; its denominator is the number of inner pixels.
    """

    def __init__(self, model: torch.nn.Module, loss: ForecastLoss, *, margin: int = 0):
        super().__init__()
        self.model, self.loss, self.margin = model, loss, margin

    def forward(
        self, inputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, *noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a sample, fp32 scalar; the network casts its fp32 input to its dtype and returns fp32.

        ``noise`` is that of the members of a network with noise channels, one tensor ``[B, M, max(T, T'), N, H, W]``.
        """
        fields = (self.model(inputs, *noise), target, valid)
        if self.margin:
            inner = slice(self.margin, -self.margin)
            fields = (fields[0][..., inner, inner], target[..., inner, inner], valid[..., inner, inner])
        return self.loss(*fields)


class ForecastStage(Stage):
    """A network from T past frames to ``config.frames_out`` future ones, under the loss of the configuration.

    Each training window starts at one of :attr:`start_choices` frames of its sequence, chosen at random per sample.
    """

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Bind the loss to the data set's encoding and check the network's shapes."""
        super().__init__(config, source)
        self.loss = build_loss(config.loss, target_spec(config.data))
        self.missing = missing_value(config.model)
        self.check_shapes()

    @classmethod
    def fit_config(cls, config: TrainConfig, grid: tuple[int, int]) -> TrainConfig:
        """Return the configuration with ``model.grid`` filled in, for models that are built for one grid."""
        try:
            return config.model_copy(update={"model": with_grid(config.model, grid)})
        except ValueError as error:
            raise ConfigError(f"the model does not fit: {error}") from error

    @property
    def start_choices(self) -> int:
        """Number of frames of a sequence at which a training window may start."""
        return 1

    def module(self) -> ForecastModule:
        """Return the network and its loss."""
        frames_in, frames_out = self.config.sequence.frames_in, self.config.frames_out
        crop = self.config.data.cropping
        model = build_model(self.config.model, frames_in=frames_in, frames_out=frames_out)
        return ForecastModule(model, self.loss, margin=0 if crop is None else crop.margin)

    def sample(self, batch: MicroBatch) -> Sample | EnsembleSample:
        """Return inputs, targets and mask of each sequence, and the noise of its members if the network takes noise."""
        return self._with_noise(self.window(batch), batch.positions, purpose=f"{self.name}-member")

    def validation_sample(self, codes: torch.Tensor, index: int) -> Sample | EnsembleSample:
        """Return the sample at the start of validation window ``index``, uint8 ``[1, T + T_l, H, W]``."""
        frames_in, frames_out = self.config.sequence.frames_in, self.config.frames_out
        first = torch.zeros(1, dtype=torch.int64, device=codes.device)
        window = window_of_codes(codes, first, frames_in=frames_in, frames_out=frames_out, missing=self.missing)
        return self._with_noise(window, [index], purpose="validation-member")

    def _with_noise(self, window: Sample, positions: list[int], *, purpose: str) -> Sample | EnsembleSample:
        if not self.config.model.noise_channels:
            return window
        rows = training_noise(positions, seed=self.config.seed, purpose=purpose, device=window.inputs.device)
        shape = self._noise_shape((window.inputs.shape[3], window.inputs.shape[4]))
        members = [rows.normal(shape, step=member) for member in range(self.config.loss.members)]
        return EnsembleSample(*window, torch.stack(members, dim=1))

    def window(self, batch: MicroBatch) -> Sample:
        """Return inputs, targets and mask of a window of real frames from each sequence."""
        codes = self.augment(batch.windows, batch)
        frames_in, frames_out = self.config.sequence.frames_in, self.config.frames_out
        return window_of_codes(
            codes, self.window_starts(batch), frames_in=frames_in, frames_out=frames_out, missing=self.missing
        )

    def example_sample(self, batch_size: int, device: torch.device) -> Sample | EnsembleSample:
        """Return a sample of zeros."""
        inputs = torch.zeros(batch_size, self.config.sequence.frames_in, 1, *self.grid, device=device)
        target = torch.zeros(batch_size, self.config.frames_out, 1, *self.grid, dtype=torch.uint8, device=device)
        sample = Sample(inputs, target, torch.ones_like(target, dtype=torch.bool))
        if not self.config.model.noise_channels:
            return sample
        shape = self._noise_shape((self.grid[0], self.grid[1]))
        return EnsembleSample(*sample, torch.zeros(batch_size, self.config.loss.members, *shape, device=device))

    def _noise_shape(self, grid: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the shape of the noise of one member for frames of ``grid``."""
        frames_in, frames_out = self.config.sequence.frames_in, self.config.frames_out
        return noise_shape(self.config.model, frames_in=frames_in, frames_out=frames_out, grid=grid)

    def open_validation(self) -> ForecastValidation | None:
        """Return the validation of the forecasts to the long horizon, if it is on."""
        if self.config.validation.interval(self.config.max_steps) == 0:
            return None
        # The loss collects its terms for the metrics of training, so validation has one of its own.
        own = ForecastModule(self.module().model, build_loss(self.config.loss, target_spec(self.config.data)))
        return ForecastValidation(self.config, own, self.validation_sample)

    def augment(self, frames: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return frames ``[B, T, H, W]`` of a micro-batch, cropped and flipped by the configuration."""
        return augment(frames, batch.positions, self.config.data, seed=self.config.seed, corners=batch.corners)

    def window_starts(self, batch: MicroBatch) -> torch.Tensor:
        """Return the first frame of each sample's window, int64 ``[B]``."""
        purpose, device = f"{self.name}-start", batch.windows.device
        return starts(
            batch.positions, seed=self.config.seed, purpose=purpose, choices=self.start_choices, device=device
        )


class TeacherStage(ForecastStage):
    """Windows of T + T_s frames that start anywhere in a sequence of T + T_l frames."""

    name = "teacher"

    @property
    def start_choices(self) -> int:
        """T_l - T_s + 1."""
        return self.config.sequence.frames_out - self.config.sequence.teacher_frames_out + 1


class DirectStage(ForecastStage):
    """Each sequence of T + T_l frames is one window."""

    name = "direct"
