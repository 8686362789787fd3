"""Time layer_norm_linear: PyTorch's norm and layers, those under torch.compile, and the op, in one run.

    PYTHONPATH=kernels python -m benchmarks.layer_norm_linear [--case NAME] [--mode full] [--device cpu]

The result is all layers' side by side, so that one gradient of it reaches every layer; putting them side by side is
timed with every provider alike. Timed is the gradient of x; the gradients of the layers are PyTorch's own products in
any case, and left out.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.cases.layer_norm_linear_cases import EPS, LayerNormLinearCase
from benchmarks.harness import INTERPRETER, Benchmark, Provider, main
from simcast_kernels.dispatch import interpreter_is_on
from simcast_kernels.layer_norm_linear import layer_norm_linear
from simcast_kernels.layer_norm_linear.reference import layer_norm_linear_reference

INTERPRETER_BYTES = 80_000
CPU_BYTES = 60_000_000
# The baselines round the normed tensor and, backward, its gradient to bfloat16; the op only the former.
SLACK = 2.0


def tensors(case: LayerNormLinearCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: x, the norm's weight and bias, layers' weights, layers' biases."""
    return tuple(case.tensors(device, seed=seed))


def exact(case: LayerNormLinearCase, *inputs: Any) -> Tensor:
    """Return the twin's results in float64."""
    x, norm_weight, norm_bias, weights, biases = inputs
    wide = [[tensor.double() for tensor in tensors] for tensors in (weights, biases)]
    return _together(layer_norm_linear_reference, x.double(), norm_weight.double(), norm_bias.double(), *wide)


def providers(case: LayerNormLinearCase, device: str) -> Sequence[Provider]:
    """Return the providers that can run a case on a device, the twin first."""
    if device == "cpu" and case.bytes_moved("forward") > CPU_BYTES:
        return []
    twin, op = (
        functools.partial(_together, layer_norm_linear_reference),
        functools.partial(_together, layer_norm_linear),
    )
    slack = SLACK if case.dtype == torch.bfloat16 else 1.0
    found = [
        Provider(name="twin", function=twin, slack=slack),
        Provider(name="compiled", function=_compiled(twin), slack=slack),
    ]
    if device == "cuda":
        return [*found, Provider(name="triton", function=op, body="triton", slack=slack)]
    found.append(Provider(name="reference", function=op, body="reference", slack=slack))
    if interpreter_is_on() and case.bytes_moved("forward") <= INTERPRETER_BYTES:
        found.append(Provider(name=INTERPRETER, function=op, body="triton", slack=slack))
    return found


def _together(function: Callable[..., list[Tensor]], *inputs: Any) -> Tensor:
    x, norm_weight, norm_bias, weights, biases = inputs
    return torch.cat(function(x, norm_weight, norm_bias, weights=weights, biases=biases, eps=EPS), dim=-1)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()  # every case has a shape of its own, and the compiler gives up after eight
    torch._functorch.config.donated_buffer = False  # a backward alone is timed again and again on one forward
    return torch.compile(function, dynamic=False, fullgraph=True)


BENCHMARK = Benchmark(op="layer_norm_linear", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
