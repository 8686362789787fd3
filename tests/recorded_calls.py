"""What tests of CUDA graphs need where there is no CUDA: who would wait, and a graph that is none."""

import dataclasses
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OnMeta(TorchDispatchMode):
    """Refuses every operation that another device takes part in: on a GPU the host would wait, or be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if {tensor.device.type for tensor in tensors} - {"meta"}:
            raise AssertionError(f"{func} leaves the device")
        self.seen += 1
        return out


class Replayed:
    """What a CUDA graph does, on any device: runs on the tensors it was recorded on, and writes where it wrote."""

    made = 0

    def __init__(self, function: Any, held: list[Tensor]):
        self.function, self.held, self.out = function, held, function(*held)
        type(self).made += 1

    def replay(self, given: tuple[Tensor, ...]) -> Any:
        for own, new in zip(self.held, given, strict=True):
            own.copy_(new)
        for own, new in zip(_tensors(self.out), _tensors(self.function(*self.held)), strict=True):
            own.copy_(new)
        return self.out


def _tensors(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else [getattr(made, field.name) for field in dataclasses.fields(made)]
