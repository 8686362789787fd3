"""The most bytes that a training step holds at once besides weights and gradients, told without allocating them.

Every tensor that an operator makes is counted while its storage lives, through forward and backward: what autograd
keeps, what backward computes again, and what either needs for a moment. On the meta device nothing is allocated.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .flops import fused_attention, output_tensors


class LiveBytes(TorchDispatchMode):
    """Counts the storages of new tensors while they live; ``most`` is the largest sum so far."""

    def __init__(self, ignored: list[Tensor]):
        """Leave out the storages of ``ignored``."""
        super().__init__()
        self._known = {_key(tensor) for tensor in ignored}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and take in what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return made

    def _see(self, tensor: Tensor) -> None:
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._lose, key, size)

    def _lose(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Return the most bytes held at once in a forward and a backward pass of a squared error.

    The inputs count; weights do not, and a weight's gradient only until it is whole: what becomes of it then is the
    engine's affair.
    """
    hooks = [
        parameter.register_post_accumulate_grad_hook(_drop)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    given = sum({_key(tensor): tensor.untyped_storage().nbytes() for tensor in inputs}.values())
    counter = LiveBytes([*model.parameters(), *model.buffers(), *inputs])
    try:
        with fused_attention(), counter:
            outputs = [part.float() for part in output_tensors(model(*inputs))]
            loss = torch.stack([(part - torch.zeros_like(part)).square().mean() for part in outputs]).sum()
            del outputs
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return given + counter.most


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
