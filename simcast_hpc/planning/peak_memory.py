"""Peak memory of a training step without weights and gradients, computed without allocating it.

The storage of every tensor that an operator creates in forward and backward is counted while it is alive: saved
activations, recomputed activations and temporaries. On the meta device nothing is allocated; the operators are those of
CUDA. The partial sums within a kernel's operator are not counted.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .cuda_operators import cuda_operators
from .flops import output_tensors


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live storages; ``peak`` is the maximum so far."""

    def __init__(self, ignored: list[Tensor]):
        """Ignore the storages of ``ignored``."""
        super().__init__()
        self._known = {_storage_id(tensor) for tensor in ignored}
        self.current = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        key, storage = _storage_id(tensor), tensor.untyped_storage()
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size


def peak_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Return the peak number of bytes in a forward and backward pass of a squared error.

    The inputs are included. Weights are not, and the gradient of a weight only until it is complete: the engine
    manages it from then on.
    """
    hooks = [
        parameter.register_post_accumulate_grad_hook(_drop_grad)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    input_bytes = sum({_storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in inputs}.values())
    counter = LiveBytes([*model.parameters(), *model.buffers(), *inputs])
    try:
        with cuda_operators(), counter:
            outputs = [part.float() for part in output_tensors(model(*inputs))]
            loss = torch.stack([(part - torch.zeros_like(part)).square().mean() for part in outputs]).sum()
            del outputs
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return input_bytes + counter.peak


def _drop_grad(parameter: Tensor) -> None:
    parameter.grad = None


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
