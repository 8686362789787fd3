"""Scaling: steps on 1, 2 and 4 CPU ranks, steps over slowed links against a model, and what the model says of GPUs.

    PYTHONPATH=kernels python -m benchmarks.scaling [--turns 3] [--steps 2] [--megabits 25 50 100] [--predict]

Needs root and iproute2: every rank has a network namespace of its own, joined to the others by a bridge, and slows its
link with ``tc``. Within one start all speeds take turns, so that what else the machine does falls on all. The bytes on
the wire are those that the links counted. ``--predict`` leaves the measuring out and prints the model alone.

The model (``benchmarks/scaling_model.py``, docs/scaling.md) takes the step over a free link and adds bytes by speed.
Its predictions for GPUs rest on assumed numbers and are called a model everywhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness import RESULTS, machine, write_rows
from benchmarks.scaling_links import LINK, address, namespaces
from benchmarks.scaling_model import (
    Cluster,
    over_a_slowed_link,
    predict,
    sent_by_a_rank,
    traffic,
)
from benchmarks.scaling_worker import THREADS, parameters
from simcast_hpc.config import EngineConfig, TrainConfig, read_config
from simcast_hpc.models import with_grid
from simcast_hpc.planning.flops import forecaster, training_flops

CONFIGS = Path(__file__).parents[1] / "configs" / "direct"
MODELS = {"small": CONFIGS / "sevir.yaml", "1 B": CONFIGS / "sevir-earthformer-1b.yaml"}
GPUS = (8, 16, 64, 256, 1024)
GRID = (384, 384)
_PORT = 29577
_TIMEOUT_SECONDS = 1800
LINK_ENGINES: list[dict[str, Any]] = [
    {"zero_stage": 0, "precision": "fp32"},
    {"zero_stage": 1, "precision": "bf16"},
    {"zero_stage": 2, "precision": "bf16"},
    {"zero_stage": 3, "precision": "bf16"},
]
RANK_ENGINES: list[dict[str, Any]] = [{"zero_stage": 0, "precision": "fp32"}, {"zero_stage": 3, "precision": "fp32"}]
FIELDS = (
    "kind", "model", "ranks", "zero_stage", "precision", "zero_hpz_partition_size", "accumulation", "megabits", "turn",
    "steps", "seconds", "processor_seconds", "sent_bytes", "computed_bytes", "model_seconds",
    "model_seconds_overlapped", "model_error", "load", "device", "torch", "triton", "commit", "python",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, hold the model against it, predict, print tables and write the CSV."""
    options = parse(arguments)
    about, rows = machine("cpu", threads=THREADS), []
    if not options.predict:
        for ranks in (1, 2, 4):
            batch = {"global_size": 4, "micro_size": 1}
            engines = RANK_ENGINES if ranks > 1 else RANK_ENGINES[:1]
            if ranks == 4:
                engines = [*engines, {"zero_stage": 3, "precision": "fp32", "zero_hpz_partition_size": 2}]
            rows += run(ranks, engines, [None], batch, options, kind="ranks")
        rows += run(
            2, LINK_ENGINES, [None, *options.megabits], {"global_size": 2, "micro_size": 1}, options, kind="link"
        )
        judge(rows)
        show_measured(rows)
    predicted = predictions(Cluster())
    show_predicted(predicted)
    rows += predicted
    write_rows([row | about for row in rows], FIELDS, options.csv)
    print(options.csv)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="of all speeds")
    parser.add_argument("--steps", type=int, default=2, help="timed together in a turn")
    parser.add_argument("--megabits", nargs="+", type=float, default=[25, 50, 100], help="a second, of slowed links")
    parser.add_argument("--predict", action="store_true", help="measure nothing")
    parser.add_argument("--csv", type=Path, default=RESULTS / "scaling.csv")
    options = parser.parse_args(arguments)
    if min(options.turns, options.steps) < 1 or min(options.megabits) <= 0:
        parser.error("--turns, --steps and --megabits are positive")
    return options


def run(
    ranks: int,
    engines: list[dict[str, Any]],
    megabits: list[float | None],
    batch: dict[str, int],
    options: argparse.Namespace,
    *,
    kind: str,
) -> list[dict[str, Any]]:
    """Return the rows of steps on ``ranks`` namespaces.

    Raises:
        RuntimeError: a rank failed; its last words.
    """
    task = {"engines": engines, "batch": batch, "megabits": megabits, "turns": options.turns, "steps": options.steps}
    with tempfile.TemporaryDirectory() as folder, namespaces(ranks) as names:
        out, started = Path(folder) / "rows.json", []
        for rank, namespace in enumerate(names):
            place = {
                "RANK": rank,
                "WORLD_SIZE": ranks,
                "LOCAL_RANK": 0,
                "MASTER_ADDR": address(0),
                "MASTER_PORT": _PORT,
            }
            environment = os.environ | {key: str(value) for key, value in place.items()}
            environment |= {"GLOO_SOCKET_IFNAME": LINK, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            words = [sys.executable, "-m", "benchmarks.scaling_worker", json.dumps(task), str(out)]
            with (Path(folder) / f"{rank}.log").open("w") as log:
                line = ["ip", "netns", "exec", namespace, *words]
                started.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
        try:
            failed = [rank for rank, one in enumerate(started) if one.wait(timeout=_TIMEOUT_SECONDS)]
        finally:
            for one in started:
                one.kill()
                one.wait()
        if failed:
            raise RuntimeError(f"rank {failed[0]} failed: {(Path(folder) / f'{failed[0]}.log').read_text()[-2000:]}")
        found = json.loads(out.read_text(encoding="utf-8"))
    load = round(os.getloadavg()[0], 1)
    steps = batch["global_size"] // (batch["micro_size"] * ranks)
    about = {"kind": kind, "ranks": ranks, "accumulation": steps, "model": "test", "steps": options.steps, "load": load}
    return [row | about for row in found]


def judge(rows: list[dict[str, Any]]) -> None:
    """Add to each measured row the model's bytes, and over slowed links its time and how far it lies off."""
    free = {key: median(row["seconds"] for row in group) for key, group in _by_case(rows, megabits=None).items()}
    for row in rows:
        engine = _engine(row)
        said = traffic(parameters(), engine=engine, accumulation=row["accumulation"])
        ranks, partition = row["ranks"], engine.zero_hpz_partition_size
        row["computed_bytes"] = sent_by_a_rank(said, ranks=ranks, partition=partition, gloo=True) if ranks > 1 else 0.0
        if row["megabits"] is not None:
            base = free[_case(row)]
            row["model_seconds"] = over_a_slowed_link(base, row["computed_bytes"], megabits=row["megabits"])
            row["model_error"] = row["model_seconds"] / row["seconds"] - 1


def predictions(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the model's rows: a sample a GPU, one micro batch a step, for every stage and number of GPUs."""
    rows = []
    for name, path in MODELS.items():
        config = read_config(TrainConfig, path)
        count, operations, modules = costs(config)
        for stage, partition in ((1, 1), (2, 1), (3, 1), (3, cluster.gpus_of_a_node)):
            update = {"zero_stage": stage, "zero_hpz_partition_size": partition}
            engine = config.engine.model_copy(update=update)
            for gpus in GPUS:
                told = predict(
                    count, operations, engine=engine, accumulation=1, gpus=gpus, cluster=cluster, tensors=modules
                )
                rows.append(
                    {
                        "kind": "model",
                        "model": name,
                        "ranks": gpus,
                        "zero_stage": stage,
                        "precision": engine.precision,
                        "zero_hpz_partition_size": partition,
                        "accumulation": 1,
                        "model_seconds": told.most,
                        "model_seconds_overlapped": told.least,
                        "computed_bytes": sent_by_a_rank(
                            traffic(count, engine=engine, accumulation=1), ranks=gpus, partition=partition
                        ),
                        "efficiency": told.efficiency,
                    }
                )
    return rows


def costs(config: TrainConfig) -> tuple[int, int, int]:
    """Return parameters, operations of a sample's forward and backward pass, and modules that hold parameters."""
    frames = {"frames_in": config.sequence.frames_in, "frames_out": config.frames_out}
    subject = forecaster(with_grid(config.model, GRID), grid=GRID, dtype=torch.bfloat16, **frames)
    made = subject.on_meta(None, torch.bfloat16)
    modules = sum(1 for module in made.modules() if next(module.parameters(recurse=False), None) is not None)
    count = sum(parameter.numel() for parameter in made.parameters())
    return count, training_flops(made, *subject.inputs(1)), modules


def show_measured(rows: Sequence[dict[str, Any]]) -> None:
    """Print medians over the turns."""
    lines = [
        ("kind", "ranks", "ZeRO", "dtype", "Mbit/s", "s a step", "cpu s", "MB sent", "computed", "model s", "error")
    ]
    for case, group in _by_case(rows).items():
        first = group[0]
        speed = "free" if first["megabits"] is None else f"{first['megabits']:g}"
        seconds = median(row["seconds"] for row in group)
        said = first.get("model_seconds")
        error = "" if said is None else f"{said / seconds - 1:+.1%}"
        hpz = f" hpZ {first['zero_hpz_partition_size']}" if first.get("zero_hpz_partition_size", 1) > 1 else ""
        numbers = (median(row["processor_seconds"] for row in group), median(row["sent_bytes"] for row in group) / 1e6)
        lines.append((
            first["kind"], str(first["ranks"]), f"{first['zero_stage']}{hpz}", first["precision"], speed,
            f"{seconds:.2f}", f"{numbers[0]:.2f}", f"{numbers[1]:.2f}", f"{first['computed_bytes'] / 1e6:.2f}",
            "" if said is None else f"{said:.2f}", error,
        ))  # fmt: skip
        assert case
    errors = [abs(row["model_error"]) for row in rows if "model_error" in row]
    _table(lines)
    print(f"model against {len(errors)} measured turns: median error {median(errors):.1%}, largest {max(errors):.1%}")


def show_predicted(rows: Sequence[dict[str, Any]]) -> None:
    """Print the model's predictions."""
    print("A model, not a measurement: one sample a GPU, one micro batch a step, assumed H100 nodes of 8:", Cluster())
    lines = [("model", "ZeRO", *(f"{gpus} GPUs" for gpus in GPUS))]
    for key in dict.fromkeys((row["model"], row["zero_stage"], row["zero_hpz_partition_size"]) for row in rows):
        name, stage, partition = key
        of = [row for row in rows if (row["model"], row["zero_stage"], row["zero_hpz_partition_size"]) == key]
        cells = [
            f"{1e3 * row['model_seconds_overlapped']:.0f} to {1e3 * row['model_seconds']:.0f} ms "
            f"({row['efficiency'][0]:.0%} to {row['efficiency'][1]:.0%})"
            for row in of
        ]
        lines.append((name, f"{stage}{f' hpZ {partition}' if partition > 1 else ''}", *cells))
    _table(lines)
    for row in rows:
        row.pop("efficiency")


def _engine(row: dict[str, Any]) -> EngineConfig:
    return EngineConfig(**{key: row[key] for key in EngineConfig.model_fields if key in row})


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("kind", "ranks", "zero_stage", "precision", "zero_hpz_partition_size", "accumulation")
    return tuple(row.get(key) for key in keys)


def _by_case(rows: Sequence[dict[str, Any]], **only: Any) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if all(row[key] == value for key, value in only.items()):
            case = _case(row) if only else (*_case(row), row["megabits"])
            found.setdefault(case, []).append(row)
    return found


def _table(lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
