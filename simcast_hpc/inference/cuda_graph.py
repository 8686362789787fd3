"""A network without gradients, or a sampler's loop around one, as a CUDA graph: recorded once a size, then replayed.

A forward pass is hundreds of launches, twenty steps of a sampler are thousands, and a small grid is done with each
sooner than Python comes up with the next. A graph bakes in every number and address of what it recorded; so inputs are
copied to where it reads them, and what it wrote is copied away.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
_MOST = 2  # a full batch or chunk, and the rest
Made = TypeVar("Made")
_Key = tuple[tuple[torch.Size, torch.dtype], ...]


class Graphs:
    """Runs one function on tensors of any size: as it is at first, which warms up, from the second time by a graph.

    What is run is a function of its tensors alone, and returns a tensor or a dataclass of tensors. What stands behind
    it stays as it is until :meth:`clear`: coefficients and seeds altogether, weights at least in their place; where
    ``run`` is told of the network, moved weights are noticed. Where recording fails it is said once, and the function
    runs as it is from then on.
    """

    def __init__(self, what: str = "the network", *, record: "Callable[..., Recorded] | None" = None):
        """Speak of ``what`` in messages. ``record`` takes the place of a CUDA graph, on any device; for tests."""
        self._what = what
        self._record, self._anywhere = record or Recorded, record is not None
        self._held: dict[_Key, Recorded | None] = {}
        self._places: tuple[int, ...] = ()
        self._failed = False

    def clear(self) -> None:
        """Forget all graphs: what they read or computed with has moved or changed."""
        self._held.clear()

    def run(self, function: Callable[..., Made], *inputs: Tensor, network: nn.Module | None = None) -> Made:
        """Return what ``function(*inputs)`` does, in tensors that stay the caller's; ``network`` are its weights."""
        if self._failed or not (self._anywhere or inputs[0].device.type == "cuda"):
            return function(*inputs)
        self._forget_if_moved(network)
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._held:
            while len(self._held) >= _MOST:
                del self._held[next(iter(self._held))]
            self._held[key] = None
            return function(*inputs)
        recorded = self._held.pop(key)
        if recorded is None:
            try:
                recorded = self._record(function, [tensor.clone() for tensor in inputs])
            except RuntimeError as error:
                return self._without(function, inputs, error)
        self._held[key] = recorded  # behind the others: the one used longest ago is the first to go
        return _copied(recorded.replay(inputs))

    def _forget_if_moved(self, network: nn.Module | None) -> None:
        if network is None:
            return
        places = tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))
        if places != self._places:
            self.clear()
            self._places = places

    def _without(self, function: Callable[..., Made], inputs: tuple[Tensor, ...], error: RuntimeError) -> Made:
        logger.warning("%s runs without a CUDA graph: %s", self._what, str(error).partition("\n")[0])
        self._failed = True
        self.clear()
        return function(*inputs)


class Recorded:
    """A function recorded as a CUDA graph, with the tensors that it reads and writes."""

    def __init__(self, function: Callable[..., Any], inputs: list[Tensor]):
        """Record ``function`` on ``inputs``, which become its own.

        Raises:
            RuntimeError: something in it cannot be recorded, or memory ran out.
        """
        self._inputs, device = inputs, inputs[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                function(*inputs)  # libraries set up what they hold for each stream, outside of the graph's memory
            torch.cuda.current_stream().wait_stream(stream)
            self._graph: Any = torch.cuda.CUDAGraph()
            # Other threads of the process, such as that of a collective's watchdog, may go on with CUDA meanwhile.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._made = function(*inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return what the function makes of ``inputs``, in tensors that the next replay writes anew."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._made


def _copied(made: Any) -> Any:
    if isinstance(made, Tensor):
        return made.clone()
    parts = {field.name: getattr(made, field.name).clone() for field in dataclasses.fields(made)}
    return dataclasses.replace(made, **parts)
