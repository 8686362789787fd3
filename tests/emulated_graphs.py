"""Stand-ins for a CUDA device in tests: detection of host synchronization, and an emulated CUDA graph."""

import dataclasses
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MetaDeviceOnly(TorchDispatchMode):
    """Rejects operations with tensors of another device than ``meta``: on a GPU they would synchronize with the host.

    Attributes:
        operations: number of operations seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if {tensor.device.type for tensor in tensors} - {"meta"}:
            raise AssertionError(f"{func} leaves the device")
        self.operations += 1
        return out


class EmulatedGraph:
    """Emulates a CUDA graph on any device: reads fixed input tensors and writes fixed output tensors.

    Attributes:
        captures: number of graphs captured, a class attribute.
    """

    captures = 0

    def __init__(self, function: Any, inputs: list[Tensor]):
        self.function, self.inputs, self.output = function, inputs, function(*inputs)
        type(self).captures += 1

    def replay(self, inputs: tuple[Tensor, ...]) -> Any:
        for graph_input, value in zip(self.inputs, inputs, strict=True):
            graph_input.copy_(value)
        for graph_output, value in zip(_tensors(self.output), _tensors(self.function(*self.inputs)), strict=True):
            graph_output.copy_(value)
        return self.output


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [getattr(output, field.name) for field in dataclasses.fields(output)]
