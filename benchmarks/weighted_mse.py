"""Time weighted_mse: PyTorch, torch.compile and the op in one run.

    PYTHONPATH=kernels python -m benchmarks.weighted_mse [--case NAME] [--mode full] [--device cpu]

On a CUDA device the op runs its kernel, ``triton``. On a CPU it runs its reference, ``reference``, as in training; with
``TRITON_INTERPRET=1`` small cases also run in the interpreter, only to check the result.
"""

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.cases.weighted_mse_cases import WeightedMseCase
from benchmarks.harness import main
from benchmarks.providers import INTERPRETER_ELEMENTS, Benchmark, Provider, baselines, op_providers
from simcast_kernels.weighted_mse import weighted_mse
from simcast_kernels.weighted_mse.reference import weighted_mse_reference


def tensors(case: WeightedMseCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: prediction, target, mask."""
    return case.tensors(device, seed=seed)


def exact(case: WeightedMseCase, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return the exact loss."""
    return weighted_mse_reference(prediction, target, mask=mask, **case.table)


def providers(case: WeightedMseCase, device: str) -> Sequence[Provider]:
    """Return the providers for a case and device, plain PyTorch first."""

    def expression(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return weighted_mse_reference(prediction, target, mask=mask, **case.table)

    def op(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return weighted_mse(prediction, target, mask=mask, **case.table)

    interpret = case.numel <= INTERPRETER_ELEMENTS
    return [*baselines(expression), *op_providers(op, device, interpret=interpret)]


BENCHMARK = Benchmark(op="weighted_mse", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
