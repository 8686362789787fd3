"""Time sampler_step: the twin, the twin under torch.compile, and the op itself, in one run; a step has no backward.

    PYTHONPATH=kernels python -m benchmarks.sampler_step [--case NAME] [--device cpu]

On a CUDA device the op is its kernel, ``triton``. On a CPU it is ``reference``; with ``TRITON_INTERPRET=1`` small cases
also go through the interpreter, for the check alone.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.sampler_step_cases import SamplerStepCase
from benchmarks.harness import INTERPRETER, Benchmark, Provider, main
from simcast_kernels.dispatch import interpreter_is_on
from simcast_kernels.sampler_step import sampler_step
from simcast_kernels.sampler_step.reference import sampler_step_reference

INTERPRETER_ELEMENTS = 120_000


def tensors(case: SamplerStepCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments: latent, two predictions, the clean latent of the step before."""
    return tuple(case.tensors(device, seed=seed).values())


def exact(case: SamplerStepCase, noisy: Tensor, prediction: Tensor, unconditional: Tensor | None, history) -> Tensor:
    """Return the twin's next latent."""
    counters = case.counters(noisy.device)
    return sampler_step_reference(noisy, prediction, unconditional, history, counters=counters, **case.options)[0]


def providers(case: SamplerStepCase, device: str) -> Sequence[Provider]:
    """Return the providers that can run a case on a device, the twin first."""
    counters = case.counters(device)
    hits = torch.zeros((), dtype=torch.int64, device=device)

    def expression(noisy: Tensor, prediction: Tensor, unconditional: Tensor | None, history: Tensor | None) -> Tensor:
        made = sampler_step_reference(noisy, prediction, unconditional, history, counters=counters, **case.options)
        hits.add_(made[2])
        return made[0]

    def op(noisy: Tensor, prediction: Tensor, unconditional: Tensor | None, history: Tensor | None) -> Tensor:
        return sampler_step(
            noisy,
            prediction,
            unconditional=unconditional,
            history=history,
            counters=counters,
            hits=hits,
            with_clean=case.with_clean,
            **case.options,
        )[0]

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


BENCHMARK = Benchmark(
    op="sampler_step", tensors=tensors, providers=providers, exact=exact, differentiable=False
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
