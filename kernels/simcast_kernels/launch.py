"""One kernel launch as data, so that what a call runs is what the ahead-of-time compile driver compiles."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A jitted kernel with its grid, its run-time arguments and its options.

    ``arguments`` are passed by position; ``options`` hold the kernel's ``constexpr`` values and the launch options
    (``num_warps``, ``num_stages``). Tensors may be on ``meta``: such a launch can be compiled, not run. A launch that
    is not ``dispatched`` is a candidate that is compiled and shown, but that no call takes.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    dispatched: bool = True

    def run(self) -> None:
        """Start the kernel on the device, and on the current stream there, of its first tensor argument."""
        device = next(a.device for a in self.arguments if isinstance(a, torch.Tensor))
        # Triton launches on the current device, which need not be the tensors' own where a process sees several.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](*self.arguments, **self.options)
