"""Time every kernel with other numbers of warps and pipeline stages, each on the case that decides most.

    python -m benchmarks.gpu.launch_sweep [--op OP] [--device cuda] [--csv FILE]

The launches of one call of the op are recorded and run again with other options, on the same tensors. Results are not
checked: the number of warps only changes the order of sums. A variant that cannot run, for example for lack of shared
memory, is a row with the reason. The row ``dispatched`` is the launch as a call makes it.
"""

import argparse
import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.cases import DIRECTIONS, Case, Direction, op_cases, op_names
from benchmarks.gpu.case_order import ops_by_worth, timed_cases
from benchmarks.measurements import machine, report, write_rows
from benchmarks.timing import quantile, time_calls
from simcast_kernels.dispatch import Launch

WARPS, STAGES = (1, 2, 4, 8), (1, 2, 3)
SECONDS = 0.04  # time to measure per variant


class Swept(NamedTuple):
    """A kernel to sweep: the launch ``number`` of a direction of a case."""

    case: Case
    direction: Direction
    number: int
    launch: Launch


def swept_launches(op: str) -> list[Swept]:
    """Return each kernel of an op on the first case in order of worth that launches it, on ``meta`` tensors."""
    found: dict[str, Swept] = {}
    for case in timed_cases(op):
        launches = op_cases(op).launches(case)
        for direction in DIRECTIONS:
            for number, launch in enumerate(launches.get(direction, ())):
                found.setdefault(launch.kernel.__name__, Swept(case, direction, number, launch))
    return list(found.values())


def variants(launch: Launch) -> list[Launch]:
    """Return a launch with every number of warps and pipeline stages."""
    return [
        dataclasses.replace(launch, options={**launch.options, "num_warps": warps, "num_stages": stages})
        for warps in WARPS
        for stages in STAGES
    ]


def recorded_launches(op: str, case: Case, device: str) -> list[Launch]:
    """Return the launches, on tensors of ``device``, of a forward and, if differentiable, a backward call."""
    benchmark = importlib.import_module(f"benchmarks.{op}").BENCHMARK
    launches: list[Launch] = []
    run = Launch.run

    def record(launch: Launch) -> None:
        launches.append(launch)
        run(launch)

    provider = next(p for p in benchmark.providers(case, device) if p.implementation == "triton")
    tensors = benchmark.tensors(case, device, 0)
    tensors[0].requires_grad_(benchmark.differentiable)
    with mock.patch.object(Launch, "run", record), mock.patch.dict("os.environ", SIMCAST_KERNELS="triton"):
        result = provider.function(*tensors)
        if benchmark.differentiable:
            torch.autograd.grad(result, tensors[0], torch.ones_like(result))
    return launches


def sweep(op: str, device: str, *, seconds: float = SECONDS) -> Iterator[dict[str, Any]]:
    """Yield a row per variant of each kernel of an op; an op that fails is one row with the reason."""
    recorded: dict[str, list[Launch]] = {}
    about = machine(device)
    for swept in swept_launches(op):
        name = swept.launch.kernel.__name__
        row = {"op": op, "kernel": name.strip("_"), "case": swept.case.name, "direction": swept.direction}
        try:
            if swept.case.name not in recorded:
                recorded.clear()  # frees the tensors of the previous case
                recorded[swept.case.name] = recorded_launches(op, swept.case, device)
            launch = next(one for one in recorded[swept.case.name] if one.kernel.__name__ == name)
        except Exception as error:
            yield row | {"variant": "", "p50": None, "status": _first_line(error)} | about
            continue
        for variant in (launch, *variants(launch)):
            options = {key: variant.options.get(key, "default") for key in ("num_warps", "num_stages")}
            label = "dispatched" if variant is launch else "swept"
            p50, status = None, "timed"
            try:
                times = time_calls(lambda _, one=variant: one.run(), 1, device=device, seconds=seconds)
                p50 = round(quantile(times, 0.5), 2)
            except Exception as error:
                status = _first_line(error)
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()
            yield row | options | {"variant": label, "p50": p50, "unit": "us", "status": status} | about


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep the kernels, those that decide most first, and write a row per variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--op", action="append", choices=op_names(), help="only this op (repeatable)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/launch_sweep.csv"))
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for op in ops_by_worth(options.op):
        for row in sweep(op, options.device):
            rows.append(row)
            write_rows(rows, options.csv)
    report(rows, options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
