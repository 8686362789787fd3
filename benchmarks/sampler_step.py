"""Time sampler_step: PyTorch, torch.compile and the op in one run; a step has no backward.

    PYTHONPATH=kernels python -m benchmarks.sampler_step [--case NAME] [--device cpu]

On a CUDA device the op runs its kernel, ``triton``. On a CPU it runs its reference, ``reference``; with
``TRITON_INTERPRET=1`` small cases also run in the interpreter, only to check the result.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.sampler_step_cases import SamplerStepCase
from benchmarks.harness import main
from benchmarks.providers import INTERPRETER_ELEMENTS, Benchmark, Provider, baselines, op_providers
from simcast_kernels.sampler_step import sampler_step
from simcast_kernels.sampler_step.reference import sampler_step_reference


def tensors(case: SamplerStepCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: latent, two predictions, the clean latents of the previous two steps."""
    return tuple(case.tensors(device, seed=seed).values())


def exact(
    case: SamplerStepCase,
    noisy: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    history: Tensor | None,
    earlier: Tensor | None,
) -> Tensor:
    """Return the exact next latent."""
    counters = case.counters(noisy.device)
    return sampler_step_reference(
        noisy, prediction, unconditional, history, earlier, counters=counters, **case.options
    )[0]


def providers(case: SamplerStepCase, device: str) -> Sequence[Provider]:
    """Return the providers for a case and device, plain PyTorch first."""
    counters = case.counters(device)
    hits = torch.zeros((), dtype=torch.int64, device=device)

    def expression(
        noisy: Tensor,
        prediction: Tensor,
        unconditional: Tensor | None,
        history: Tensor | None,
        earlier: Tensor | None,
    ) -> Tensor:
        result = sampler_step_reference(
            noisy, prediction, unconditional, history, earlier, counters=counters, **case.options
        )
        hits.add_(result[2])
        return result[0]

    def op(
        noisy: Tensor,
        prediction: Tensor,
        unconditional: Tensor | None,
        history: Tensor | None,
        earlier: Tensor | None,
    ) -> Tensor:
        return sampler_step(
            noisy,
            prediction,
            unconditional=unconditional,
            history=history,
            earlier=earlier,
            counters=counters,
            hits=hits,
            with_clean=case.with_clean,
            **case.options,
        )[0]

    interpret = case.numel <= INTERPRETER_ELEMENTS
    return [*baselines(expression), *op_providers(op, device, interpret=interpret)]


BENCHMARK = Benchmark(
    op="sampler_step", tensors=tensors, providers=providers, exact=exact, differentiable=False
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
