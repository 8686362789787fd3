"""Time group_norm_activation: PyTorch, torch.compile and the op in one run.

    PYTHONPATH=kernels python -m benchmarks.group_norm_activation [--case NAME] [--mode full] [--device cpu]

On a CUDA device the op runs its kernel, ``triton``. On a CPU it runs its reference, ``reference``; with
``TRITON_INTERPRET=1`` small cases also run in the interpreter, only to check the result. PyTorch gets the same
channels-last tensors, computes in their dtype, and returns channels-last memory, as the next convolution needs it.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.group_norm_activation_cases import GroupNormActivationCase
from benchmarks.harness import main
from benchmarks.providers import INTERPRETER_ELEMENTS, Benchmark, Provider, baselines, op_providers
from simcast_kernels.group_norm_activation import group_norm_activation
from simcast_kernels.group_norm_activation.reference import group_norm_activation_reference


def tensors(case: GroupNormActivationCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: features, weight, bias, and the sum of branches if present."""
    return tuple(case.tensors(device, seed=seed).values())


def exact(case: GroupNormActivationCase, *arguments: Tensor) -> Tensor:
    """Return the result in float64."""
    x, weight, bias, *total = (argument.double() for argument in arguments)
    return group_norm_activation_reference(x, weight, bias, **case.settings, total=total[0] if total else None)


def providers(case: GroupNormActivationCase, device: str) -> Sequence[Provider]:
    """Return the providers for a case and device, plain PyTorch first."""

    def expression(x: Tensor, weight: Tensor, bias: Tensor, total: Tensor | None = None) -> Tensor:
        normed = F.group_norm(x, case.groups, weight, bias)
        active = F.silu(normed) if case.activation == "silu" else F.leaky_relu(normed, case.slope)
        return (active if total is None else total + active).contiguous(memory_format=torch.channels_last)

    def op(x: Tensor, weight: Tensor, bias: Tensor, total: Tensor | None = None) -> Tensor:
        return group_norm_activation(x, weight, bias, **case.settings, total=total)

    interpret = case.numel <= INTERPRETER_ELEMENTS
    return [*baselines(expression), *op_providers(op, device, interpret=interpret)]


BENCHMARK = Benchmark(op="group_norm_activation", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
