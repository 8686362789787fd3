"""Time the providers of an op: check the results, then measure time, bytes and the fraction of the roofline.

The benchmark of an op is a file of the op's name that describes its providers in a :class:`Benchmark` and passes it to
:func:`main`. A provider whose result differs from the float64 reference is rejected and not timed. Inputs rotate
through several sets, so that the L2 cache of a GPU is not measured instead of its memory. On a GPU every mode is timed
twice: call by call, including launch overhead, and, as ``<mode>/graph``, replayed from a CUDA graph. The bandwidth of a
copy and the rate of a large matmul are measured in the same run; they define the roofline, and a provider's share of
its limit, by bytes or by FLOPs of matmuls, shows how close to the floor it is.
"""

import argparse
import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.cases import Case, op_cases
from benchmarks.measurements import machine, print_table, read_rows, write_rows
from benchmarks.timing import Roofline, measured_roofline, quantile, set_count, time_calls, time_graph
from simcast_kernels.dispatch import VARIABLE, interpreter_is_on

MODES = ("forward", "backward", "full")
RMS_RATIO = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
INTERPRETER = "interpreter"
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


def run_case(
    benchmark: Benchmark, case: Case, *, device: str, modes: Sequence[str], roofline: Roofline
) -> Iterator[dict[str, Any]]:
    """Check each provider of one case, time those with correct results and yield their rows.

    Raises:
        WrongResultError: the result of a provider is wrong; raised after the others were timed.
    """
    sets = [benchmark.tensors(case, device, seed) for seed in range(set_count(case.bytes_moved("forward"), device))]
    for tensors in sets:
        tensors[0].requires_grad_(benchmark.differentiable)
    modes = [mode for mode in modes if benchmark.differentiable or mode == "forward"]
    wrong = []
    for provider in benchmark.providers(case, device):
        rows = []
        with use_implementation(provider.implementation):
            try:
                check(benchmark, case, provider, sets[0])
            except WrongResultError as error:
                wrong.append(str(error))
                continue
            for mode in modes:
                for suffix, times in _times(provider, mode, sets, device=device):
                    rows.append(
                        _row(benchmark.op, provider, case, mode, suffix, times, device=device, roofline=roofline)
                    )
        yield from rows
    if wrong:
        raise WrongResultError("; ".join(wrong))


def check(benchmark: Benchmark, case: Case, provider: Provider, tensors: tuple[Any, ...]) -> None:
    """Compare result and gradient of a provider with the reference in float64.

    Raises:
        WrongResultError: the RMS error exceeds 1e-6 (float32) or 5e-3 (bfloat16) times the RMS of the result, times
            the provider's ``slack``.
    """
    leaf = tensors[0].detach().double().requires_grad_(benchmark.differentiable)
    exact = benchmark.exact(case, leaf, *tensors[1:])
    result = provider.function(*tensors)
    compared = [("result", result, exact)]
    if benchmark.differentiable:
        factor = _grad_output(exact)
        (exact_gradient,) = torch.autograd.grad(exact, leaf, factor)
        (gradient,) = torch.autograd.grad(result, tensors[0], factor.to(result.dtype))
        compared.append(("gradient", gradient, exact_gradient))
    for what, got, want in compared:
        error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
        limit = provider.slack * RMS_RATIO[got.dtype]
        if not error.item() < limit:  # also rejects NaN
            raise WrongResultError(
                f"{benchmark.op}, {provider.name}, {case.name}: RMS error ratio of the {what} {error.item():.3g}, "
                f"it must be below {limit:.3g}; not timed"
            )


def _grad_output(result: Tensor) -> Tensor:
    generator = torch.Generator(result.device).manual_seed(0)
    if result.ndim == 0:
        return torch.full_like(result, 0.5).detach()
    return torch.randn(result.shape, dtype=result.dtype, device=result.device, generator=generator)


def _calls(provider: Provider, mode: str, sets: Sequence[tuple[Any, ...]]) -> Callable[[int], Any]:
    function = provider.function
    factor = _grad_output(function(*sets[0]))
    if mode == "forward":
        return lambda i: function(*sets[i])
    if mode == "full":
        return lambda i: torch.autograd.grad(function(*sets[i]), sets[i][0], factor)
    results = [function(*tensors) for tensors in sets]
    return lambda i: torch.autograd.grad(results[i], sets[i][0], factor, retain_graph=True)


def _times(
    provider: Provider, mode: str, sets: Sequence[tuple[Any, ...]], *, device: str
) -> Iterator[tuple[str, list[float]]]:
    if device != "cuda":
        yield "", time_calls(_calls(provider, mode, sets), len(sets), device=device)
        return
    # One stream: autograd runs the backward pass on the stream of the forward pass, which must be the captured one.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = _calls(provider, mode, sets)
        yield "", time_calls(call, len(sets), device=device)
        try:
            yield "/graph", time_graph(call, len(sets), stream)
        except RuntimeError as error:
            print(f"{provider.name} {mode}: no CUDA graph: {str(error).splitlines()[0]}", file=sys.stderr)
    torch.cuda.synchronize()


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


def _row(op, provider, case, mode, suffix, times, *, device, roofline) -> dict[str, Any]:
    """Return a row; p20, p50 and p80 are quantiles of the time of a call, ``limit`` the ceiling of the minimum time."""
    directions = ("forward", "backward") if mode == "full" else (mode,)
    size, operations = (sum(count(d) for d in directions) for count in (case.bytes_moved, case.operations))
    floor, limit = roofline.floor(size, operations, case.dtype)
    p20, p50, p80 = (quantile(times, q) for q in (0.2, 0.5, 0.8))
    timed = provider.name != INTERPRETER
    return dict(
        op=op,
        provider=provider.name,
        mode=mode + suffix,
        case=case.name,
        shape="x".join(map(str, case.shape)),
        dtype=str(case.dtype).removeprefix("torch."),
        p20=round(p20, 2),
        p50=round(p50, 2),
        p80=round(p80, 2),
        unit="us",
        bytes=size,
        operations=operations,
        gb_per_s=round(size / p50 / 1e3, 3) if timed else None,
        tflop_per_s=round(operations / p50 / 1e6, 4) if timed else None,
        fraction_of_copy=round(size / p50 * 1e6 / roofline.copy, 4) if timed else None,
        limit=limit,
        fraction_of_limit=round(floor / (p50 * 1e-6), 4) if timed else None,
        copy_gb_per_s=round(roofline.copy / 1e9, 1),
        matmul_tflop_per_s=round(roofline.matmuls[case.dtype] / 1e12, 3) if operations else None,
        **machine(device),
    )


def show(rows: Sequence[dict[str, str]]) -> None:
    """Print CSV rows as a table; ``vs first`` is the speed-up over the first provider of the case."""
    first: dict[tuple[str, str, str], float] = {}
    lines = [("op", "case", "mode", "provider", "p50 us", "p20..p80", "GB/s", "of copy", "of limit", "vs first")]
    for row in rows:
        p50 = float(row["p50"])
        base = first.setdefault((row["op"], row["case"], row["mode"]), p50)
        timed = row["provider"] != INTERPRETER
        share, near = (
            f"{100 * float(row[name]):.1f} %" if timed else "-" for name in ("fraction_of_copy", "fraction_of_limit")
        )
        near = f"{near} ({row['limit']})" if timed else near
        ratio = f"{base / p50:.2f}x" if timed else "no speed"
        rate, spread = row["gb_per_s"] if timed else "-", f"{row['p20']}..{row['p80']}"
        lines.append(
            (row["op"], row["case"], row["mode"], row["provider"], row["p50"], spread, rate, share, near, ratio)
        )
    print_table(lines)


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark from the command line, smallest case first; return 1 if a result was wrong."""
    # 1. Arguments
    parser = argparse.ArgumentParser(description=f"Time the providers of {benchmark.op}.")
    names = [case.name for case in op_cases(benchmark.op).CASES]
    parser.add_argument("--case", action="append", choices=names, help="only this case (repeatable)")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this mode (repeatable)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case after this time")
    parser.add_argument("--csv", type=Path, default=Path(f"benchmarks/results/{benchmark.op}.csv"))
    options = parser.parse_args(arguments)
    # 2. Roofline
    began, failed = time.perf_counter(), False
    dtypes = {case.dtype for case in op_cases(benchmark.op).CASES if case.operations("forward")}
    roofline = measured_roofline(options.device, sorted(dtypes, key=str))
    # 3. Cases
    cases = sorted(op_cases(benchmark.op).CASES, key=lambda case: case.bytes_moved("forward"))
    rows = []
    for case in cases:
        if options.case and case.name not in options.case:
            continue
        if time.perf_counter() - began > options.seconds:
            print(f"{benchmark.op}, {case.name}: not timed, the limit of {options.seconds:.0f} s is reached")
            continue
        try:
            modes = options.mode or MODES
            for row in run_case(benchmark, case, device=options.device, modes=modes, roofline=roofline):
                rows.append(row)
                write_rows(rows, options.csv)  # keep the rows of an interrupted run
        except WrongResultError as error:
            print(f"rejected: {error}", file=sys.stderr)
            failed = True
    # 4. Summary
    write_rows(rows, options.csv)
    show(read_rows(options.csv))
    ceilings = [
        f"matmul in {str(t).removeprefix('torch.')} {r / 1e12:.2f} TFLOP/s" for t, r in roofline.matmuls.items()
    ]
    print(f"{', '.join([f'copy {roofline.copy / 1e9:.1f} GB/s', *ceilings])}; {options.csv}")
    if interpreter_is_on():
        print("TRITON_INTERPRET=1: times of the interpreter do not predict those of a kernel")
    return int(failed)
