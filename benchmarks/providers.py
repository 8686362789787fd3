"""Providers of an op in a benchmark: the ways to compute it, and the check against the reference in float64."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.cases import Case
from simcast_kernels.dispatch import VARIABLE, interpreter_is_on

RMS_RATIO = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
INTERPRETER = "interpreter"
OURS = ("triton", "reference", INTERPRETER)  # names of the providers that call the op itself
EAGER = ("eager", "pytorch")  # plain PyTorch: the first of these that a case has
INTERPRETER_ELEMENTS = 120_000  # largest case of a pointwise op that the interpreter runs


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One way to compute an op: ``function(*tensors)`` with the tensors of :class:`Benchmark`, differentiable.

    ``implementation`` is the value of ``SIMCAST_KERNELS`` during its calls. A provider named ``interpreter`` is checked
    and printed without a bandwidth: its time does not predict a GPU's. ``slack`` multiplies the allowed error.
    """

    name: str
    function: Callable[..., Tensor]
    implementation: str = ""
    slack: float = 1.0


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``torch.compile`` of a function for one shape."""
    torch.compiler.reset()  # one shape per case; the compiler stops recompiling after eight
    torch._functorch.config.donated_buffer = False  # one forward pass is differentiated repeatedly
    return functools.wraps(function)(torch.compile(function, dynamic=False, fullgraph=True))


def op_providers(
    function: Callable[..., Tensor], device: str, *, interpret: bool, slack: float = 1.0
) -> list[Provider]:
    """Return the providers of an op's public function: its kernel on CUDA, its reference on a CPU.

    With ``interpret`` and ``TRITON_INTERPRET=1``, also the kernel in the interpreter.
    """
    if device == "cuda":
        return [Provider(name="triton", function=function, implementation="triton", slack=slack)]
    result = [Provider(name="reference", function=function, implementation="reference", slack=slack)]
    if interpret and interpreter_is_on():
        result.append(Provider(name=INTERPRETER, function=function, implementation="triton", slack=slack))
    return result


def baselines(expression: Callable[..., Tensor], *, slack: float = 1.0) -> list[Provider]:
    """Return plain PyTorch and ``torch.compile`` of it as providers."""
    return [
        Provider(name="pytorch", function=expression, slack=slack),
        Provider(name="compiled", function=compiled(expression), slack=slack),
    ]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """An op to time.

    Attributes:
        op: its name; its cases are in ``benchmarks.cases``.
        tensors: ``(case, device, seed)`` to a provider's arguments; gradients are with respect to the first.
        providers: ``(case, device)`` to the providers that can run there, plain PyTorch first.
        exact: ``(case, *tensors)`` to the result of the reference; called with the first tensor in float64.
        differentiable: whether it has a backward pass to check and to time.
    """

    op: str
    tensors: Callable[[Any, str, int], tuple[Any, ...]]
    providers: Callable[[Any, str], Sequence[Provider]]
    exact: Callable[..., Tensor]
    differentiable: bool = True


class WrongResultError(Exception):
    """The result of a provider differs from that of the reference."""


@contextlib.contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Let every op called inside run the implementation ``name`` (``reference``, ``triton``, or "" for the default)."""
    before = os.environ.pop(VARIABLE, None)
    if name:
        os.environ[VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def grouped(providers: Sequence[Provider], group: str) -> list[Provider]:
    """Return the providers of a group, the op itself first; see :func:`run_case`."""
    names = {provider.name for provider in providers}
    first = {*OURS, *[name for name in EAGER if name in names][:1]}
    chosen = [p for p in providers if group == "all" or (p.name in first) == (group == "first")]
    return sorted(chosen, key=lambda provider: provider.name not in OURS)


Compared = list[tuple[str, Tensor]]


def exact_results(benchmark: Benchmark, case: Case, tensors: tuple[Any, ...]) -> Compared:
    """Return the result of the reference in float64 and, if differentiable, its gradient, each with its name."""
    leaf = tensors[0].detach().double().requires_grad_(benchmark.differentiable)
    exact = benchmark.exact(case, leaf, *tensors[1:])
    compared = [("result", exact.detach())]
    if benchmark.differentiable:
        compared.append(("gradient", torch.autograd.grad(exact, leaf, grad_output(exact))[0]))
    return compared


def check(
    benchmark: Benchmark,
    case: Case,
    provider: Provider,
    tensors: tuple[Any, ...],
    *,
    wanted: Compared | None = None,
) -> None:
    """Compare result and gradient of a provider with the reference in float64, computed here unless it is ``wanted``.

    Raises:
        WrongResultError: the RMS error exceeds 1e-6 (float32) or 5e-3 (bfloat16) times the RMS of the result, times
            the provider's ``slack``.
    """
    wanted = exact_results(benchmark, case, tensors) if wanted is None else wanted
    result = provider.function(*tensors)
    found = [result]
    if benchmark.differentiable:
        factor = grad_output(wanted[0][1])
        found += torch.autograd.grad(result, tensors[0], factor.to(result.dtype))
    for (what, want), got in zip(wanted, found, strict=True):
        error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
        limit = provider.slack * RMS_RATIO[got.dtype]
        if not error.item() < limit:  # also rejects NaN
            raise WrongResultError(
                f"{benchmark.op}, {provider.name}, {case.name}: RMS error ratio of the {what} {error.item():.3g}, "
                f"it must be below {limit:.3g}; not timed"
            )


def grad_output(result: Tensor) -> Tensor:
    """Return a random gradient of a result, the same for every provider."""
    generator = torch.Generator(result.device).manual_seed(0)
    if result.ndim == 0:
        return torch.full_like(result, 0.5).detach()
    return torch.randn(result.shape, dtype=result.dtype, device=result.device, generator=generator)
