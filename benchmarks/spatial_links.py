"""Steps with spatial sharding over slowed links, compared with the model of ``benchmarks/scaling_spatial.py``.

    PYTHONPATH=kernels python -m benchmarks.spatial_links [--turns 3] [--steps 3] [--megabits 4 8] [--csv FILE]

Requires root and iproute2, as ``benchmarks.scaling``. Each rank counts the bytes that it passes to torch for exchanges
of rows; the link counts all that it sends, gradients included. The model takes the step over a free link and adds the
computed bytes / rate.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measurements import RESULTS, machine, report, time_call
from benchmarks.scaling_links import run_on_links, sent_bytes, shape
from benchmarks.scaling_model import seconds_over_slowed_link
from benchmarks.scaling_spatial import SentRowShards, exchanges
from benchmarks.scaling_worker import FRAMES_IN, FRAMES_OUT, THREADS, config_of
from simcast_hpc.config import EarthformerConfig, EngineConfig, SimVPConfig, StackConvStem
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.process_group import join_process_group
from simcast_hpc.distributed.spatial_groups import join_spatial_groups
from simcast_hpc.models import build_model, with_grid
from simcast_hpc.models.row_sharding import shard_rows
from simcast_hpc.planning.flops import Network, forecaster
from simcast_hpc.planning.step_traffic import sent_bytes_per_rank, traffic

SIZE = 96
_BURST = "16kb"  # a step sends about a megabyte
NETWORKS = {
    "simvp": SimVPConfig(hidden_spatial=8, hidden_temporal=32, temporal_blocks=2, groups=4),
    "earthformer": EarthformerConfig(
        width=16, heads=2, stem=StackConvStem(widths=(8, 16), scales=(2, 2), convolutions=(1, 1))
    ),
}
"""Small networks, whose exchanges of rows send about as much as their gradients."""
CASES = ((2, 2), (4, 2), (4, 4))
"""Ranks, and ranks per sample."""
_CASE = ("network", "ranks", "spatial")


class Module(torch.nn.Module):
    """A network on the rows of a rank, and the part of the MSE of a sample that the rank has, times the ranks."""

    def __init__(self, network: str, shards: SentRowShards):
        super().__init__()
        config = with_grid(NETWORKS[network], (SIZE, SIZE))
        self.model = build_model(config, frames_in=FRAMES_IN, frames_out=FRAMES_OUT)
        self.shards = shards
        shard_rows(self.model, shards)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the loss of whole frames ``[B, T + T', 1, H, W]``."""
        rows = self.shards.take(frames).contiguous()
        return (self.model(rows[:, :FRAMES_IN]) - rows[:, FRAMES_IN:]).square().mean()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare with the model, write and print the rows; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="repetitions of all rates")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per turn")
    parser.add_argument("--megabits", nargs="+", type=float, default=[4, 8], help="rates of slowed links in Mbit/s")
    parser.add_argument("--csv", type=Path, default=RESULTS / "spatial_links.csv")
    options = parser.parse_args(arguments)
    if min(options.turns, options.steps) < 1 or min(options.megabits) <= 0:
        parser.error("--turns, --steps and --megabits must be positive")
    rows = []
    for ranks, spatial in CASES:
        task = {"spatial": spatial, "megabits": [None, *options.megabits]}
        task |= {"turns": options.turns, "steps": options.steps}
        rows += [{"ranks": ranks, **row} for row in run_on_links("benchmarks.spatial_links", task, ranks=ranks)]
    add_model(rows)
    report([row | machine("cpu", threads=THREADS) for row in rows], options.csv, group=",".join(_CASE))
    return 0


def network_of(name: str) -> Network:
    """Return a network for whole frames."""
    frames = {"frames_in": FRAMES_IN, "frames_out": FRAMES_OUT}
    grid = (SIZE, SIZE)
    return forecaster(with_grid(NETWORKS[name], grid), grid=grid, dtype=torch.float32, **frames)


def add_model(rows: list[dict[str, Any]]) -> None:
    """Add the computed exchanges and bytes to each row, and over slowed links the computed time and its error."""
    free: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["megabits"] is None:
            free.setdefault(tuple(row[key] for key in _CASE), []).append(row["seconds"])
    for row in rows:
        network, ranks = network_of(row["network"]), row["ranks"]
        of_rows = exchanges(network, spatial=row["spatial"], dtype=torch.float32)
        count = sum(parameter.numel() for parameter in network.on_meta(None, torch.float32).parameters())
        engine = EngineConfig(precision="fp32", zero_stage=0)
        gradients = sent_bytes_per_rank(traffic(count, engine=engine, accumulation=1), ranks=ranks)
        row["computed_exchanges"] = of_rows.calls.total()
        row["computed_row_bytes"] = of_rows.all_bytes
        row["computed_bytes"] = gradients + of_rows.all_bytes
        if row["megabits"] is not None:
            base = median(free[tuple(row[key] for key in _CASE)])
            row["model_seconds"] = seconds_over_slowed_link(base, row["computed_bytes"], megabits=row["megabits"])
            row["model_error"] = row["model_seconds"] / row["seconds"] - 1


def work(task: dict[str, Any], out: Path) -> None:
    """Run one rank: time every network at every rate in alternation; rank 0 writes the rows."""
    torch.set_num_threads(THREADS)
    ranks = join_process_group(timeout_minutes=10)
    joined, unit = join_spatial_groups(task["spatial"], device=ranks.device)
    rows = []
    for name in NETWORKS:
        torch.manual_seed(0)
        shards = SentRowShards(joined.rank, joined.size, joined.group)
        batch = {"global_size": ranks.size // task["spatial"], "micro_size": 1}
        config = config_of({"zero_stage": 0, "precision": "fp32"}, batch, spatial=task["spatial"])
        engine = build_engine(Module(name, shards), config, ranks, unit=unit)
        set_learning_rate(engine, 1e-3)

        def step(engine: Any = engine) -> None:
            engine.backward(engine(torch.zeros(1, FRAMES_IN + FRAMES_OUT, 1, SIZE, SIZE)))
            engine.step()

        shape(None)
        for _ in range(2):
            step()
        calls, row_bytes = shards.found.calls.total(), shards.found.all_bytes
        step()
        calls, row_bytes = shards.found.calls.total() - calls, shards.found.all_bytes - row_bytes
        for turn in range(task["turns"]):
            for megabits in task["megabits"]:
                shape(megabits, burst=_BURST)
                ranks.barrier()
                sent = sent_bytes()
                seconds = median(time_call(step).wall for _ in range(task["steps"]))
                values = (seconds, (sent_bytes() - sent) / task["steps"], calls, row_bytes)
                most = [max(of_all) for of_all in zip(*ranks.gather(values), strict=True)]
                row = dict(zip(("seconds", "sent_bytes", "exchanges", "row_bytes"), most, strict=True))
                rows.append({"network": name, "spatial": task["spatial"], "megabits": megabits, "turn": turn, **row})
        shape(None)
        ranks.barrier()
    if ranks.is_first:
        out.write_text(json.dumps(rows), encoding="utf-8")
    ranks.leave()


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].startswith("{"):
        work(json.loads(sys.argv[1]), Path(sys.argv[2]))
    else:
        sys.exit(main())
