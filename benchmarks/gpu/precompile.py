"""Compile the kernels of all cases in many processes into the cache that later processes of the same machine read.

    python -m benchmarks.gpu.precompile [--jobs 16] [--sweep] [--target sm_90] [--csv FILE]

Each launch is specialized as in a call, including the alignment of views, so a later process that launches the same
kernel finds it in ``TRITON_CACHE_DIR``. No device is needed: the target is that of the CUDA device, or the one named.
``--sweep`` compiles the kernels of the sweep (``benchmarks.gpu.launch_sweep``) instead of those of the cases.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.cases import DIRECTIONS, Direction, op_cases, op_names
from benchmarks.compile_kernels import TARGETS, Target, compile_launch
from benchmarks.gpu.case_order import by_worth, ops_by_worth, rank
from benchmarks.gpu.launch_sweep import swept_launches, variants
from benchmarks.measurements import write_rows
from simcast_kernels.dispatch import Launch, interpreter_is_on


class Kernel(NamedTuple):
    """One launch by name, to be sent to another process: its number among those of a case and direction.

    ``variant`` is the number of a variant of the sweep, or -1 for the launch as a call makes it.
    """

    op: str
    case: str
    direction: Direction
    number: int
    variant: int = -1


def kernels(ops: Sequence[str]) -> list[Kernel]:
    """Return every distinct launch of all cases, those that decide most first."""
    found: dict[Any, Kernel] = {}
    ordered = [(op, case) for op in ops_by_worth(ops) for case in by_worth(op)]
    for op, case in sorted(ordered, key=lambda pair: (pair[1].edge, rank(*pair))):
        launches = op_cases(op).launches(case)
        for direction in DIRECTIONS:
            for number, launch in enumerate(launches.get(direction, ())):
                found.setdefault(signature(launch), Kernel(op, case.name, direction, number))
    return list(found.values())


def sweep_kernels(ops: Sequence[str]) -> list[Kernel]:
    """Return every variant of the sweep."""
    return [
        Kernel(op, swept.case.name, swept.direction, swept.number, variant)
        for op in ops_by_worth(ops)
        for swept in swept_launches(op)
        for variant in range(len(variants(swept.launch)))
    ]


def signature(launch: Launch) -> tuple[Any, ...]:
    """Return what a kernel is specialized on: dtypes and alignment of tensors, integers of 1 and multiples of 16."""
    return (launch.kernel.__name__, launch.kernel.__module__, *map(_kind, launch.arguments), *launch.options.items())


def _kind(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int) and not isinstance(argument, bool):
        return int, argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return argument if isinstance(argument, (bool, type(None))) else type(argument)


def compile_kernel(kernel: Kernel, target: Target) -> dict[str, Any]:
    """Compile one launch into the cache.

    Returns:
        a row with the seconds, whether the kernel was in the cache and, if it does not compile, the reason.
    """
    began, failure, cached = time.perf_counter(), "", False
    try:
        case = next(c for c in op_cases(kernel.op).CASES if c.name == kernel.case)
        launch = op_cases(kernel.op).launches(case)[kernel.direction][kernel.number]
        if kernel.variant >= 0:
            launch = variants(launch)[kernel.variant]
        cached = compiled_before(launch, target)
    except Exception as error:  # a kernel that does not compile is found by its tests
        failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]
    return {**kernel._asdict(), "seconds": round(time.perf_counter() - began, 3), "cached": cached, "failure": failure}


def compiled_before(launch: Launch, target: Target) -> bool:
    """Compile a launch for a target; return whether its kernel was in the cache on disk."""
    from triton import knobs

    hits: list[bool] = []

    def listener(*_: Any, cache_hit: bool, **__: Any) -> None:
        hits.append(cache_hit)

    with mock.patch.object(knobs.compilation, "listener", listener):
        compile_launch(launch, target)
    return all(hits)  # no call: compiled earlier by this process


def compile_all(work: Sequence[Kernel], target: Target, *, workers: int) -> Iterable[dict[str, Any]]:
    """Compile ``work`` in ``workers`` processes that share one cache, and yield rows as they end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in as_completed([pool.submit(compile_kernel, kernel, target) for kernel in work]):
            yield done.result()


def device_target() -> Target:
    """Return Triton's target of the current device."""
    import triton

    found: Any = triton.runtime.driver.active.get_current_target()
    return Target(found.backend, found.arch, found.warp_size, shared_bytes=0, spill_bytes=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all kernels; return 1 if one does not compile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--op", action="append", choices=op_names(), help="only this op (repeatable)")
    parser.add_argument("--sweep", action="store_true", help="compile the variants of the sweep")
    parser.add_argument("--target", choices=list(TARGETS), help="default: that of the CUDA device")
    parser.add_argument("--csv", type=Path, help="write a row per kernel")
    options = parser.parse_args(arguments)
    if interpreter_is_on():
        parser.error("TRITON_INTERPRET=1 turns kernels into Python; unset it to compile them")
    target = TARGETS[options.target] if options.target else device_target()
    began, rows = time.perf_counter(), []
    work = (sweep_kernels if options.sweep else kernels)(options.op or op_names())
    for row in compile_all(work, target, workers=options.jobs):
        rows.append(row)
        if options.csv:
            write_rows(rows, options.csv)
        if row["failure"]:
            print(f"{row['op']}, {row['case']}, {row['direction']}: {row['failure']}", file=sys.stderr)
    failed = [row for row in rows if row["failure"]]
    cached, spent = sum(row["cached"] for row in rows), sum(row["seconds"] for row in rows)
    print(
        f"{len(rows)} kernels, {cached} of them in the cache, by {options.jobs} processes in "
        f"{time.perf_counter() - began:.0f} s ({spent:.0f} s of all processes), {len(failed)} failed"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
