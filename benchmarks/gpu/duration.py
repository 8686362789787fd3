"""Predicted duration of a run on a GPU, from counted kernels, tests, cases and providers.

The counts come from the case files. The seconds per count are assumptions for a GPU machine with a server CPU, but for
the compilation of a kernel, which was measured (see ``COMPILE_SECONDS``). A run prints the prediction and what it took.
"""

import importlib
from dataclasses import dataclass, fields

from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.cases import op_names
from benchmarks.gpu.case_order import best_cases, timed_cases
from benchmarks.gpu.launch_sweep import STAGES, WARPS, swept_launches
from benchmarks.gpu.precompile import kernels
from benchmarks.providers import grouped

TOTAL_SECONDS = 480.0
# Measured: 80 s of 133 kernels by python -m benchmarks.gpu.precompile --target sm_90 --jobs 1 (triton 3.6.0, one core
# of an x86_64 server).
COMPILE_SECONDS = 0.6
# Assumed:
START_SECONDS = 7.0  # Python, torch, Triton and a CUDA context
REAL_TEST_SECONDS = 0.8  # a test at a real shape, its kernels compiled before
SMALL_TEST_SECONDS = 0.2  # a small test without the compilation of its kernels
COMPILES_PER_SMALL_TEST = 1.2
INDUCTOR_SECONDS = 20.0  # torch.compile of a forward and backward pass; FlexAttention
CACHED_INDUCTOR_SECONDS = 4.0
STEP_KERNELS = 30  # kernels of a training step that no case has: dropout, other levels
INPUT_SECONDS = 0.6  # inputs and float64 reference of a case
CHECK_SECONDS = 0.2
MODE_SECONDS = 0.1  # calls; the replay of the graph takes 0.1 s more, its capture about 0.05 s
GRAPH_SECONDS = 0.15
ROOFLINE_SECONDS = 4.0
VARIANT_SECONDS = 0.1
STEP_SECONDS = 18.0  # a network, its warm-up, the profiler and the trace


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a run compiles, tests and times.

    ``first`` and ``rest`` are the seconds of each op in the two rounds of timing; ``baselines`` are to be compiled.
    """

    kernels: int
    variants: int
    real_tests: int
    small_tests: int
    baselines: int
    first: dict[str, float]
    rest: dict[str, float]
    networks: int = 2


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Predicted seconds of each stage."""

    compile: float
    tests: float
    first: float
    rest: float
    sweep: float
    profile: float

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(getattr(self, field.name) for field in fields(self))


def counted(*, real_tests: int, small_tests: int) -> Counts:
    """Return the counts of the present cases; tests are counted by pytest."""
    ops = op_names()
    return Counts(
        kernels=len(kernels(ops)),
        variants=len(WARPS) * len(STAGES) * sum(len(swept_launches(op)) for op in ops),
        real_tests=real_tests,
        small_tests=small_tests,
        baselines=sum(sum(baseline_counts(op)) for op in ops),
        first={op: first_seconds(op) for op in ops},
        rest={op: rest_seconds(op) for op in ops},
    )


def mode_count(op: str) -> int:
    """Return the number of timed modes of an op: forward, backward and both together, or forward only."""
    return 3 if importlib.import_module(f"benchmarks.{op}").BENCHMARK.differentiable else 1


def baseline_counts(op: str) -> list[int]:
    """Return the number of baselines, without plain PyTorch, of each best case of an op on a GPU."""
    benchmark = importlib.import_module(f"benchmarks.{op}").BENCHMARK
    with FakeTensorMode():  # no device is needed
        return [len(grouped(benchmark.providers(case, "cuda"), "rest")) for case in best_cases(op)]


def first_seconds(op: str) -> float:
    """Return the predicted seconds to time an op and plain PyTorch in all its cases."""
    case = INPUT_SECONDS + 2 * (CHECK_SECONDS + mode_count(op) * (MODE_SECONDS + GRAPH_SECONDS))
    return START_SECONDS + len(timed_cases(op)) * case


def rest_seconds(op: str) -> float:
    """Return the predicted seconds to time the other baselines of the best cases, compiled before."""
    provider = CACHED_INDUCTOR_SECONDS + CHECK_SECONDS + mode_count(op) * (MODE_SECONDS + GRAPH_SECONDS)
    baselines = [count for count in baseline_counts(op) if count]
    return START_SECONDS + len(baselines) * INPUT_SECONDS + sum(baselines) * provider


def predicted_seconds(counts: Counts, *, cores: int) -> Seconds:
    """Return the predicted seconds of each stage on ``cores`` CPU cores.

    The parallel stage takes the work divided by the cores, but at least its longest task.
    """
    small = counts.small_tests * (SMALL_TEST_SECONDS + COMPILES_PER_SMALL_TEST * COMPILE_SECONDS)
    real = counts.real_tests * REAL_TEST_SECONDS
    warm = counts.baselines * INDUCTOR_SECONDS + (counts.variants + STEP_KERNELS) * COMPILE_SECONDS
    processes = 2 * len(counts.first) + cores + counts.networks
    longest = START_SECONDS + max(real / 2, STEP_KERNELS * COMPILE_SECONDS, 4 * INDUCTOR_SECONDS)
    return Seconds(
        compile=START_SECONDS + counts.kernels * COMPILE_SECONDS / cores,
        tests=max(longest, (processes * START_SECONDS + small + real + warm) / cores),
        first=ROOFLINE_SECONDS + sum(counts.first.values()),
        rest=sum(counts.rest.values()),
        sweep=START_SECONDS + counts.variants * VARIANT_SECONDS,
        profile=counts.networks * STEP_SECONDS,
    )
