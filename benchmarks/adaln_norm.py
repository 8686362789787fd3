"""Time adaln_norm: PyTorch, torch.compile and the op in one run.

    PYTHONPATH=kernels python -m benchmarks.adaln_norm [--case NAME] [--mode full] [--device cpu]

On a CUDA device the op runs its kernel, ``triton``. On a CPU it runs its reference, ``reference``; with
``TRITON_INTERPRET=1`` small cases also run in the interpreter, only to check the result. The backward pass is that of
the modulated tokens.
"""

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.cases.adaln_norm_cases import AdalnNormCase
from benchmarks.harness import main
from benchmarks.providers import INTERPRETER_ELEMENTS, Benchmark, Provider, baselines, op_providers
from simcast_kernels.adaln_norm import adaln_norm
from simcast_kernels.adaln_norm.reference import adaln_norm_reference


def tensors(case: AdalnNormCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: stream, shift, scale, and branch and gate if present."""
    return tuple(case.tensors(device, seed=seed).values())


def exact(case: AdalnNormCase, x: Tensor, shift: Tensor, scale: Tensor, branch=None, gate=None) -> Tensor:
    """Return the modulated tokens in float64."""
    wide = (None if t is None else t.double() for t in (branch, gate))
    branch, gate = wide
    return adaln_norm_reference(x, shift.double(), scale.double(), branch=branch, gate=gate)[0]


def providers(case: AdalnNormCase, device: str) -> Sequence[Provider]:
    """Return the providers for a case and device, plain PyTorch first."""

    def expression(x: Tensor, shift: Tensor, scale: Tensor, branch=None, gate=None) -> Tensor:
        return adaln_norm_reference(x, shift, scale, branch=branch, gate=gate)[0]

    def op(x: Tensor, shift: Tensor, scale: Tensor, branch=None, gate=None) -> Tensor:
        return adaln_norm(x, shift, scale, branch=branch, gate=gate)[0]

    interpret = case.numel <= INTERPRETER_ELEMENTS
    return [*baselines(expression), *op_providers(op, device, interpret=interpret)]


BENCHMARK = Benchmark(op="adaln_norm", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
