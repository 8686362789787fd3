"""Time bias_activation: PyTorch, torch.compile and the op in one run.

    PYTHONPATH=kernels python -m benchmarks.bias_activation [--case NAME] [--mode full] [--device cpu]

On a CUDA device the op runs its kernel, ``triton``. On a CPU it runs its reference, ``reference``; with
``TRITON_INTERPRET=1`` small cases also run in the interpreter, only to check the result. PyTorch computes in the dtype
of its tensors. Its dropout has another mask, which is multiplied in from a table of bytes as PyTorch's own does in the
backward pass; drawing it costs PyTorch more, so its time is a lower bound.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.bias_activation_cases import BiasActivationCase
from benchmarks.harness import main
from benchmarks.providers import INTERPRETER_ELEMENTS, Benchmark, Provider, baselines, op_providers
from simcast_kernels.bias_activation import bias_activation
from simcast_kernels.bias_activation.checks import DROPOUT_STEPS, drop_below
from simcast_kernels.bias_activation.reference import bias_activation_reference, keep_mask


def tensors(case: BiasActivationCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: x, then bias, residual and the mask that only PyTorch reads, if present."""
    arguments = tuple(case.tensors(device, seed=seed).values())
    if not case.dropout:
        return arguments
    shape = torch.Size(case.shape)
    return *arguments, keep_mask(shape, dropout=case.dropout, seed=case.seed, device=torch.device(device))


def named(case: BiasActivationCase, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return arguments by name."""
    names = ["x", *(["bias"] if case.biased else []), *(["residual"] if case.summed else [])]
    names += ["mask"] if case.dropout else []
    return dict(zip(names, arguments, strict=True))


def of_operator(case: BiasActivationCase, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the arguments of the operator by name; it computes the mask itself."""
    return {name: argument for name, argument in named(case, arguments).items() if name != "mask"}


def exact(case: BiasActivationCase, *arguments: Tensor) -> Tensor:
    """Return the result in float64."""
    doubles = [argument.double() for argument in arguments]
    return bias_activation_reference(**of_operator(case, doubles), **case.settings)


def providers(case: BiasActivationCase, device: str) -> Sequence[Provider]:
    """Return the providers for a case and device, plain PyTorch first."""

    def expression(*arguments: Tensor) -> Tensor:
        found = named(case, arguments)
        active = found["x"] + found["bias"] if case.biased else found["x"]
        if case.activation in ("gelu", "gelu_tanh"):
            active = F.gelu(active, approximate="none" if case.activation == "gelu" else "tanh")
        elif case.activation != "none":
            active = F.silu(active) if case.activation == "silu" else F.leaky_relu(active, case.slope)
        if case.dropout:
            active = active * found["mask"] * (DROPOUT_STEPS / (DROPOUT_STEPS - drop_below(case.dropout)))
        return found["residual"] + active if case.summed else active

    def op(*arguments: Tensor) -> Tensor:
        return bias_activation(**of_operator(case, arguments), **case.settings)

    interpret = case.numel <= INTERPRETER_ELEMENTS
    return [*baselines(expression, slack=2.0), *op_providers(op, device, interpret=interpret)]


BENCHMARK = Benchmark(op="bias_activation", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
