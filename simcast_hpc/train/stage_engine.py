"""The engine of the training loop: DeepSpeed's engine, and a second network if the stage has one."""

from typing import Any

import torch

from simcast_hpc.distributed.gradients import gradients_are_finite, skip_step
from simcast_hpc.distributed.named_tensors import Tensors


class StageEngine:
    """Engine of the loop around a DeepSpeed engine. A stage with a second network overrides its methods."""

    def __init__(self, engine: Any):
        self.engine = engine

    def __call__(self, *sample: torch.Tensor) -> torch.Tensor:
        """Return the loss of a micro-batch, a scalar tensor on the device."""
        return self.engine(*sample)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of a micro-batch."""
        self.engine.backward(loss)

    def step(self) -> None:
        """Count a micro-batch; after the last one of an optimizer step, update the weights. A collective."""
        self.engine.step()

    def gradient_accumulation_steps(self) -> int:
        """Return the micro-batches per optimizer step of this rank."""
        return self.engine.gradient_accumulation_steps()

    def gradients_are_finite(self) -> torch.Tensor:
        """Return whether this rank's share of the gradients is finite, a bool tensor."""
        return gradients_are_finite(self.engine)

    def skip_step(self) -> None:
        """Count the pending optimizer step without changing weights or optimizer state. A collective."""
        skip_step(self.engine)

    def auxiliary_state(self) -> Tensors:
        """Return the state that DeepSpeed does not hold, by name; every rank has all of it."""
        return {}

    def restore_auxiliary(self, state: Tensors, *, step: int) -> None:
        """Restore :meth:`auxiliary_state` as it was after ``step`` optimizer steps."""
