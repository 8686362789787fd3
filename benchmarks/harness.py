"""Time the providers of an op: check the results, then measure time, bytes and the fraction of the roofline.

The benchmark of an op is a file of the op's name that describes its providers in a :class:`Benchmark` and passes it to
:func:`main`. A provider whose result differs from the float64 reference is rejected and not timed. Inputs rotate
through several sets, so that the L2 cache of a GPU is not measured instead of its memory. On a GPU every mode is timed
twice: call by call, including launch overhead, and, as ``<mode>/graph``, replayed from a CUDA graph. The bandwidth of a
copy and the rate of a large matmul are measured in the same run; they define the roofline, and a provider's share of
its limit, by bytes or by FLOPs of matmuls, shows how close to the floor it is.

Cases run in the order of ``benchmarks.gpu.case_order``. A provider that raises or whose result is wrong becomes a row
whose ``status`` gives the reason; nothing else is affected. The CSV is written after every row. With ``--resume`` a
process continues after an interrupted one: providers with a row in the CSV are not run again.
"""

import argparse
import functools
import gc
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.cases import Case, Direction, op_cases
from benchmarks.gpu.case_order import best_cases, by_worth, timed_cases
from benchmarks.measurements import machine, print_table, read_rows, write_rows
from benchmarks.providers import (
    EAGER,
    INTERPRETER,
    OURS,
    Benchmark,
    Provider,
    WrongResultError,
    check,
    exact_results,
    grad_output,
    grouped,
    use_implementation,
)
from benchmarks.timing import Roofline, quantile, set_count, stored_roofline, time_calls, time_graph
from simcast_kernels.dispatch import interpreter_is_on

MODES = ("forward", "backward", "full")
TIMED, STARTED = "timed", "started"  # values of the column ``status``; any other is the reason why there is no time
GROUPS = {"all": "every provider", "first": "op and plain PyTorch", "rest": "other baselines"}
DEVICE_LOST = 3  # exit status: an error left the CUDA context unusable, a new process must continue


class DeviceLostError(Exception):
    """An error, such as an illegal access, made the CUDA context of this process unusable."""


def run_case(
    benchmark: Benchmark,
    case: Case,
    *,
    device: str,
    modes: Sequence[str],
    roofline: Roofline,
    group: str = "all",
    done: Collection[str] = (),
    seconds: float = 0.3,
    announce: Callable[[dict[str, Any]], object] = lambda row: None,
) -> Iterator[dict[str, Any]]:
    """Check each provider of one case, the op first, time those with correct results and yield their rows.

    Args:
        benchmark: the op.
        case: one of its cases.
        device: ``cpu`` or ``cuda``.
        modes: some of ``MODES``; none to only check the providers, which also compiles them.
        roofline: ceilings of the device.
        group: ``first`` for the op and plain PyTorch, ``rest`` for the other baselines, ``all``.
        done: names of providers to skip.
        seconds: time to measure per mode.
        announce: called with a row of status ``started`` before each provider.

    Raises:
        DeviceLostError: after the row with the reason.
    """
    modes = [mode for mode in modes if benchmark.differentiable or mode == "forward"]
    make = functools.partial(_row, benchmark.op, case, device=device, roofline=roofline)
    try:
        providers = grouped(benchmark.providers(case, device), group)
        providers = [provider for provider in providers if provider.name not in done]
        if not providers:
            return
        announce(make("inputs", "", status=STARTED))
        count = set_count(case.bytes_moved("forward"), device) if modes else 1
        sets = [benchmark.tensors(case, device, seed) for seed in range(count)]
        for tensors in sets:
            tensors[0].requires_grad_(benchmark.differentiable)
        wanted = exact_results(benchmark, case, sets[0])
    except Exception as error:
        yield make("inputs", "", status=reason(error))
        _recover(device)
        return
    for provider in providers:
        announce(make(provider.name, "", status=STARTED))
        mode, failure = "", ""
        with use_implementation(provider.implementation):
            try:
                check(benchmark, case, provider, sets[0], wanted=wanted)
                for mode in modes:
                    for suffix, times in _times(provider, mode, sets, device=device, seconds=seconds):
                        yield make(provider.name, mode + suffix, times=times)
            except Exception as error:
                failure = reason(error)
        if failure:
            yield make(provider.name, mode, status=failure)
            _recover(device)


def reason(error: Exception) -> str:
    """Return the type and the first line of an error, at most 300 characters, for the column ``status``."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{'wrong' if isinstance(error, WrongResultError) else type(error).__name__}: {first}"[:300]


def _recover(device: str) -> None:
    """Free the memory of a failed provider.

    Raises:
        DeviceLostError: the CUDA context is unusable.
    """
    gc.collect()
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise DeviceLostError(str(error)) from error


def _calls(provider: Provider, mode: str, sets: Sequence[tuple[Any, ...]]) -> Callable[[int], Any]:
    function = provider.function
    factor = grad_output(function(*sets[0]))
    if mode == "forward":
        return lambda i: function(*sets[i])
    if mode == "full":
        return lambda i: torch.autograd.grad(function(*sets[i]), sets[i][0], factor)
    results = [function(*tensors) for tensors in sets]
    return lambda i: torch.autograd.grad(results[i], sets[i][0], factor, retain_graph=True)


def _times(
    provider: Provider, mode: str, sets: Sequence[tuple[Any, ...]], *, device: str, seconds: float
) -> Iterator[tuple[str, list[float]]]:
    if device != "cuda":
        yield "", time_calls(_calls(provider, mode, sets), len(sets), device=device, seconds=seconds)
        return
    # One stream: autograd runs the backward pass on the stream of the forward pass, which must be the captured one.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = _calls(provider, mode, sets)
        yield "", time_calls(call, len(sets), device=device, seconds=seconds)
        try:
            yield "/graph", time_graph(call, len(sets), stream)
        except RuntimeError as error:
            print(f"{provider.name} {mode}: no CUDA graph: {str(error).splitlines()[0]}", file=sys.stderr)
    torch.cuda.synchronize()


_machine = functools.cache(machine)  # asks git, too slow for every row


def _row(
    op: str,
    case: Case,
    provider: str,
    mode: str,
    *,
    device: str,
    roofline: Roofline,
    times: Sequence[float] | None = None,
    status: str = TIMED,
) -> dict[str, Any]:
    """Return a row; p20, p50 and p80 are quantiles of the time of a call, ``limit`` the ceiling of the minimum time."""
    row = dict(
        op=op,
        provider=provider,
        mode=mode,
        case=case.name,
        shape="x".join(map(str, case.shape)),
        dtype=str(case.dtype).removeprefix("torch."),
        **dict.fromkeys(("p20", "p50", "p80", "unit", "bytes", "operations", "gb_per_s", "tflop_per_s")),
        **dict.fromkeys(("fraction_of_copy", "limit", "fraction_of_limit", "copy_gb_per_s", "matmul_tflop_per_s")),
        **_machine(device),
        status=status,
    )
    if times is None:
        return row
    direction = mode.removesuffix("/graph")
    directions: Sequence[Direction] = ("forward", "backward") if direction == "full" else (cast(Direction, direction),)
    size, operations = (sum(count(d) for d in directions) for count in (case.bytes_moved, case.operations))
    floor, limit = roofline.floor(size, operations, case.dtype)
    p20, p50, p80 = (quantile(times, q) for q in (0.2, 0.5, 0.8))
    timed = provider != INTERPRETER
    return row | dict(
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
    )


def show(rows: Sequence[Mapping[str, str]]) -> None:
    """Print timed CSV rows as a table; ``vs eager`` is the speed-up over plain PyTorch. Other rows follow."""
    timed_rows = [row for row in rows if row["status"] == TIMED]
    eager: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in timed_rows:
        eager.setdefault((row["op"], row["case"], row["mode"]), {})[row["provider"]] = float(row["p50"])
    lines = [("op", "case", "mode", "provider", "p50 us", "p20..p80", "GB/s", "of copy", "of limit", "vs eager")]
    for row in timed_rows:
        p50 = float(row["p50"])
        base = next(
            (times[n] for times in [eager[row["op"], row["case"], row["mode"]]] for n in EAGER if n in times), None
        )
        timed = row["provider"] != INTERPRETER
        share, near = (
            f"{100 * float(row[name]):.1f} %" if timed else "-" for name in ("fraction_of_copy", "fraction_of_limit")
        )
        near = f"{near} ({row['limit']})" if timed else near
        ratio = "no speed" if not timed else "-" if base is None else f"{base / p50:.2f}x"
        rate, spread = row["gb_per_s"] if timed else "-", f"{row['p20']}..{row['p80']}"
        lines.append(
            (row["op"], row["case"], row["mode"], row["provider"], row["p50"], spread, rate, share, near, ratio)
        )
    print_table(lines)
    for row in rows:
        if row["status"] != TIMED:
            print(f"not timed: {row['op']}, {row['case']}, {row['provider']} {row['mode']}: {row['status']}")


def arguments_of(benchmark: Benchmark, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=f"Time the providers of {benchmark.op}.")
    names = [case.name for case in op_cases(benchmark.op).CASES]
    parser.add_argument("--case", action="append", choices=names, help="only this case (repeatable)")
    parser.add_argument("--cases", choices=["all", "timed", "best"], default="all", help="those of a run on a GPU")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this mode (repeatable)")
    parser.add_argument("--group", choices=list(GROUPS), default="all",
                        help="first: the op and plain PyTorch; rest: the other baselines")  # fmt: skip
    parser.add_argument("--check-only", action="store_true", help="compile and check the providers, time nothing")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case after this time")
    parser.add_argument("--mode-seconds", type=float, default=0.3, help="time to measure per mode")
    parser.add_argument("--csv", type=Path, default=Path(f"benchmarks/results/{benchmark.op}.csv"))
    parser.add_argument("--resume", action="store_true", help="keep the rows of --csv and skip their providers")
    parser.add_argument("--roofline", type=Path, help="read the ceilings of the device here, or measure and write them")
    return parser.parse_args(arguments)


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark from the command line, the cases that decide most first.

    Returns:
        1 if a result was wrong or the op itself failed, 3 if the device was lost and other cases remain, otherwise 0.
    """
    # 1. Arguments
    options = arguments_of(benchmark, arguments)
    chosen = {"all": by_worth, "timed": timed_cases, "best": best_cases}[options.cases](benchmark.op)
    cases = [case for case in chosen if not options.case or case.name in options.case]
    # 2. Roofline
    began = time.perf_counter()
    dtypes = {case.dtype for case in op_cases(benchmark.op).CASES if case.operations("forward")}
    if options.check_only:
        roofline = Roofline(copy=1.0)  # no row has a time
    else:
        roofline = stored_roofline(options.device, sorted(dtypes, key=str), options.roofline)
    # 3. Cases
    rows: list[Mapping[str, Any]] = [*read_rows(options.csv)] if options.resume and options.csv.is_file() else []
    kept = [row for row in rows if row["status"] != STARTED]
    rows[:] = kept

    def write(row: Mapping[str, Any]) -> None:
        if rows and rows[-1]["status"] == STARTED:
            rows.pop()
        rows.append(row)
        write_rows(rows, options.csv)

    for case in cases:
        if time.perf_counter() - began > options.seconds:
            late = f"not timed, the limit of {options.seconds:.0f} s is reached"
            print(f"{benchmark.op}, {case.name}: {late}")
            write(
                _row(
                    benchmark.op, case, GROUPS[options.group], "", device=options.device, roofline=roofline, status=late
                )
            )
            continue
        modes = [] if options.check_only else options.mode or MODES
        done = {row["provider"] for row in kept if row["case"] == case.name}
        if "inputs" in done:
            continue
        try:
            for row in run_case(
                benchmark, case, device=options.device, modes=modes, roofline=roofline, group=options.group, done=done,
                seconds=options.mode_seconds, announce=write,
            ):  # fmt: skip
                write(row)
        except DeviceLostError as error:
            print(f"{benchmark.op}, {case.name}: the device was lost: {error}", file=sys.stderr)
            return DEVICE_LOST
    # 4. Summary
    rows[:] = [row for row in rows if row["status"] != STARTED]
    write_rows(rows, options.csv)
    show(read_rows(options.csv))
    ceilings = [
        f"matmul in {str(t).removeprefix('torch.')} {r / 1e12:.2f} TFLOP/s" for t, r in roofline.matmuls.items()
    ]
    print(f"{', '.join([f'copy {roofline.copy / 1e9:.1f} GB/s', *ceilings])}; {options.csv}")
    if interpreter_is_on():
        print("TRITON_INTERPRET=1: times of the interpreter do not predict those of a kernel")
    return int(any(is_failure(row) for row in rows))


def is_failure(row: Mapping[str, Any]) -> bool:
    """Return whether a row reports a wrong result, or an op that could not be timed; failing baselines are none."""
    status = str(row["status"])
    return status.startswith("wrong") or (status not in (TIMED, STARTED) and row["provider"] in (*OURS, "inputs"))
