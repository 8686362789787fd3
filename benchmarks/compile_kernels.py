"""Compile every case of every op for several GPU targets, without a GPU, and check the result against a budget.

    PYTHONPATH=kernels python -m benchmarks.compile_kernels [--op OP] [--target sm_90] [--csv FILE] [--jobs N]
                                                            [--update]

Each launch is specialized exactly as in a call, by Triton's ``warmup`` under a driver that only names the target. The
table contains registers, spilled bytes, shared memory and counts of the relevant instructions. A launch is over budget
if it needs more shared memory than the target has, or if it spills on sm_90 or sm_100, or more than 64 bytes on sm_80.
Spills on gfx942, of candidates that no call runs by default, and of cases that expect them on a target are only
printed.

The table is then compared with the committed one, ``benchmarks/compiled.csv`` (see ``compile_baseline``), and every row
and column that got worse is reported. The same is done for the estimated times of all dispatched launches on sm_80 and
sm_90, ``benchmarks/estimates.csv`` (see ``roofline.estimate_table``). ``--update`` updates the committed tables
instead. The exit status is 1 if a row is over budget or got worse.
"""

# Pyright takes the methods that Triton's driver class declares without a body to return None.
# pyright: reportIncompatibleMethodOverride=false
import argparse
import contextlib
import csv
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from benchmarks import compile_baseline
from benchmarks.cases import DIRECTIONS, Direction, op_cases, op_names
from benchmarks.roofline import estimate_table
from benchmarks.roofline.gpu_rates import GPUS
from benchmarks.roofline.launch_estimate import Estimate, estimate, profile
from simcast_kernels.dispatch import Launch, interpreter_is_on


class Target(NamedTuple):
    """A GPU to compile for: its name in Triton, its shared memory, and the spills allowed (None: any)."""

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    spill_bytes: int | None


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 166_912, 64),
    "sm_90": Target("cuda", 90, 32, 232_448, 0),
    "sm_100": Target("cuda", 100, 32, 232_448, 0),
    "gfx942": Target("hip", "gfx942", 64, 65_536, None),
}
# Counted in PTX or, for gfx942, in the assembly: matrix units; loads and stores, all and those of 16 bytes; copies to
# shared memory that do not wait (cp.async, in SASS LDGSTS), all and those of 16 bytes; barriers.
MARKS = {
    "mma": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mfma": r"\bv_mfma",
    "ld16": r"\bld\.global\S*\.v4\.(?:b32|f32|u32)|\bld\.global\S*\.v2\.(?:b64|f64)|(?:buffer|global)_load_dwordx4\b",
    "ld": r"\bld\.global\S*|(?:buffer|global)_load_\w+",
    "st16": r"\bst\.global\S*\.v4\.(?:b32|f32|u32)|\bst\.global\S*\.v2\.(?:b64|f64)|(?:buffer|global)_store_dwordx4\b",
    "st": r"\bst\.global\S*|(?:buffer|global)_store_\w+",
    "cp16": r"\bcp\.async\.c[ag]\.shared\.global\b[^;]*,\s*(?:0x10|16)\b",
    "cp": r"\bcp\.async\.c[ag]\.shared\.global\b",
    "bar": r"\bbar\.sync|\bbarrier\.sync|\bs_barrier\b",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One launch compiled for one target. ``spill_bytes`` counts stores and loads, on gfx942 bytes of the stack.

    ``estimates`` holds the estimated time on every GPU of the target; it is not part of the printed table.
    """

    op: str
    kernel: str
    case: str
    direction: str
    target: str
    options: str
    real: bool
    dispatched: bool
    registers: int
    spill_bytes: int
    shared_bytes: int
    marks: str
    seconds: float
    spills_expected: str
    estimates: tuple[Estimate, ...] = ()


HIDDEN = ("spills_expected", "estimates")


class Job(NamedTuple):
    """One case, direction and target by name, to be sent to another process."""

    op: str
    case: str
    direction: Direction
    target: str


def over_budget(row: Row) -> str:
    """Return the reason why a row is over budget, or an empty string."""
    target = TARGETS[row.target]
    if row.shared_bytes > target.shared_bytes:
        return f"{row.shared_bytes} bytes of shared memory, {row.target} has {target.shared_bytes}"
    may_spill = target.spill_bytes is None or not row.dispatched or row.spills_expected
    if not may_spill and row.spill_bytes > (target.spill_bytes or 0):
        return f"{row.spill_bytes} bytes spilled, {row.target} allows {target.spill_bytes}"
    return ""


def jobs(
    ops: Sequence[str], targets: Sequence[str], *, directions: Sequence[Direction], first_only: bool = False
) -> list[Job]:
    """Return a job for every case, direction and target; with ``first_only``, only for the first case of each op."""
    found = []
    for op in ops:
        cases = op_cases(op).CASES
        for case in cases[:1] if first_only else cases:
            found += [Job(op, case.name, d, t) for d in directions for t in targets]
    return found


def compile_job(job: Job) -> list[Row]:
    """Compile the launches of one job.

    Raises:
        RuntimeError: this process runs kernels in the interpreter.
    """
    if interpreter_is_on():
        raise RuntimeError("TRITON_INTERPRET=1 turns kernels into Python; unset it to compile them")
    module = op_cases(job.op)
    case = next(c for c in module.CASES if c.name == job.case)
    rows = []
    for launch in module.launches(case).get(job.direction, ()):
        began = time.perf_counter()
        compiled = compile_launch(launch, TARGETS[job.target])
        seconds = time.perf_counter() - began
        registers, spill_bytes = _resources(compiled.asm)
        rows.append(
            Row(
                op=job.op,
                kernel=launch.kernel.__name__.strip("_"),
                case=job.case,
                direction=job.direction,
                target=job.target,
                options=" ".join(f"{k}={v}" for k, v in launch.options_for(TARGETS[job.target].backend).items()),
                real=not case.edge,
                dispatched=launch.dispatched,
                registers=registers,
                spill_bytes=spill_bytes,
                shared_bytes=compiled.metadata.shared,
                marks=marks(compiled.asm.get("ptx") or compiled.asm["amdgcn"]),
                seconds=round(seconds, 2),
                spills_expected=case.spills_expected.get(job.target, ""),
                estimates=_estimates(launch, compiled, job.target, registers) if launch.dispatched else (),
            )
        )
    return rows


def _estimates(launch: Launch, compiled: Any, target: str, registers: int) -> tuple[Estimate, ...]:
    gpus = [gpu for gpu in GPUS if gpu.target == target]
    if not gpus:
        return ()
    found = profile(launch, compiled, target=target, registers=registers)
    return tuple(estimate(found, gpu) for gpu in gpus)


def estimate_rows(rows: Sequence[Row], *, triton: str) -> list[estimate_table.EstimateRow]:
    """Return the estimates of every case and direction, its launches together."""
    launches: dict[tuple[str, str, str, str], list[Estimate]] = {}
    for row in rows:
        for found in row.estimates:
            launches.setdefault((row.op, row.case, row.direction, found.gpu), []).append(found)
    cases = {(op, case.name): case for op in {row.op for row in rows} for case in op_cases(op).CASES}
    return [
        estimate_table.row_of(op, cases[op, case], cast(Direction, direction), found, triton=triton)
        for (op, case, direction, _), found in launches.items()
    ]


def marks(assembly: str) -> str:
    """Return the counts of the instructions in ``MARKS`` that occur, as ``name:count``."""
    counts = {name: len(re.findall(pattern, assembly)) for name, pattern in MARKS.items()}
    return " ".join(f"{name}:{count}" for name, count in counts.items() if count)


def compile_launch(launch: Launch, target: Target) -> Any:
    """Return Triton's compiled kernel of a launch, specialized for a target as in a call on that GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class TargetOnly(DriverBase):
        """A driver that names a target and runs nothing."""

        @classmethod
        def is_active(cls):
            return True

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_current_target(self):
            return GPUTarget(target.backend, target.arch, target.warp_size)

        def get_active_torch_device(self):
            return torch.device("meta")

        def get_current_device(self):
            return str(target.arch)  # key of the cache of compiled kernels: one per target

        def get_current_stream(self, device=None):
            return 0

        def get_benchmarker(self):
            return lambda call, quantiles=None, **_: [0.0, 0.0, 0.0]

    kernel = launch.kernel
    while not isinstance(kernel, triton.JITFunction):  # under autotune or heuristics
        kernel = kernel.fn
    triton.runtime.driver.set_active(TargetOnly())
    try:
        return kernel.warmup(*launch.arguments, grid=launch.grid, **launch.options_for(target.backend))
    finally:
        with contextlib.suppress(RuntimeError):  # without a GPU there is no driver to restore
            triton.runtime.driver.reset_active()


def _resources(assembly: dict[str, Any]) -> tuple[int, int]:
    """Return (registers per thread, bytes spilled) of a compiled kernel."""
    if "amdgcn" in assembly:
        noted = {name: int(count) for name, count in re.findall(r"\.(\w+):\s*(\d+)\s*$", assembly["amdgcn"], re.M)}
        return noted["vgpr_count"], max(noted["private_segment_fixed_size"], 4 * noted["vgpr_spill_count"])
    from triton.backends.nvidia.compiler import get_ptxas

    arch = _one(r"\.target\s+(sm_\w+)", assembly["ptx"])[0]
    ptxas = get_ptxas(int(_one(r"sm_(\d+)", arch)[0])).path
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(assembly["ptx"])
        command = [ptxas, "-v", f"--gpu-name={arch}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = _one(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return int(_one(r"Used (\d+) registers", log)[0]), int(stores) + int(loads)


def _one(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the output of the compiler does not match {pattern!r}:\n{text[-2000:]}")
    return found.groups()


def compile_all(work: Sequence[Job], *, workers: int) -> Iterable[Row]:
    """Compile ``work`` in ``workers`` processes, each with its own cache, and yield rows in the order of ``work``."""
    with tempfile.TemporaryDirectory(prefix="simcast-compile-") as cache:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_own_cache, initargs=(cache,)) as pool:
            for rows in pool.map(compile_job, work):
                yield from rows


def _own_cache(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = os.path.join(folder, str(os.getpid()))
    torch.set_num_threads(1)


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table with a verdict."""
    names = [f.name for f in fields(Row) if f.name not in HIDDEN]
    lines = [[*names, "verdict"]]
    for row in rows:
        verdict = over_budget(row) or (f"spills expected: {row.spills_expected}" if row.spills_expected else "ok")
        lines.append([*(str(getattr(row, name)) for name in names), verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def against_committed(rows: Sequence[Row], *, update: bool) -> int:
    """Compare rows with the committed tables, or update them; return the number of things that got worse."""
    from triton import __version__ as triton

    return _against_compiled(rows, update=update, triton=triton) + _against_estimates(
        rows, update=update, triton=triton
    )


def _against_estimates(rows: Sequence[Row], *, update: bool, triton: str) -> int:
    found, committed = estimate_rows(rows, triton=triton), estimate_table.read(estimate_table.COMMITTED)
    if update:
        estimate_table.write(estimate_table.merged(committed, found), estimate_table.COMMITTED)
        return 0
    if not found or {row.triton for row in committed} != {triton}:
        return 0
    lost, notes = estimate_table.worse(committed, found)
    for text in notes:
        print(text)
    for text in lost:
        print(f"worse: {text}", file=sys.stderr)
    print(f"{len(found)} estimates compared with {estimate_table.COMMITTED}, {len(lost)} got worse")
    return len(lost)


def _against_compiled(rows: Sequence[Row], *, update: bool, triton: str) -> int:
    compiled = [compile_baseline.entry_of(row, triton=triton) for row in rows]
    path = compile_baseline.COMMITTED
    committed = compile_baseline.read(path) if path.is_file() else []
    if update:
        compile_baseline.write(compile_baseline.merged(committed, compiled), path)
        print(f"{path}: {len(compiled)} rows updated")
        return 0
    if {entry.triton for entry in committed} != {triton}:
        print(f"{path} was not compiled by triton {triton}: not compared")
        return 0
    comparison = compile_baseline.compare(committed, compiled)
    for text in comparison.notes:
        print(text)
    for text in comparison.worse:
        print(f"worse: {text}", file=sys.stderr)
    print(f"{len(compiled)} rows compared with {path}, {len(comparison.worse)} got worse")
    return len(comparison.worse)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table, write the CSV, compare with the committed table; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--op", action="append", choices=op_names(), help="only this op (repeatable)")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this target (repeatable)")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/compile_kernels.csv"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--update", action="store_true", help="update the committed table instead of comparing with it")
    options = parser.parse_args(arguments)
    if interpreter_is_on():
        parser.error("TRITON_INTERPRET=1 turns kernels into Python; unset it to compile them")
    work = jobs(options.op or op_names(), options.target or list(TARGETS), directions=DIRECTIONS)
    began = time.perf_counter()
    rows = list(compile_all(work, workers=options.jobs))
    show(rows)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row) if f.name != "estimates"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    failures = sum(bool(over_budget(row)) for row in rows)
    print(
        f"{len(rows)} launches compiled in {time.perf_counter() - began:.0f} s, {failures} over budget; {options.csv}"
    )
    return 1 if against_committed(rows, update=options.update) or failures else 0


if __name__ == "__main__":
    sys.exit(main())
