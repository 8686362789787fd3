"""The base class of training stages: the methods that the trainer calls, with defaults that do nothing.

``trainer.py`` calls a stage in this order: :meth:`Stage.window_frames` and :meth:`Stage.fit_config` of the class, the
constructor, :meth:`Stage.check_row_shards`, :meth:`Stage.open_validation`, and then, on the device,
:meth:`Stage.module`, :meth:`Stage.initialize`, :meth:`Stage.shard_rows`, :meth:`Stage.prepare`,
:meth:`Stage.wrap_engine`, :meth:`Stage.warm_up` (only to resume), :meth:`Stage.hooks`, :meth:`Stage.sample` once per
micro-batch, and :meth:`Stage.export_metadata`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.crop_positions import training_grid
from simcast_hpc.data.loader import Extension, MicroBatch
from simcast_hpc.data.window_source import ArraySource, WindowSource
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.distributed.row_shards import RowShards
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.train.checkpoint import Checkpoint
from simcast_hpc.train.ema import EMA
from simcast_hpc.train.loop import PeriodicHook
from simcast_hpc.train.stage_engine import StageEngine
from simcast_hpc.train.validation import Validation


class Stage(ABC):
    """One kind of training: its windows, its network and loss, and what it exports.

    A stage defines ``name``, :meth:`module`, :meth:`sample` and :meth:`example_sample`; everything else has a default.

    Attributes:
        name: the value of ``stage`` in the configuration.
        config: of the run, already fitted to the grid of the data: the only configuration that the run has.
        source: the windows of the data set, split ``train``.
        grid: (H, W) of the frames that the network sees, after a crop.
        inputs: hashes of the weights of other runs that this run depends on; part of the run's identity.
        extension: stored frames that continue each window, read by the loader together with it.
    """

    name: ClassVar[str]
    extension: Extension | None = None

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Do everything that needs no device: load other runs, check them, check the shapes of the network.

        Raises:
            ConfigError: the run cannot be trained.
            DataError: the loss does not apply to this data set.
        """
        self.config, self.source = config, source
        self.grid = training_grid(config.data, source.grid)
        self.inputs: dict[str, str] = {}

    @classmethod
    def window_frames(cls, config: TrainConfig) -> int:
        """Return the number of frames of the windows that the stage reads."""
        return config.sequence.frames_in + config.sequence.frames_out

    @classmethod
    def fit_config(cls, config: TrainConfig, grid: tuple[int, int]) -> TrainConfig:
        """Return the configuration with the fields that follow from the (H, W) of the frames filled in.

        Raises:
            ConfigError: the configuration does not fit this grid.
        """
        return config

    @abstractmethod
    def module(self) -> torch.nn.Module:
        """Return what DeepSpeed trains: a module from a sample to its loss; its submodule ``model`` is exported."""

    @abstractmethod
    def sample(self, batch: MicroBatch) -> tuple[torch.Tensor, ...]:
        """Return the arguments of :meth:`module` for a micro-batch, whose tensors are on the device already.

        Random numbers come from counters of (seed, position, purpose), never from torch's generators.
        """

    @abstractmethod
    def example_sample(self, batch_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return a sample of zeros in the shapes and dtypes of :meth:`sample`."""

    def check_shapes(self) -> None:
        """Run the network on the meta device, for the constructors of stages.

        Raises:
            ConfigError: the sizes of network and data do not fit.
        """
        with torch.device("meta"):
            try:
                self.module()(*self.example_sample(1, torch.device("meta")))
            except ValueError as error:
                raise ConfigError(f"the model does not fit: {error}") from error

    def open_validation(self) -> Validation | None:
        """Return the validation during training, which needs no device yet; None without validation.

        Raises:
            ConfigError: validation is configured, but is not possible.
        """
        return None

    def initialize(self, model: torch.nn.Module) -> None:  # noqa: B027  a default, not an omission
        """Change the fresh weights of the submodule ``model`` in place; they are random by default."""

    def check_row_shards(self, size: int) -> None:
        """Check that ``size`` ranks can share a sample (``parallel.spatial``), before a device is used.

        Raises:
            ConfigError: they cannot.
        """
        if size > 1:
            raise ConfigError(f"parallel.spatial={size} is not supported by stage {self.name}; choose 1")

    def shard_rows(self, module: torch.nn.Module, shards: RowShards) -> None:
        """Convert the result of :meth:`module` so that it computes the rows of this rank, in place."""
        self.check_row_shards(shards.size)

    def prepare(self, ranks: TorchRanks) -> ArraySource:
        """Return the windows that training reads; load or compute what they need on the device. A collective."""
        return self.source

    def wrap_engine(self, engine: Any, ranks: TorchRanks) -> StageEngine:
        """Return the engine for the loop: DeepSpeed's, with a second network if the stage has one. A collective."""
        return StageEngine(engine)

    def warm_up(self, engine: Any, device: torch.device) -> torch.Tensor:
        """Return a scalar from one forward pass of the DeepSpeed engine; only its graph matters, not its value."""
        return engine(*self.example_sample(self.config.batch.micro_size, device))

    def hooks(
        self, engine: Any, ranks: TorchRanks, ema: EMA | None, writer: MetricsWriter | None
    ) -> list[PeriodicHook]:
        """Return further hooks, called after the EMA is updated; ``writer`` is given on the first rank only."""
        return []

    def export_metadata(self, checkpoint: Checkpoint, ranks: TorchRanks) -> Mapping[str, str]:
        """Return metadata stored with the exported weights. A collective."""
        return {}
