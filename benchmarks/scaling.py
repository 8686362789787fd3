"""Scaling: steps on 1, 2 and 4 CPU ranks, steps over slowed links compared with a model, estimates for GPUs.

    PYTHONPATH=kernels python -m benchmarks.scaling [--turns 3] [--steps 2] [--megabits 25 50 100] [--predict]

Requires root and iproute2: every rank has its own network namespace, joined to the others by a bridge, and limits the
rate of its link with ``tc``. All rates alternate within one start, so that other load affects all of them. Sent bytes
are those counted by the links. ``--predict`` only computes the model.

The model (``benchmarks/scaling_model.py``, docs/concepts/scaling.md) takes the step over a free link and adds
bytes / rate. Its estimates for GPUs use assumed numbers.
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

from benchmarks.measurements import RESULTS, ROOT, machine, report
from benchmarks.scaling_links import LINK, address, namespaces
from benchmarks.scaling_model import Cluster, predict, seconds_over_slowed_link
from benchmarks.scaling_worker import THREADS, parameters
from simcast_hpc.config import EngineConfig, TrainConfig, read_config
from simcast_hpc.models import with_grid
from simcast_hpc.planning.flops import forecaster, training_flops
from simcast_hpc.planning.step_traffic import sent_bytes_per_rank, traffic

CONFIGS = ROOT / "configs" / "direct"
MODELS = {"small": CONFIGS / "sevir.yaml", "1 B": CONFIGS / "sevir-earthformer-1b.yaml"}
GPUS = (8, 16, 64, 256, 512, 1024, 4096)
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
_CASE = ("kind", "model", "ranks", "zero_stage", "precision", "zero_hpz_partition_size", "accumulation", "megabits")


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
    about = machine("cpu", threads=THREADS)
    print("Rows of kind `model` are estimates for one sample per GPU and step on assumed H100 nodes:", Cluster())
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
    with tempfile.TemporaryDirectory() as folder, namespaces(ranks) as names:
        out, processes = Path(folder) / "rows.json", []
        for rank, namespace in enumerate(names):
            group = {
                "RANK": rank,
                "WORLD_SIZE": ranks,
                "LOCAL_RANK": 0,
                "MASTER_ADDR": address(0),
                "MASTER_PORT": _PORT,
            }
            environment = os.environ | {key: str(value) for key, value in group.items()}
            environment |= {"GLOO_SOCKET_IFNAME": LINK, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            words = [sys.executable, "-m", "benchmarks.scaling_worker", json.dumps(task), str(out)]
            with (Path(folder) / f"{rank}.log").open("w") as log:
                line = ["ip", "netns", "exec", namespace, *words]
                processes.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
        try:
            failed = [rank for rank, one in enumerate(processes) if one.wait(timeout=_TIMEOUT_SECONDS)]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed:
            raise RuntimeError(f"rank {failed[0]} failed: {(Path(folder) / f'{failed[0]}.log').read_text()[-2000:]}")
        rows = json.loads(out.read_text(encoding="utf-8"))
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


def costs(config: TrainConfig) -> tuple[int, int]:
    """Return the number of parameters, and of FLOPs of forward and backward per sample."""
    frames = {"frames_in": config.sequence.frames_in, "frames_out": config.frames_out}
    cost = forecaster(with_grid(config.model, GRID), grid=GRID, dtype=torch.bfloat16, **frames)
    network = cost.on_meta(None, torch.bfloat16)
    count = sum(parameter.numel() for parameter in network.parameters())
    return count, training_flops(network, *cost.inputs(1))


def _engine(row: dict[str, Any]) -> EngineConfig:
    return EngineConfig(**{key: row[key] for key in EngineConfig.model_fields if key in row})


if __name__ == "__main__":
    raise SystemExit(main())
