"""Scaling: steps on 1, 2 and 4 CPU ranks, steps over slowed links compared with a model, estimates for GPUs.

    PYTHONPATH=kernels python -m benchmarks.scaling [--turns 3] [--steps 2] [--megabits 25 50 100] [--predict]

Requires root and iproute2: every rank has its own network namespace, joined to the others by a bridge, and limits the
rate of its link with ``tc``. All rates alternate within one start, so that other load affects all of them. Sent bytes
are those counted by the links. ``--predict`` only computes the model.

The model (``benchmarks/scaling_model.py``, docs/concepts/scaling.md) takes the step over a free link and adds
bytes / rate. Its estimates for GPUs use assumed numbers.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measurements import RESULTS, ROOT, machine, report
from benchmarks.scaling_links import run_on_links
from benchmarks.scaling_model import Cluster, predict, seconds_over_slowed_link
from benchmarks.scaling_spatial import Exchanges, exchange_seconds, exchanges
from benchmarks.scaling_worker import THREADS, parameters
from simcast_hpc.config import EngineConfig, TrainConfig, read_config
from simcast_hpc.models import with_grid
from simcast_hpc.planning.flops import Network, forecaster, training_flops
from simcast_hpc.planning.step_traffic import sent_bytes_per_rank, traffic

CONFIGS = ROOT / "configs" / "direct"
MODELS = {"small": CONFIGS / "sevir.yaml", "1 B": CONFIGS / "sevir-earthformer-1b.yaml"}
GPUS = (8, 16, 64, 256, 512, 1024, 4096)
GRID = (384, 384)
SPATIAL = (1, 2, 4, 8)
LINK_ENGINES: list[dict[str, Any]] = [
    {"zero_stage": 0, "precision": "fp32"},
    {"zero_stage": 1, "precision": "bf16"},
    {"zero_stage": 2, "precision": "bf16"},
    {"zero_stage": 3, "precision": "bf16"},
]
RANK_ENGINES: list[dict[str, Any]] = [{"zero_stage": 0, "precision": "fp32"}, {"zero_stage": 3, "precision": "fp32"}]
_CASE = (
    "kind",
    "model",
    "ranks",
    "zero_stage",
    "precision",
    "zero_hpz_partition_size",
    "accumulation",
    "spatial",
    "megabits",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare with the model, predict, write and print the rows; return 0."""
    options = parse(arguments)
    rows = []
    if not options.predict:
        for ranks in (1, 2, 4):
            engines = RANK_ENGINES if ranks > 1 else RANK_ENGINES[:1]
            if ranks == 4:
                engines = [*engines, {"zero_stage": 3, "precision": "fp32", "zero_hpz_partition_size": 2}]
            rows += run(ranks, engines, [None], {"global_size": 4, "micro_size": 1}, options, kind="ranks")
        speeds = [None, *options.megabits]
        rows += run(2, LINK_ENGINES, speeds, {"global_size": 2, "micro_size": 1}, options, kind="link")
        add_model(rows)
        errors = [abs(row["model_error"]) for row in rows if "model_error" in row]
        print(f"model compared with {len(errors)} turns: median error {median(errors):.1%}, max. {max(errors):.1%}")
    rows += predictions(Cluster())
    rows += spatial_predictions(Cluster())
    about = machine("cpu", threads=THREADS)
    print(
        "Rows of kind `model` and `spatial model` are estimates for one sample per GPU and step on assumed H100 nodes:",
        Cluster(),
    )
    report([row | about for row in rows], options.csv, group=",".join(_CASE))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="repetitions of all rates")
    parser.add_argument("--steps", type=int, default=2, help="timed steps per turn")
    parser.add_argument(
        "--megabits", nargs="+", type=float, default=[25, 50, 100], help="rates of slowed links in Mbit/s"
    )
    parser.add_argument("--predict", action="store_true", help="only compute the model")
    parser.add_argument("--csv", type=Path, default=RESULTS / "scaling.csv")
    options = parser.parse_args(arguments)
    if min(options.turns, options.steps) < 1 or min(options.megabits) <= 0:
        parser.error("--turns, --steps and --megabits must be positive")
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
        RuntimeError: a rank failed; contains the end of its log.
    """
    task = {"engines": engines, "batch": batch, "megabits": megabits, "turns": options.turns, "steps": options.steps}
    rows = run_on_links("benchmarks.scaling_worker", task, ranks=ranks)
    load = round(os.getloadavg()[0], 1)
    steps = batch["global_size"] // (batch["micro_size"] * ranks)
    about = {"kind": kind, "ranks": ranks, "accumulation": steps, "model": "test", "steps": options.steps, "load": load}
    return [row | about for row in rows]


def add_model(rows: list[dict[str, Any]]) -> None:
    """Add the computed bytes to each measured row, and over slowed links the computed time and its relative error."""
    free: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["megabits"] is None:
            free.setdefault(_case(row), []).append(row["seconds"])
    for row in rows:
        engine = EngineConfig(**{key: row[key] for key in EngineConfig.model_fields if key in row})
        total = traffic(parameters(), engine=engine, accumulation=row["accumulation"])
        ranks, partition = row["ranks"], engine.zero_hpz_partition_size
        row["computed_bytes"] = (
            sent_bytes_per_rank(total, ranks=ranks, partition=partition, gloo=True) if ranks > 1 else 0.0
        )
        if row["megabits"] is not None:
            base = median(free[_case(row)])
            row["model_seconds"] = seconds_over_slowed_link(base, row["computed_bytes"], megabits=row["megabits"])
            row["model_error"] = row["model_seconds"] / row["seconds"] - 1


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _CASE[:-1])


def predictions(cluster: Cluster) -> list[dict[str, Any]]:
    """Return estimates for every stage and number of GPUs, with one sample per GPU and one micro-batch per step."""
    rows = []
    for name, path in MODELS.items():
        config = read_config(TrainConfig, path)
        count, flops = costs(config)
        for stage, partition in ((1, 1), (2, 1), (3, 1), (3, cluster.gpus_per_node)):
            update = {"zero_stage": stage, "zero_hpz_partition_size": partition}
            engine = config.engine.model_copy(update=update)
            for gpus in GPUS:
                sizes = {"engine": engine, "accumulation": 1}
                step = predict(count, flops, gpus=gpus, cluster=cluster, **sizes)
                rows.append(
                    {
                        "kind": "model",
                        "model": name,
                        "ranks": gpus,
                        "zero_stage": stage,
                        "precision": engine.precision,
                        "gradient_reduction": engine.gradient_reduction,
                        "zero_hpz_partition_size": partition,
                        "accumulation": 1,
                        "megabits": None,
                        "computed_bytes": sent_bytes_per_rank(traffic(count, **sizes), ranks=gpus, partition=partition),
                        "model_seconds": step.longest,
                        "model_seconds_overlapped": step.shortest,
                        "efficiency": step.compute / step.longest,
                        "efficiency_overlapped": step.compute / step.shortest,
                    }
                )
    return rows


def spatial_predictions(cluster: Cluster) -> list[dict[str, Any]]:
    """Return estimates of ZeRO 1 with spatial sharding, for one sample and micro-batch per group and step."""
    rows = []
    for name, path in MODELS.items():
        config = read_config(TrainConfig, path)
        count, flops = costs(config)
        engine = config.engine.model_copy(update={"zero_stage": 1, "zero_hpz_partition_size": 1})
        for spatial in SPATIAL:
            of_rows = Exchanges()
            if spatial > 1:
                of_rows = exchanges(network_of(config), spatial=spatial, dtype=torch.bfloat16)
            seconds = exchange_seconds(of_rows, spatial=spatial, cluster=cluster)
            recipe = config.batch.global_size * spatial
            for gpus in sorted({recipe, *GPUS}):
                step = predict(
                    count, flops, engine=engine, accumulation=1, gpus=gpus, cluster=cluster, spatial=spatial,
                    exchange=seconds,
                )  # fmt: skip
                rows.append(
                    {
                        "kind": "spatial model",
                        "model": name,
                        "ranks": gpus,
                        "zero_stage": 1,
                        "precision": engine.precision,
                        "gradient_reduction": engine.gradient_reduction,
                        "spatial": spatial,
                        "samples": gpus // spatial,
                        "accumulation": 1,
                        "exchanges": of_rows.calls.total(),
                        "exchange_bytes": of_rows.all_bytes,
                        "exchange_seconds": step.exchange,
                        "compute_seconds": step.compute,
                        "model_seconds": step.longest,
                        "model_seconds_overlapped": step.shortest,
                        "efficiency": step.compute / step.longest,
                        "efficiency_overlapped": step.compute / step.shortest,
                    }
                )
    return rows


def network_of(config: TrainConfig) -> Network:
    """Return the network of a configuration in bf16."""
    frames = {"frames_in": config.sequence.frames_in, "frames_out": config.frames_out}
    return forecaster(with_grid(config.model, GRID), grid=GRID, dtype=torch.bfloat16, **frames)


def costs(config: TrainConfig) -> tuple[int, int]:
    """Return the number of parameters, and of FLOPs of forward and backward per sample."""
    cost = network_of(config)
    network = cost.on_meta(None, torch.bfloat16)
    count = sum(parameter.numel() for parameter in network.parameters())
    return count, training_flops(network, *cost.inputs(1))


def _engine(row: dict[str, Any]) -> EngineConfig:
    return EngineConfig(**{key: row[key] for key in EngineConfig.model_fields if key in row})


if __name__ == "__main__":
    raise SystemExit(main())
