"""Count the collectives of a training run by operation, data type and bytes, per rank, in a small run on local ranks.

    python -m benchmarks.collective_counts [--ranks 2] [--accumulation 2] [--csv FILE]

It counts an optimizer step, the collection of a checkpoint's state, for which each rank takes the elements that it
holds, and the weights of a validation, which are gathered by name; ``benchmarks.checkpoint_counts`` counts complete
checkpoints and resumes. The bytes are those of the full tensors: the output of an all-gather, the input of a
reduce-scatter. The counts are made where torch dispatches collectives to the process group, so those inside DeepSpeed
are included.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measurements import RESULTS, provenance, report
from benchmarks.scaling_worker import FRAMES_IN, FRAMES_OUT, SIZE, Module, config_of
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.launchers import child_environment, run_ranks
from simcast_hpc.distributed.named_tensors import read_parameters
from simcast_hpc.distributed.partitions import stored_fragments
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group

CASES: list[dict[str, Any]] = [
    {"zero_stage": 0, "precision": "fp32"},
    *[
        {"zero_stage": stage, "precision": "bf16", "gradient_reduction": reduction}
        for stage in (1, 2, 3)
        for reduction in ("bf16", "fp32")
    ],
    {
        "zero_stage": 3,
        "precision": "bf16",
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 100_000}},
    },
]
# Operation of torch's namespace c10d -> its name, and the position of the argument with the full tensors.
_OPERATIONS = {
    "allreduce_": ("all-reduce", 0),
    "allreduce_coalesced_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 0),
    "allgather_": ("all-gather", 0),
    "allgather_into_tensor_coalesced_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_scatter_": ("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
    "alltoall_base_": ("all-to-all", 1),
    "alltoall_": ("all-to-all", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "gather_": ("gather", 0),
    "scatter_": ("scatter", 1),
    "send": ("send", 0),
    "recv_": ("receive", 0),
    "barrier": ("barrier", None),
}


class CollectiveCounter(TorchDispatchMode):
    """Counts the collectives of a ``with`` block on this rank, also those of a backward pass on the CPU.

    Attributes:
        calls: number by (operation, data type).
        sizes: bytes of the full tensors by (operation, data type).
    """

    def __init__(self):
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.sizes: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation of ``c10d`` and run it."""
        name = func.name().split("::")[-1].split(".")[0]
        if func.namespace == "c10d" and name in _OPERATIONS:
            operation, position = _OPERATIONS[name]
            tensors = [] if position is None else list(_tensors(args[position]))
            key = operation, str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
            self.calls[key] += 1
            self.sizes[key] += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per operation and data type."""
        return [
            {"operation": operation, "dtype": dtype, "calls": number, "bytes": self.sizes[operation, dtype]}
            for (operation, dtype), number in sorted(self.calls.items())
        ]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count on new ranks, write and print the rows; with ``--worker``, be one of the ranks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches per step")
    parser.add_argument("--csv", type=Path, default=RESULTS / "collective_counts.csv")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.ranks < 2 or options.accumulation < 1:
        parser.error("--ranks must be at least 2, and --accumulation at least 1")
    if options.worker is not None:
        work(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        words = ["--ranks", options.ranks, "--accumulation", options.accumulation, "--worker", out]
        line = [sys.executable, "-m", "benchmarks.collective_counts", *map(str, words)]
        if status := run_ranks(line, ranks=options.ranks, environment=child_environment()):
            raise SystemExit(f"the ranks ended with status {status}")
        rows = json.loads(out.read_text(encoding="utf-8"))
    report([{**row, **provenance("cpu", threads=1)} for row in rows], options.csv)
    return 0


def work(options: argparse.Namespace) -> None:
    """Run one rank: count all cases; rank 0 writes the rows to ``options.worker``."""
    torch.set_num_threads(1)
    ranks = join_process_group(timeout_minutes=10.0)
    rows = []
    for engine in CASES:
        for phase, counter in count_run(engine, ranks, accumulation=options.accumulation).items():
            case = {"gradient_reduction": "fp32", **engine, "deepspeed": json.dumps(engine.get("deepspeed", {}))}
            case["phase"] = phase
            columns = {"ranks": ranks.size, "accumulation": options.accumulation}
            rows += [{**columns, **case, **row} for row in counter.rows]
    if ranks.is_first:
        options.worker.write_text(json.dumps(rows), encoding="utf-8")
    ranks.barrier()
    ranks.leave()


def count_run(engine_options: dict[str, Any], ranks: TorchRanks, *, accumulation: int) -> dict[str, CollectiveCounter]:
    """Return the collectives of the third optimizer step, of a save and of the weights of a validation."""
    torch.manual_seed(0)
    batch = {"global_size": accumulation * ranks.size, "micro_size": 1}
    engine = build_engine(Module(), config_of(engine_options, batch), ranks)
    set_learning_rate(engine, 1e-3)
    phases = {name: CollectiveCounter() for name in ("step", "save", "validation weights")}
    for step in range(3):
        with phases["step"] if step == 2 else CollectiveCounter():
            for _ in range(accumulation):
                loss = engine(torch.zeros(1, FRAMES_IN + FRAMES_OUT, 1, SIZE, SIZE))
                engine.backward(loss)
                engine.step()
    with phases["save"]:
        for _ in stored_fragments(engine, ranks):
            pass
    with phases["validation weights"]:
        for _ in read_parameters(engine):
            pass
    return phases


if __name__ == "__main__":
    sys.exit(main())
