"""``engine.cuda_graph``: the network's forward and backward pass as two CUDA graphs, which are launched as a whole.

A training step launches thousands of kernels; where they are short, the GPU waits for Python. A graph is captured at
the first call. It contains the addresses of inputs and weights and all numbers of the captured call, so shapes must be
constant (a run has one shape of micro-batches) and weights must stay in place (ZeRO 0, 1 and 2 update them in place).
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from simcast_hpc.config import ConfigError

from .compiled_networks import training_network

logger = logging.getLogger(__name__)
_WARM_UP_CALLS = 3  # cuDNN, cuBLAS and a compiler choose algorithms and allocate workspaces in the first calls


def capture_network(module: nn.Module) -> None:
    """Make the network of a stage's module run as CUDA graphs from its first training call on a CUDA device."""
    network = training_network(module)
    network.forward = GraphedForward(network)


class GraphedForward:
    """The forward method of a network that is captured at its first training call on a CUDA device.

    Calls without gradients, in evaluation mode or on another device run eagerly.
    """

    def __init__(self, network: nn.Module):
        """Keep the network and its own forward method."""
        self._network, self._eager = network, network.forward
        self._passes: _CapturedPasses | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the output of the network.

        Raises:
            ConfigError: the inputs have other shapes or dtypes than those of the first call, or cannot be captured.
        """
        if not (inputs[0].is_cuda and self._network.training and torch.is_grad_enabled()):
            return self._eager(*inputs)
        if self._passes is None or self._passes.has_moved():
            self._passes = _CapturedPasses(self._network, self._eager, inputs)
        return self._passes.run(inputs)


class _CapturedPasses:
    """The two graphs, and the tensors that they read and write."""

    def __init__(self, network: nn.Module, function: Any, inputs: Sequence[Tensor]):
        """Capture ``function``, the forward pass of ``network``, and its backward pass.

        Raises:
            ConfigError: an operation cannot be captured.
        """
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._buffers = list(network.buffers())
        self._inputs = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        self._sources = [tensor for tensor in self._inputs if tensor.requires_grad] + self._parameters
        self._addresses = self._current_addresses()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_CALLS):
                    leaves, _ = self._differentiable(function)
                    self._gradients(leaves, [torch.zeros_like(leaf) for leaf in leaves])
            torch.cuda.current_stream().wait_stream(stream)
            try:
                self._capture(function, stream)
            except RuntimeError as error:
                raise ConfigError(
                    f"engine.cuda_graph=true: the network cannot be captured ({str(error).partition(chr(10))[0]}); "
                    "set engine.cuda_graph=false"
                ) from error
        logger.info("captured the network as a CUDA graph for inputs of %s", _shapes(inputs))

    def _capture(self, function: Any, stream: Any) -> None:
        # Other threads of the process, such as the watchdog of a collective, may call CUDA during capture.
        options: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self._forward, **options):
            self._leaves, self._structure = self._differentiable(function)
        self._output_gradients = [torch.zeros_like(leaf) for leaf in self._leaves]
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), **options):
            self._input_gradients = self._gradients(self._leaves, self._output_gradients)
        self._leaves = [leaf.detach() for leaf in self._leaves]

    def _differentiable(self, function: Any) -> tuple[list[Tensor], Any]:
        leaves, structure = tree_flatten(function(*self._inputs))
        if not all(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            raise ConfigError("engine.cuda_graph=true: an output of the network has no gradient")
        return leaves, structure

    def _gradients(self, leaves: list[Tensor], grads: list[Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(leaves, self._sources, grads, allow_unused=True)

    def _current_addresses(self) -> tuple[int, ...]:
        return tuple(tensor.data_ptr() for tensor in (*self._parameters, *self._buffers))

    def has_moved(self) -> bool:
        """Return whether weights or buffers are at other addresses than those of the capture."""
        return self._current_addresses() != self._addresses

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Return the output of the network, in tensors that the next call overwrites."""
        if _shapes(inputs) != _shapes(self._inputs):
            raise ConfigError(
                f"engine.cuda_graph=true requires inputs of constant shapes: captured with {_shapes(self._inputs)}, "
                f"called with {_shapes(inputs)}; set engine.cuda_graph=false"
            )
        return tree_unflatten(_Replay.apply(self, *inputs, *self._parameters), self._structure)

    def replay_forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copy the inputs into the graph and return its outputs."""
        for graph_input, value in zip(self._inputs, inputs, strict=True):
            graph_input.detach().copy_(value)
        self._forward.replay()
        return tuple(leaf.detach() for leaf in self._leaves)

    def replay_backward(self, grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of all inputs and parameters."""
        for graph_input, value in zip(self._output_gradients, grads, strict=True):
            graph_input.copy_(value)
        self._backward.replay()
        # Autograd would accumulate into these tensors in place, and the next replay overwrites them.
        found = iter([None if grad is None else grad.clone() for grad in self._input_gradients])
        return [next(found) if one.requires_grad else None for one in (*self._inputs, *self._parameters)]

    @property
    def input_count(self) -> int:
        """Number of inputs of the network."""
        return len(self._inputs)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: _CapturedPasses, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.passes = passes
        return passes.replay_forward(tensors[: passes.input_count])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.passes.replay_backward(grads)


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{list(tensor.shape)} {tensor.dtype}".replace("torch.", "") for tensor in tensors)
