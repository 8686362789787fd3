"""CUDA graphs for inference: a forward pass or a sampling loop is captured once per input shape, then replayed.

A forward pass launches hundreds of kernels and twenty sampling steps launch thousands; on a small grid each kernel
finishes before Python has launched the next. A graph contains all constants and addresses of the captured run, so
inputs are copied into its input tensors, and its outputs are cloned.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
_MAX_GRAPHS = 2  # a full batch or chunk, and the remainder
Output = TypeVar("Output")
_Key = tuple[tuple[torch.Size, torch.dtype], ...]


class GraphCache:
    """Runs a function eagerly for a new input shape (the warm-up), and by a CUDA graph from the second call on.

    The function returns a tensor or a dataclass of tensors. Between calls of :meth:`clear` its result may depend on its
    arguments and on weights that change in place; other values, such as coefficients and seeds, must stay constant.
    If :meth:`run` gets the network, graphs are discarded when its weights move to other addresses. If capture fails, a
    warning is logged once and the function runs eagerly from then on.
    """

    def __init__(self, what: str = "the network", *, capture: "Callable[..., CapturedGraph] | None" = None):
        """Create an empty cache.

        Args:
            what: name of the function in log messages.
            capture: replaces :class:`CapturedGraph` and is used on all devices; for tests.
        """
        self._what = what
        self._capture, self._any_device = capture or CapturedGraph, capture is not None
        self._graphs: dict[_Key, CapturedGraph | None] = {}
        self._addresses: tuple[int, ...] = ()
        self._failed = False

    def clear(self) -> None:
        """Discard all graphs, because weights have moved or constants have changed."""
        self._graphs.clear()

    def run(self, function: Callable[..., Output], *inputs: Tensor, network: nn.Module | None = None) -> Output:
        """Return ``function(*inputs)`` in newly allocated tensors.

        Args:
            function: the function, the same one in all calls.
            *inputs: its arguments.
            network: network whose weights the function reads.
        """
        if self._failed or not (self._any_device or inputs[0].device.type == "cuda"):
            return function(*inputs)
        self._clear_if_moved(network)
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._graphs:
            while len(self._graphs) >= _MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = None
            return function(*inputs)
        graph = self._graphs.pop(key)
        if graph is None:
            try:
                graph = self._capture(function, [tensor.clone() for tensor in inputs])
            except RuntimeError as error:
                return self._run_eagerly(function, inputs, error)
        self._graphs[key] = graph  # at the end: the least recently used graph is evicted first
        return _clone(graph.replay(inputs))

    def _clear_if_moved(self, network: nn.Module | None) -> None:
        if network is None:
            return
        addresses = tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))
        if addresses != self._addresses:
            self.clear()
            self._addresses = addresses

    def _run_eagerly(self, function: Callable[..., Output], inputs: tuple[Tensor, ...], error: RuntimeError) -> Output:
        logger.warning("%s runs without a CUDA graph: %s", self._what, str(error).partition("\n")[0])
        self._failed = True
        self.clear()
        return function(*inputs)


class CapturedGraph:
    """A function captured as a CUDA graph, with its input and output tensors."""

    def __init__(self, function: Callable[..., Any], inputs: list[Tensor]):
        """Capture ``function`` on ``inputs``, which become the input tensors of the graph.

        Raises:
            RuntimeError: an operation cannot be captured, or memory ran out.
        """
        self._inputs, device = inputs, inputs[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                function(*inputs)  # libraries allocate their workspace per stream, outside the graph's memory pool
            torch.cuda.current_stream().wait_stream(stream)
            self._graph: Any = torch.cuda.CUDAGraph()
            # Other threads of the process, such as the watchdog of a collective, may call CUDA during capture.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._output = function(*inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return the function of ``inputs``, in tensors that the next replay overwrites."""
        for graph_input, value in zip(self._inputs, inputs, strict=True):
            graph_input.copy_(value)
        self._graph.replay()
        return self._output


def _clone(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    parts = {field.name: getattr(output, field.name).clone() for field in dataclasses.fields(output)}
    return dataclasses.replace(output, **parts)
