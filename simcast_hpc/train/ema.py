"""An exponential moving average of the fp32 masters, each rank owning whole tensors by name.

Kept apart from the weights that forward uses: in bf16 an update below 2^-9 of a weight would vanish. Parameters are
gathered one at a time, so no rank ever holds the whole model for it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from simcast_hpc.config import EMAConfig
from simcast_hpc.distributed.named_tensors import Tensors, is_owner, read_parameters
from simcast_hpc.distributed.process_group import TorchRanks


class EMA:
    """The average of a run: ``ema <- decay * ema + (1 - decay) * weights`` after every ``every_steps``-th step.

    Until the average has seen enough, a step uses the smaller decay (1 + n) / (10 + n), n updates in, so that it is
    not held back by the random weights that it began from.
    """

    def __init__(self, config: EMAConfig, engine: Any, ranks: TorchRanks):
        """Begin from the engine's weights. A collective."""
        assert config.decay is not None
        self._decay, self._every, self._engine, self._ranks = config.decay, config.every_steps, engine, ranks
        self.tensors: Tensors = {name: tensor.clone() for name, tensor in self._mine()}

    def __call__(self, step: int, _report: object) -> None:
        """Take in the weights after optimizer step ``step``. A collective."""
        if step % self._every:
            return
        updates = step // self._every
        decay = min(self._decay, (1 + updates) / (10 + updates))
        for name, tensor in self._mine():
            self.tensors[name].lerp_(tensor, 1.0 - decay)

    def restore(self, lookup: Callable[[str], torch.Tensor]) -> None:
        """Take this rank's share from a checkpoint."""
        self.tensors = {name: lookup(name).to(tensor.device) for name, tensor in self.tensors.items()}

    def _mine(self) -> Iterator[tuple[str, torch.Tensor]]:
        ranks = self._ranks
        for number, (name, tensor) in enumerate(read_parameters(self._engine)):
            if is_owner(number, rank=ranks.rank, ranks=ranks.size):
                yield name, tensor
