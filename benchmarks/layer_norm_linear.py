"""Time layer_norm_linear: PyTorch norm and layers, torch.compile and the op in one run.

    PYTHONPATH=kernels python -m benchmarks.layer_norm_linear [--case NAME] [--mode full] [--device cpu]

The results of all layers are concatenated, so that one gradient reaches every layer; every provider's time includes the
concatenation. The backward pass computes the gradient of x; the gradients of the weights are PyTorch matmuls in every
provider and are not timed.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.layer_norm_linear_cases import EPS, LayerNormLinearCase
from benchmarks.harness import main
from benchmarks.providers import Benchmark, Provider, baselines, op_providers
from simcast_kernels.layer_norm_linear import layer_norm_linear
from simcast_kernels.layer_norm_linear.reference import layer_norm_linear_reference

INTERPRETER_BYTES = 80_000
CPU_BYTES = 60_000_000
# The baselines round the normalized tensor and its gradient to bfloat16; the op only the former.
SLACK = 2.0


def tensors(case: LayerNormLinearCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: x, weight and bias of the norm, weights and biases of the layers."""
    return tuple(case.tensors(device, seed=seed))


def exact(case: LayerNormLinearCase, *inputs: Any) -> Tensor:
    """Return the exact results in float64."""
    x, norm_weight, norm_bias, weights, biases = inputs
    wide = [[tensor.double() for tensor in tensors] for tensors in (weights, biases)]
    return _concatenated(layer_norm_linear_reference, x.double(), norm_weight.double(), norm_bias.double(), *wide)


def providers(case: LayerNormLinearCase, device: str) -> Sequence[Provider]:
    """Return the providers for a case and device, plain PyTorch first."""
    if device == "cpu" and case.bytes_moved("forward") > CPU_BYTES:
        return []
    expression = functools.partial(_concatenated, layer_norm_linear_reference)
    op = functools.partial(_concatenated, layer_norm_linear)
    slack = SLACK if case.dtype == torch.bfloat16 else 1.0
    interpret = case.bytes_moved("forward") <= INTERPRETER_BYTES
    return [*baselines(expression, slack=slack), *op_providers(op, device, interpret=interpret, slack=slack)]


def _concatenated(function: Callable[..., list[Tensor]], *inputs: Any) -> Tensor:
    x, norm_weight, norm_bias, weights, biases = inputs
    return torch.cat(function(x, norm_weight, norm_bias, weights=weights, biases=biases, eps=EPS), dim=-1)


BENCHMARK = Benchmark(op="layer_norm_linear", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
