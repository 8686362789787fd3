"""Time adaln_norm: the twin, the twin under torch.compile, and the op itself, in one run.

    PYTHONPATH=kernels python -m benchmarks.adaln_norm [--case NAME] [--mode full] [--device cpu]

On a CUDA device the op is its kernel, ``triton``. On a CPU it is ``reference``; with ``TRITON_INTERPRET=1`` small cases
also go through the interpreter, for the check alone. The backward is that of the modulated tokens.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.adaln_norm_cases import AdalnNormCase
from benchmarks.harness import INTERPRETER, Benchmark, Provider, main
from simcast_kernels.adaln_norm import adaln_norm
from simcast_kernels.adaln_norm.reference import adaln_norm_reference
from simcast_kernels.dispatch import interpreter_is_on

INTERPRETER_ELEMENTS = 120_000


def tensors(case: AdalnNormCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: stream, shift, scale, and branch and gate where there are any."""
    return tuple(case.tensors(device, seed=seed).values())


def exact(case: AdalnNormCase, x: Tensor, shift: Tensor, scale: Tensor, branch=None, gate=None) -> Tensor:
    """Return the twin's modulated tokens in float64."""
    wide = (None if t is None else t.double() for t in (branch, gate))
    branch, gate = wide
    return adaln_norm_reference(x, shift.double(), scale.double(), branch=branch, gate=gate)[0]


def providers(case: AdalnNormCase, device: str) -> Sequence[Provider]:
    """Return the providers that can run a case on a device, the twin first."""

    def expression(x: Tensor, shift: Tensor, scale: Tensor, branch=None, gate=None) -> Tensor:
        return adaln_norm_reference(x, shift, scale, branch=branch, gate=gate)[0]

    def op(x: Tensor, shift: Tensor, scale: Tensor, branch=None, gate=None) -> Tensor:
        return adaln_norm(x, shift, scale, branch=branch, gate=gate)[0]

    found = [Provider(name="twin", function=expression), Provider(name="compiled", function=_compiled(expression))]
    if device == "cuda":
        return [*found, Provider(name="triton", function=op, body="triton")]
    found.append(Provider(name="reference", function=op, body="reference"))
    if interpreter_is_on() and case.numel <= INTERPRETER_ELEMENTS:
        found.append(Provider(name=INTERPRETER, function=op, body="triton"))
    return found


def _compiled(expression):
    torch.compiler.reset()  # every case has a shape of its own, and the compiler gives up after eight
    return functools.wraps(expression)(torch.compile(expression, dynamic=False, fullgraph=True))


BENCHMARK = Benchmark(op="adaln_norm", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
