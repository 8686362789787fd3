"""Validation during training: windows of the split ``val``, statistics of all ranks, and the hook that scores weights.

What is forecast from the windows is defined by ``forecast_validation.py`` and ``ensemble_validation.py``.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, DataError, TrainConfig
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.named_tensors import Tensors, read_parameters
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.monitoring.metrics import MetricsWriter, read_metrics

from .best_weights import BestWeights
from .ema import EMA

_PREFIX = "model."
_BASELINE = "baseline"
T = TypeVar("T")
R = TypeVar("R")


class Validation(ABC):
    """Scores weights on a fixed set of windows of the split ``val``, the same at every validation.

    Each rank forecasts its share of the windows, one window per forward pass, and the results are merged in the order
    of the windows: scores are bitwise independent of the number of ranks.

    Attributes:
        every_steps: optimizer steps between validations.
        source: the windows of the split ``val``, T + T_l frames each.
        indices: of the validation windows.
    """

    def __init__(self, config: TrainConfig, *, windows: int, every_steps: int, hint: str):
        """Choose windows spread evenly over the split ``val``.

        Args:
            config: of the run.
            windows: number of windows.
            every_steps: optimizer steps between validations.
            hint: how to train without validation.

        Raises:
            ConfigError: the split has no window.
        """
        self.config, self.every_steps = config, every_steps
        self.source = validation_windows(config, hint=hint)
        count = min(windows, len(self.source))
        self.indices = [number * len(self.source) // count for number in range(count)]

    def prepare(self, ranks: TorchRanks) -> None:  # noqa: B027  a default, not an omission
        """Compute what all validations share, on the device. A collective."""

    @property
    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Scores of baselines on the validation windows, by baseline and key, after :meth:`prepare`."""
        return {}

    @abstractmethod
    def scores(self, weights: Tensors, ranks: TorchRanks) -> dict[str, float]:
        """Return the scores of these weights, equal on every rank. A collective.

        Undefined scores are omitted. Torch's generators are left unchanged.
        """

    def window(self, index: int) -> Tensor:
        """Return a window as pixel values, uint8 ``[1, T + T_l, H, W]``."""
        return torch.from_numpy(np.asarray(self.source.read(index)))[None]

    def share(self, ranks: TorchRanks) -> list[int]:
        """Return the indices of the windows of this rank."""
        return self.indices[ranks.rank :: ranks.size]


def validation_windows(config: TrainConfig, *, hint: str) -> WindowSource:
    """Return the windows of the split ``val``, of T + T_l frames; they are not copied to ``data.stage_to``.

    Raises:
        ConfigError: the split has no window; the message ends with ``hint``, how to train without validation.
    """
    sequence, data = config.sequence, config.data.model_copy(update={"stage_to": None})
    try:
        source = open_windows(data, split="val", frames=sequence.frames_in + sequence.frames_out)
    except DataError as error:
        raise ConfigError(f"validation is not possible: {error}; to train without validation, {hint}") from error
    if not len(source):
        raise ConfigError(f"{config.data.root} has no window of split val; to train without validation, {hint}")
    return source


def combine_windows(parts: Mapping[int, T], ranks: TorchRanks, combine: Callable[[list[T]], R]) -> R:
    """Return ``combine`` of the parts of all ranks in the order of the windows, on every rank. A collective.

    Parts are sent to rank 0, which combines them and broadcasts the result: its size depends on neither the ranks nor,
    for scores, the windows.

    Args:
        parts: those of this rank, by index of their window.
        ranks: the ranks.
        combine: maps all parts, in the order of the windows, to the result.
    """
    gathered, result = ranks.gather_on_first(dict(parts) or None), None
    with ranks.together():
        if ranks.is_first:
            by_index = {index: part for of_rank in gathered for index, part in (of_rank or {}).items()}
            result = combine([by_index[index] for index in sorted(by_index)])
    return ranks.broadcast(result)


def defined(scores: Mapping[str, float], keys: Iterable[str]) -> dict[str, float]:
    """Return the scores of these keys that are finite."""
    return {key: scores[key] for key in keys if math.isfinite(scores.get(key, math.nan))}


class ValidationHook:
    """Scores the moving average of the weights, or the weights without one, and writes the scores."""

    def __init__(
        self,
        validation: Validation,
        engine: Any,
        ranks: TorchRanks,
        ema: EMA | None,
        writer: MetricsWriter | None,
        best: BestWeights | None = None,
    ):
        """Write the scores of the baselines, if an interrupted run has not written them.

        Args:
            validation: computes the scores.
            engine: the DeepSpeed engine.
            ranks: the ranks.
            ema: moving average of the weights.
            writer: of the metrics, on the first rank.
            best: receives the scores and weights of every validation.
        """
        self.validation, self.engine, self.ranks = validation, engine, ranks
        self.ema, self.writer, self.best = ema, writer, best
        if writer is not None and validation.baselines and not _has_baselines(writer):
            writer.write(
                0,
                {
                    f"{_BASELINE}/{name}/{key}": value
                    for name, scores in validation.baselines.items()
                    for key, value in scores.items()
                },
            )

    def __call__(self, step: int, _report: object) -> None:
        """Score the weights after ``step`` and write the scores. A collective."""
        start = time.perf_counter()
        weights = gather_weights(self.engine, self.ema)
        scores = self.validation.scores(weights, self.ranks)
        if self.best is not None:
            self.best.update(step, scores, weights)
        if self.writer is not None:
            metrics = {f"validation/{name}": value for name, value in scores.items()}
            self.writer.write(step, metrics | {"time/validation_seconds": time.perf_counter() - start})


def gather_weights(engine: Any, ema: EMA | None) -> Tensors:
    """Return the fp32 weights that a checkpoint of this step would export, by name, on the host. A collective.

    Every rank gets a complete copy, gathered one tensor at a time: the moving average, or the master weights without
    one, of the submodule ``model``.
    """
    if ema is None:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in read_parameters(engine)}
    else:
        weights = dict(ema.complete())
    return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}


def _has_baselines(writer: MetricsWriter) -> bool:
    return any(key.startswith(_BASELINE + "/") for line in read_metrics(writer.path) for key in line)
