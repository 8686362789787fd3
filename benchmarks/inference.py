"""Time one forecast of 12 frames from 13: eager, from a CUDA graph, and with torch.compile.

    PYTHONPATH=kernels python -m benchmarks.inference [--case simvp-student ...] [--precision fp32 bf16]
        [--way eager graph compiled] [--size 384] [--batch 1] [--repeats 10] [--device cuda]

The networks are those of ``configs/student/`` with random weights, in bf16 with bf16 weights. ``graph`` (CUDA only)
replays a CUDA graph, as ``simcast predict`` does on a GPU; ``compiled`` is ``torch.compile`` of the network. Forecasts
of all ways are compared with the first; a way that differs is rejected.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.end_to_end import CASES as CONFIGURED
from benchmarks.end_to_end import DTYPES
from benchmarks.measurements import RESULTS, ROOT, provenance, quantiles, report, time_call
from benchmarks.timing import time_calls
from simcast_hpc.config import TrainConfig, read_config
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.models import build_model, with_grid

CASES = ("simvp-student", "earthformer-student")
WAYS = ("eager", "graph", "compiled")
# Max. relative difference: another order of additions, in bf16 of roundings.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every way of every case, write the rows; return 1 if a forecast differs."""
    options = parse(arguments)
    rows, wrong = [], False
    for precision in options.precision:
        for case in options.case:
            for row in measure(case, precision, options):
                if row["apart"] <= TOLERANCE[precision]:
                    rows.append(row)
                    continue
                limit = f"{row['apart']:.3g}, must be at most {TOLERANCE[precision]:g}; not written"
                print(f"{case}, {precision}: max. relative difference of {row['way']} {limit}", file=sys.stderr)
                wrong = True
    report(rows, options.csv)
    return int(wrong)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=["bf16" if cuda else "fp32"])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=[way for way in WAYS if cuda or way != "graph"])
    parser.add_argument("--size", type=int, default=384, help="rows and columns of a frame")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10, help="on a CPU; on a GPU calls repeat for two seconds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--csv", type=Path, default=RESULTS / "inference.csv")
    options = parser.parse_args(arguments)
    if "graph" in options.way and options.device != "cuda":
        parser.error("--way graph requires --device cuda")
    if min(options.size, options.batch, options.repeats) < 1:
        parser.error("--size, --batch and --repeats must be at least 1")
    return options


@torch.inference_mode()
def measure(case: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per way; ``apart`` is the max. relative difference from the forecast of the first way."""
    run = read_config(TrainConfig, ROOT / "configs" / CONFIGURED[case], [])
    grid, device = (options.size, options.size), options.device
    torch.manual_seed(0)
    network = build_model(with_grid(run.model, grid), frames_in=run.sequence.frames_in, frames_out=run.frames_out)
    network = network.to(device, DTYPES[precision]).eval().requires_grad_(False)
    frames = torch.rand(options.batch, run.sequence.frames_in, 1, *grid, device=device).to(DTYPES[precision])
    rows, first = [], None
    for way in options.way:
        call = forecaster(way, network, frames)
        forecast = [call() for _ in range(2)][1]  # the second call records a graph
        first = forecast if first is None else first
        if device == "cuda":
            seconds = [1e-6 * time for time in time_calls(lambda _, call=call: call(), 1, device=device, seconds=2.0)]
        else:
            seconds = [time_call(call).wall for _ in range(options.repeats)]
        rows.append(
            {
                "case": case,
                "way": way,
                "precision": precision,
                "shape": f"{options.batch}x{run.sequence.frames_in + run.frames_out}x1x{options.size}x{options.size}",
                **quantiles(seconds),
                "apart": float(f"{((forecast - first).abs().max() / first.abs().max()).item():.2e}"),
                "repeats": len(seconds),
                "threads": torch.get_num_threads(),
                **provenance(device),
            }
        )
    return rows


def forecaster(way: str, network: torch.nn.Module, frames: Tensor) -> Callable[[], Tensor]:
    """Return a function without arguments that computes the forecast in one way."""
    if way == "graph":
        graphs = GraphCache()
        return lambda: graphs.run(network, frames, network=network)
    function = torch.compile(network) if way == "compiled" else network
    return lambda: function(frames)


if __name__ == "__main__":
    sys.exit(main())
