"""Count the collectives and file operations of a checkpoint, an EMA update, a resume and a validation, per rank.

    python -m benchmarks.checkpoint_counts [--ranks 2 4] [--csv FILE]

The phases are those of a run with a moving average: the building of the engine, an update of the average, a save until
it is on disk, a resume by a new engine, and the weights and scores of a validation. Collectives are counted as by
``benchmarks.collective_counts``, files by ``strace``. Rank 0 and rank 1 are written; the others are like rank 1.
``benchmarks/checkpoint_model.py`` extrapolates the rows to more ranks.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.collective_counts import CollectiveCounter
from benchmarks.file_operations import COLUMNS, command_line, counts, mark
from benchmarks.measurements import RESULTS, provenance, report
from benchmarks.scaling_worker import FRAMES_IN, FRAMES_OUT, SIZE, Module, config_of
from simcast_hpc.config import EMAConfig
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.launchers import child_environment, run_ranks
from simcast_hpc.distributed.partitions import write_fragments
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.train.checkpoint import CheckpointWriter, newest_intact
from simcast_hpc.train.ema import EMA
from simcast_hpc.train.validation import combine_windows, gather_weights

CASES: list[dict[str, Any]] = [
    {"zero_stage": 0, "precision": "fp32"},
    *[{"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)],
]
_IDENTITY = {"name": "counts"}
_WINDOWS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Count on new ranks, write and print the rows; with ``--worker``, be one of the ranks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--csv", type=Path, default=RESULTS / "checkpoint_counts.csv")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.ranks) < 2:
        parser.error("--ranks must be at least 2")
    if options.worker is not None:
        work(options.worker)
        return 0
    rows = [row for ranks in options.ranks for row in count(ranks)]
    report([{**row, **provenance("cpu", threads=1)} for row in rows], options.csv)
    return 0


def count(ranks: int) -> list[dict[str, Any]]:
    """Return one row per case, rank and phase, counted on ``ranks`` new processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = [sys.executable, "-m", "benchmarks.checkpoint_counts", "--worker", name]
        if status := run_ranks(command_line(folder, line), ranks=ranks, environment=child_environment()):
            raise SystemExit(f"the ranks ended with status {status}")
        rows = []
        for rank in (0, 1):
            files: dict[str, Counter[str]] = {}
            with (folder / f"rank-{rank}").open(encoding="utf-8", errors="replace") as lines:
                for (phase, kind), found in counts(lines, {name: "run"}).items():
                    if kind == "run":
                        files[phase] = found
            for row in json.loads((folder / f"rows-{rank}.json").read_text(encoding="utf-8")):
                found = files.get(f"{row['zero_stage']}/{row['phase']}", Counter())
                rows.append({"ranks": ranks, "rank": rank, **row, **{key: found[key] for key in COLUMNS}})
    return rows


def work(folder: Path) -> None:
    """Run one rank; ranks 0 and 1 write their rows to ``folder``."""
    torch.set_num_threads(1)
    ranks = join_process_group(timeout_minutes=10.0)
    rows = [row for engine in CASES for row in count_case(engine, ranks, folder / f"stage-{engine['zero_stage']}")]
    if ranks.rank < 2:
        (folder / f"rows-{ranks.rank}.json").write_text(json.dumps(rows), encoding="utf-8")
    ranks.barrier()
    ranks.leave()


def count_case(options: dict[str, Any], ranks: TorchRanks, folder: Path) -> list[dict[str, Any]]:
    """Return the collectives of each phase of a run with checkpoints below ``folder``."""
    torch.manual_seed(0)
    config = config_of(options, {"global_size": ranks.size, "micro_size": 1})
    rows: list[dict[str, Any]] = []

    @contextmanager
    def phase(name: str) -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {"zero_stage": options["zero_stage"], "phase": name}
        mark(f"{options['zero_stage']}/{name}")
        with CollectiveCounter() as counter:
            yield row
        mark("between phases")
        rows.append(row | {"collectives": counter.calls.total(), "collective_bytes": counter.sizes.total()})

    with phase("build"):
        engine = build_engine(Module(), config, ranks)
    ema = EMA(EMAConfig(decay=0.99), engine, ranks)
    set_learning_rate(engine, 1e-3)
    engine.backward(_loss(engine))
    engine.step()
    with phase("ema"):
        ema(1, None)
    writer = CheckpointWriter(folder, keep=2, ranks=ranks, timeout_minutes=2.0)
    with phase("save"):
        writer.save(engine, step=1, samples_seen=ranks.size, identity=_IDENTITY, average=ema.tensors)
        writer.wait()
    with phase("validation, averages"):
        gather_weights(engine, ema)
    with phase("validation, weights"):
        gather_weights(engine, None)
    with phase("validation, scores"):
        share = range(ranks.rank, _WINDOWS * ranks.size, ranks.size)
        combine_windows({index: {"csi": 0.5, "mse": 0.1} for index in share}, ranks, len)
    engine = build_engine(Module(), config, ranks)
    ema = EMA(EMAConfig(decay=0.99), engine, ranks)
    with phase("resume") as row:
        checkpoint = newest_intact(folder, ranks)
        assert checkpoint is not None
        checkpoint.require(_IDENTITY)
        checkpoint.check_names(engine)
        write_fragments(engine, checkpoint.read, ranks, step=1, warm_up=lambda: _loss(engine))
        ema.restore(lambda name, start, length: checkpoint.read("ema", name, start, length))
        checkpoint.close()
        row["mapped_bytes_read"] = checkpoint.bytes_read
    return rows


def _loss(engine: Any) -> torch.Tensor:
    return engine(torch.zeros(1, FRAMES_IN + FRAMES_OUT, 1, SIZE, SIZE))


if __name__ == "__main__":
    sys.exit(main())
