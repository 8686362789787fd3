"""The loop of a sampler as a CUDA graph: recorded once for a chunk's size, and replayed without Python in between.

Twenty steps of a network are thousands of launches, each of which a small latent outruns. A graph bakes in every number
and address of what it recorded; so inputs are copied to where it reads them, and what it wrote is copied away.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .sampling import Drawn

logger = logging.getLogger("simcast")
Loop = Callable[..., Drawn]
_MOST = 2  # a full chunk, and the rest of an ensemble
_Key = tuple[tuple[torch.Size, torch.dtype], ...]


class LoopGraphs:
    """Runs one loop on tensors of any size: as it is at first, which warms up, and from the second time by a graph.

    The loop is a function of its tensors alone: weights, coefficients and seeds behind it must stay as and where they
    are, until :meth:`clear`. Where recording fails it is said once, and the loop runs as it is from then on.
    """

    def __init__(self, *, record: "Callable[[Loop, list[Tensor]], Recorded] | None" = None):
        """Use ``record`` in place of a CUDA graph, on any device; for tests."""
        self._record, self._anywhere = record or Recorded, record is not None
        self._held: dict[_Key, Recorded | None] = {}
        self._failed = False

    def clear(self) -> None:
        """Forget all graphs: what they read or computed with has moved or changed."""
        self._held.clear()

    def run(self, loop: Loop, *inputs: Tensor) -> Drawn:
        """Return what ``loop(*inputs)`` does, in tensors that stay the caller's."""
        if self._failed or not (self._anywhere or inputs[0].device.type == "cuda"):
            return loop(*inputs)
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._held:
            while len(self._held) >= _MOST:
                del self._held[next(iter(self._held))]
            self._held[key] = None
            return loop(*inputs)
        recorded = self._held.pop(key)
        if recorded is None:
            try:
                recorded = self._record(loop, [tensor.clone() for tensor in inputs])
            except RuntimeError as error:
                return self._without(loop, inputs, error)
        self._held[key] = recorded  # behind the others: the one used longest ago is the first to go
        return recorded.replay(inputs)

    def _without(self, loop: Loop, inputs: tuple[Tensor, ...], error: RuntimeError) -> Drawn:
        logger.warning("the sampling loop runs without a CUDA graph: %s", str(error).partition("\n")[0])
        self._failed = True
        self.clear()
        return loop(*inputs)


class Recorded:
    """A loop recorded as a CUDA graph, with the tensors that it reads and writes."""

    def __init__(self, loop: Loop, inputs: list[Tensor]):
        """Record ``loop`` on ``inputs``, which become its own.

        Raises:
            RuntimeError: something in it cannot be recorded, or memory ran out.
        """
        self._inputs, device = inputs, inputs[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loop(*inputs)  # libraries set up what they hold for each stream, outside of the graph's memory
            torch.cuda.current_stream().wait_stream(stream)
            self._graph: Any = torch.cuda.CUDAGraph()
            # Other threads of the process, such as that of a collective's watchdog, may go on with CUDA meanwhile.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._drawn = loop(*inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> Drawn:
        """Return what the loop makes of ``inputs``."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        made = self._drawn
        return Drawn(made.latents.clone(), made.clip_rate.clone(), made.broken.clone())
