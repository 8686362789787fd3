"""What a run learns, apart from the data it learns from: the module, its loss, and what leaves at the end."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.augment import training_grid
from simcast_hpc.data.open_windows import target_spec
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.named_tensors import Tensors
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.losses import WeightedMSE
from simcast_hpc.models import build_model, fitted_to
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.train.checkpoint import Checkpoint
from simcast_hpc.train.ema import EMA
from simcast_hpc.train.loop import Every


class ExtraState(Protocol):
    """An engine that also holds what DeepSpeed does not: a discriminator."""

    def state(self) -> Tensors:
        """Return that by name, for a checkpoint."""
        ...

    def restore(self, state: Tensors, *, step: int) -> None:
        """Take it up where ``step`` optimizer steps left it."""
        ...

    def gradients_are_finite(self) -> torch.Tensor:
        """Return whether this rank's gradients are, of the engine and of what it holds besides."""
        ...

    def leave_out_step(self) -> None:
        """Count the optimizer step that is due without changing anything. A collective."""
        ...


class Task(Protocol):
    """One kind of network to train. ``config`` is the run's, its model fitted to the grid of the data."""

    config: TrainConfig

    def prepare(self, ranks: TorchRanks) -> WindowSource:
        """Return the windows that training reads, made where they are not the data's own. A collective."""
        ...

    def module(self) -> torch.nn.Module:
        """Return what the engine holds; the network that is exported is its part ``model``."""
        ...

    def learner(self, engine: Any, ranks: TorchRanks) -> Any:
        """Return what the loop trains: the engine, or a :class:`ExtraState` around it."""
        ...

    def warm_up(self, engine: Any, device: torch.device) -> torch.Tensor:
        """Return a loss of the bare engine on empty samples of a micro batch, whose value means nothing."""
        ...

    def hooks(self, engine: Any, ranks: TorchRanks, ema: EMA | None, writer: MetricsWriter | None) -> list[Every]:
        """Return what else happens between steps, after the average took them in; ``writer`` on the first rank."""
        ...

    def exported(self, checkpoint: Checkpoint, ranks: TorchRanks) -> Mapping[str, str]:
        """Return what is written beside the weights, as text by name. A collective."""
        ...


class TrainingModule(torch.nn.Module):
    """A forecasting network and its loss, so that one forward pass gives the scalar to differentiate."""

    def __init__(self, model: torch.nn.Module, loss: WeightedMSE):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the loss of a sample; the network computes in its own dtype and returns fp32."""
        dtype = next(self.model.parameters()).dtype
        return self.loss(self.model(inputs.to(dtype)), target, valid)


class ForecastTask:
    """A network from past frames to coming ones, under the weighted loss."""

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Fit the network to the data's grid and try it on shapes alone.

        Raises:
            ConfigError: it does not fit.
            DataError: the loss does not speak of this data set.
        """
        self.loss = WeightedMSE(config.loss, target_spec(config.data))
        self.grid = training_grid(config.data, source.grid)
        self.source = source
        with torch.device("meta"):
            try:
                self.config = config.model_copy(update={"model": fitted_to(config.model, self.grid)})
                self._network()(torch.empty(1, config.sequence.frames_in, 1, *self.grid))
            except ValueError as error:
                raise ConfigError(f"the model does not fit: {error}") from error

    def prepare(self, ranks: TorchRanks) -> WindowSource:
        """Return the data's own windows."""
        return self.source

    def module(self) -> torch.nn.Module:
        """Return network and loss."""
        return TrainingModule(self._network(), self.loss)

    def learner(self, engine: Any, ranks: TorchRanks) -> Any:
        """Return the engine itself."""
        return engine

    def warm_up(self, engine: Any, device: torch.device) -> torch.Tensor:
        """Return the loss of empty frames."""
        micro = self.config.batch.micro_size
        shape = (micro, self.config.sequence.frames_in, 1, *self.grid)
        target = torch.zeros(micro, self.config.frames_out, 1, *self.grid, dtype=torch.uint8, device=device)
        return engine(torch.zeros(shape, device=device), target, torch.ones_like(target, dtype=torch.bool))

    def hooks(self, engine: Any, ranks: TorchRanks, ema: EMA | None, writer: MetricsWriter | None) -> list[Every]:
        """Nothing else happens between steps."""
        return []

    def exported(self, checkpoint: Checkpoint, ranks: TorchRanks) -> Mapping[str, str]:
        """Nothing stands beside the weights."""
        return {}

    def _network(self) -> torch.nn.Module:
        config = self.config
        return build_model(config.model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)
