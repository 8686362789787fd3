"""CUDA graphs on the emulated device: operators are recorded, and replayed into the same memory.

While a graph is captured, the device raises the error of CUDA for everything that synchronizes it with the host.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_set_capturing: Callable[[bool], None] | None = None
_capturing = False


def is_capturing() -> bool:
    """Return whether a graph is being captured."""
    return _capturing


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output


class EmulatedGraph:
    """Replaces ``torch.cuda.CUDAGraph``."""

    def __init__(self, *_: Any, **__: Any):
        self.recorder = _Recorder()

    def replay(self) -> None:
        """Run the recorded operators again; their results are written into the tensors of the capture."""
        for func, args, kwargs, output in self.recorder.calls:
            result = func(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(result), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def reset(self) -> None:
        """Discard the recorded operators."""
        self.recorder = _Recorder()

    def pool(self) -> tuple[int, int]:
        """Return a memory pool, which has no meaning here."""
        return (0, 0)


class EmulatedCapture:
    """Replaces ``torch.cuda.graph``."""

    def __init__(self, graph: EmulatedGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"):
        self.graph = graph

    def __enter__(self) -> None:
        self._set(True)
        self.graph.recorder.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.graph.recorder.__exit__(*error)
        self._set(False)

    @staticmethod
    def _set(on: bool) -> None:
        global _capturing
        _capturing = on
        assert _set_capturing is not None, "install was not called"
        _set_capturing(on)


def install(set_capturing: Callable[[bool], None]) -> None:
    """Replace the graphs of ``torch.cuda``; ``set_capturing`` tells the device."""
    global _set_capturing
    _set_capturing = set_capturing
    cuda: Any = torch.cuda
    cuda.CUDAGraph, cuda.graph, cuda.is_current_stream_capturing = EmulatedGraph, EmulatedCapture, is_capturing
