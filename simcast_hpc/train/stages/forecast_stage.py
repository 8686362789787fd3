"""Stages ``teacher`` and ``direct``: a network from past to future frames, trained on real sequences.

``teacher`` learns the short horizon T_s on sub-windows at random positions of each sequence (SimCast, section 3.2);
``direct`` learns the long horizon T_l on whole sequences, the baseline of distillation.
"""

from collections.abc import Callable
from typing import Any

import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.augment import augment
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.open_windows import target_spec
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion.counter_noise import training_noise
from simcast_hpc.distill.cut_windows import EnsembleSample, Sample, starts, window_of_codes
from simcast_hpc.distributed.row_shards import RowShards, rows_per_rank
from simcast_hpc.losses import ForecastLoss, build_loss
from simcast_hpc.models import build_model, has_base, missing_value, noise_shape, with_grid
from simcast_hpc.models.row_sharding import row_multiple, shard_rows
from simcast_hpc.train.forecast_validation import ForecastValidation

from .stage import Stage


class ForecastModule(torch.nn.Module):
    """A forecasting network and its loss, so that one forward pass returns the scalar to differentiate.

    The loss does not count a border of ``margin`` pixels; its denominator is the number of inner pixels. With spatial
    sharding all fields are the rows of this rank, and the loss is the number of ranks times its share of the loss of
    the whole sample.
    """

    def __init__(self, model: torch.nn.Module, loss: ForecastLoss, *, margin: int = 0):
        super().__init__()
        self.model, self.loss, self.margin = model, loss, margin
        self.shards = RowShards()

    def forward(
        self, inputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, *more: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a sample, fp32 scalar; the network casts its fp32 input to its dtype and returns fp32.

        Further arguments: with noise channels the noise of the members, ``[B, M, max(T, T'), N, H, W]``; with spatial
        sharding and a base forecast the rows of that of the whole frames, as ``BaseForecast.base_forecast`` returns it.
        """
        if self.shards.size > 1 and has_base(self.model):
            *noise, base = more
            fields = (self.model(inputs, *noise, base=base), target, valid)
        else:
            fields = (self.model(inputs, *more), target, valid)
        if self.shards.size > 1 and not self.loss.needs_whole_frames:
            return self._loss_of_rows(*fields)
        if self.shards.size > 1:
            fields = tuple(self.shards.gather_rows(field) for field in fields)
        if self.margin:
            inner = slice(self.margin, -self.margin)
            fields = tuple(field[..., inner, inner] for field in fields)
        return self.loss(*fields)

    def _loss_of_rows(self, *fields: torch.Tensor) -> torch.Tensor:
        """Return the number of ranks times the share of this rank's inner rows in the loss of a sample."""
        rows, margin, rank, size = fields[0].shape[-2], self.margin, self.shards.rank, self.shards.size
        first = min(max(margin - rank * rows, 0), rows)
        end = max(min(size * rows - margin - rank * rows, rows), first)
        share = size * (end - first) / (size * rows - 2 * margin)
        if first == end:  # all rows are margin: a gradient of 0, for which the halos of the other ranks wait
            first, end = 0, 1
        inner = tuple(field[..., first:end, margin : field.shape[-1] - margin] for field in fields)
        return self.loss(*inner, share=share)


class ForecastStage(Stage):
    """A network from T past frames to ``config.frames_out`` future ones, under the loss of the configuration.

    Each training window starts at one of :attr:`start_choices` frames of its sequence, chosen at random per sample.
    """

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Bind the loss to the data set's encoding and check the network's shapes."""
        super().__init__(config, source)
        self.loss = build_loss(config.loss, target_spec(config.data))
        self.missing = missing_value(config.model)
        self.shards = RowShards()
        self._base: Callable[[torch.Tensor], torch.Tensor | None] | None = None
        self.check_shapes()

    @classmethod
    def fit_config(cls, config: TrainConfig, grid: tuple[int, int]) -> TrainConfig:
        """Return the configuration with ``model.grid`` filled in, for models that are built for one grid."""
        try:
            return config.model_copy(update={"model": with_grid(config.model, grid)})
        except ValueError as error:
            raise ConfigError(f"the model does not fit: {error}") from error

    def check_row_shards(self, size: int) -> None:
        """Check that the network supports spatial sharding and that the rows of the frames can be divided.

        Raises:
            ConfigError: it does not, or they cannot; names the next height that fits.
        """
        if size > 1:
            with torch.device("meta"):
                multiple = row_multiple(self.module().model)
            rows_per_rank(self.grid[0], size, multiple)

    def shard_rows(self, module: torch.nn.Module, shards: RowShards) -> None:
        """Convert the network so that it computes the rows of this rank; samples are then those rows, too."""
        assert isinstance(module, ForecastModule)
        self.shards = module.shards = shards
        shard_rows(module.model, shards)
        if shards.size > 1 and has_base(module.model):
            self._base = module.model.base_forecast

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

    def sample(self, batch: MicroBatch) -> tuple[torch.Tensor, ...]:
        """Return inputs, targets and mask of each sequence, and the noise of its members if the network takes noise.

        With spatial sharding: the rows of this rank, and those of the base forecast if the network has one.
        """
        return self._own_rows(self._with_noise(self.window(batch), batch.positions, purpose=f"{self.name}-member"))

    def warm_up(self, engine: Any, device: torch.device) -> torch.Tensor:
        """Return the loss of a sample of zeros."""
        return engine(*self._own_rows(self.example_sample(self.config.batch.micro_size, device)))

    def _own_rows(self, sample: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the rows of this rank of each tensor, and of the base forecast, which needs the whole frames."""
        if self.shards.size == 1:
            return sample
        if self._base is not None:
            with torch.no_grad():
                base = self._base(sample[0])
            assert base is not None, "has_base() was true"
            sample = (*sample, base)
        return tuple(self.shards.take(field).contiguous() for field in sample)

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
