"""An exponential moving average of the fp32 master weights, of the elements that a rank stores.

It averages master weights, because an update below 2^-9 of a weight vanishes in bf16. An update needs no communication.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from simcast_hpc.config import EMAConfig
from simcast_hpc.distributed.named_tensors import Tensors, trainable
from simcast_hpc.distributed.partitions import Fragment, shape_of, stored_fragments
from simcast_hpc.distributed.process_group import TorchRanks


class EMA:
    """``ema <- decay * ema + (1 - decay) * weights`` after every ``every_steps``-th optimizer step.

    Update n uses the smaller of ``decay`` and (1 + n) / (10 + n), so that initial weights are soon forgotten.

    Attributes:
        tensors: average of the elements that this rank stores, by name, fp32 ``[length]``.
    """

    def __init__(self, config: EMAConfig, engine: Any, ranks: TorchRanks):
        """Start from the engine's weights."""
        assert config.decay is not None
        self._decay, self._every, self._engine, self._ranks = config.decay, config.every_steps, engine, ranks
        self._starts: dict[str, int] = {}
        self.tensors: Tensors = {}
        for fragment in self._stored():
            self._starts[fragment.name] = fragment.start
            self.tensors[fragment.name] = fragment.tensors["param"].detach().clone()

    def __call__(self, step: int, _report: object) -> None:
        """Update with the weights after optimizer step ``step``."""
        if step % self._every:
            return
        updates = step // self._every
        decay = min(self._decay, (1 + updates) / (10 + updates))
        for fragment in self._stored():
            self.tensors[fragment.name].lerp_(fragment.tensors["param"], 1.0 - decay)

    def restore(self, lookup: Callable[[str, int, int], torch.Tensor]) -> None:
        """Restore the elements of this rank; ``lookup`` returns them by name, first element and number."""
        for name, tensor in self.tensors.items():
            tensor.copy_(lookup(name, self._starts[name], tensor.numel()))

    def complete(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the complete average of each parameter on the host, one at a time. A collective."""
        for name, parameter in trainable(self._engine):
            shape, own = shape_of(parameter), self.tensors.get(name)
            if self._ranks.size == 1 and own is not None:
                yield name, own.detach().to("cpu", copy=True).view(shape)
                continue
            whole = torch.zeros(shape.numel(), device=self._ranks.device)
            if own is not None:
                whole[self._starts[name] :][: own.numel()] = own
            yield name, self._ranks.sum(whole).view(shape).cpu()

    def _stored(self) -> Iterator[Fragment]:
        return stored_fragments(self._engine, self._ranks, moments=False)
