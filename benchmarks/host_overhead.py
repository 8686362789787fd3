"""Time what a call of each operator costs on the host: everything but the kernel, whose launch is replaced by nothing.

    PYTHONPATH=kernels python -m benchmarks.host_overhead [--op NAME] [--calls 300] [--csv FILE]

Where a kernel takes less time than its call, a GPU waits for the host. A call validates its arguments, selects the
implementation, allocates results and prepares the launch, and autograd records and calls the backward pass. Triton's
own launcher is not included. Times do not depend on the shape, so the smallest case of an operator is used, on the CPU.

``BUDGET`` has two limits for each operator: the least time that a forward and backward pass should take on one core of
a server, printed with the measured time, and the number of function calls of Python and C++ in it. That number does not
depend on the machine and is tested.
"""

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels are selected for tensors on the CPU

import torch

from benchmarks.cases import Case, op_cases, op_names
from benchmarks.measurements import print_table, write_rows
from benchmarks.providers import OURS, Benchmark, use_implementation
from benchmarks.timing import quantile
from simcast_kernels.dispatch import Launch


class Budget(NamedTuple):
    """Limits of one forward and backward pass: microseconds, and calls of functions."""

    us: int
    calls: int


BUDGET = {
    "adaln_norm": Budget(200, 330),
    "cuboid_attention": Budget(250, 510),
    "group_norm_activation": Budget(250, 460),
    "layer_norm_linear": Budget(250, 380),
    "sampler_step": Budget(50, 130),
    "weighted_mse": Budget(150, 250),
}
"""By operator; ``sampler_step`` has no backward pass. Others have ``DEFAULT_BUDGET``."""
DEFAULT_BUDGET = Budget(250, 480)
_WARM_UP_CALLS = 30


class _Launches:
    """Replaces ``Launch.run``: counts launches instead of running them."""

    count = 0

    @classmethod
    def note(cls, _launch: Launch) -> None:
        cls.count += 1


@contextmanager
def without_launches() -> Iterator[None]:
    """Replace launches of kernels by nothing."""
    run, Launch.run = Launch.run, lambda self: _Launches.note(self)
    try:
        yield
    finally:
        Launch.run = run


def smallest_case(benchmark: Benchmark) -> Case:
    """Return the case with the fewest elements that the kernel computes."""
    cases = [case for case in op_cases(benchmark.op).CASES if case.dtype != torch.float64]
    for case in sorted(cases, key=lambda case: prod(case.shape)):
        before = _Launches.count
        provider_of(benchmark, case)(*benchmark.tensors(case, "cpu", 0))
        if _Launches.count > before:
            return case
    raise ValueError(f"no case of {benchmark.op} is computed by its kernel")


def provider_of(benchmark: Benchmark, case: Case) -> Callable[..., Any]:
    """Return the provider that calls the operator; some benchmarks have it for a CPU, others for CUDA only."""
    for device in ("cpu", "cuda"):
        for provider in benchmark.providers(case, device):
            if provider.name in OURS:
                return provider.function
    raise ValueError(f"the benchmark of {benchmark.op} has no provider named {', '.join(OURS)}")


def calls(benchmark: Benchmark, case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the mode of a call (``forward``; ``recorded`` by autograd; ``full`` with the backward pass)."""
    tensors = benchmark.tensors(case, "cpu", 0)
    function = provider_of(benchmark, case)

    def forward() -> Any:
        with torch.no_grad():
            return function(*tensors)

    yield "forward", forward
    if not benchmark.differentiable:
        return
    inputs = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()]
    for tensor in inputs:
        tensor.requires_grad_()
    grad = torch.ones_like(forward())
    yield "recorded", lambda: function(*tensors)
    yield "full", lambda: torch.autograd.grad(function(*tensors), inputs, grad, allow_unused=True)


def function_calls(call: Callable[[], Any]) -> int:
    """Return the number of Python and C++ functions that a call of ``call`` calls, after a warm-up."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    for _ in range(_WARM_UP_CALLS):
        call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def measure(op: str, *, count: int) -> Iterator[dict[str, Any]]:
    """Yield the times of one operator in each mode, in microseconds."""
    benchmark = importlib.import_module(f"benchmarks.{op}").BENCHMARK
    case = smallest_case(benchmark)
    for mode, call in calls(benchmark, case):
        times = []
        for number in range(_WARM_UP_CALLS + count):
            began = time.perf_counter()
            call()
            if number >= _WARM_UP_CALLS:
                times.append((time.perf_counter() - began) * 1e6)
        row = {"op": op, "case": case.name, "mode": mode, "least_us": round(min(times), 1)}
        row |= {f"p{share}_us": round(quantile(times, share / 100), 1) for share in (20, 50, 80)}
        limits = BUDGET.get(op, DEFAULT_BUDGET) if mode == "full" or not benchmark.differentiable else ("", "")
        row |= dict(zip(("budget_us", "budget_functions"), limits, strict=True), functions=function_calls(call))
        yield {**row, "calls": count, "torch": torch.__version__, "python": platform.python_version()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--op", action="append", choices=op_names(), help="only this op (repeatable)")
    parser.add_argument("--calls", type=int, default=300, help="timed calls per row")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/host_overhead.csv"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    with use_implementation("triton"), without_launches():
        for op in options.op or op_names():
            rows += measure(op, count=options.calls)
    print_table([list(rows[0]), *([str(value) for value in row.values()] for row in rows)])
    write_rows(rows, options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
