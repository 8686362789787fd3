"""An exponential moving average of the fp32 master weights; each rank owns complete tensors by name.

It averages master weights, because an update below 2^-9 of a weight vanishes in bf16. Parameters are gathered one at a
time, so no rank holds the complete model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from simcast_hpc.config import EMAConfig
from simcast_hpc.distributed.named_tensors import Tensors, is_owner, read_parameters
from simcast_hpc.distributed.process_group import TorchRanks


class EMA:
    """``ema <- decay * ema + (1 - decay) * weights`` after every ``every_steps``-th optimizer step.

    Update n uses the smaller of ``decay`` and (1 + n) / (10 + n), so that initial weights are soon forgotten.
    """

    def __init__(self, config: EMAConfig, engine: Any, ranks: TorchRanks):
        """Start from the engine's weights. A collective."""
        assert config.decay is not None
        self._decay, self._every, self._engine, self._ranks = config.decay, config.every_steps, engine, ranks
        self.tensors: Tensors = {name: tensor.clone() for name, tensor in self._owned()}

    def __call__(self, step: int, _report: object) -> None:
        """Update with the weights after optimizer step ``step``. A collective."""
        if step % self._every:
            return
        updates = step // self._every
        decay = min(self._decay, (1 + updates) / (10 + updates))
        for name, tensor in self._owned():
            self.tensors[name].lerp_(tensor, 1.0 - decay)

    def restore(self, lookup: Callable[[str], torch.Tensor]) -> None:
        """Restore this rank's share; ``lookup`` returns a tensor by name."""
        self.tensors = {name: lookup(name).to(tensor.device) for name, tensor in self.tensors.items()}

    def _owned(self) -> Iterator[tuple[str, torch.Tensor]]:
        ranks = self._ranks
        for number, (name, tensor) in enumerate(read_parameters(self._engine)):
            if is_owner(number, rank=ranks.rank, ranks=ranks.size):
                yield name, tensor
