"""Time one forecast: 12 frames of 384 x 384 from 13, batch 1, as it is, from a CUDA graph, and compiled.

    PYTHONPATH=kernels python -m benchmarks.inference [--case simvp-student ...] [--precision fp32 bf16]
        [--way eager graph compiled] [--size 384] [--batch 1] [--repeats 10] [--device cuda]

The networks are those of ``configs/student/`` with random weights; what is timed ends with the frames on the device.
``eager`` is the network called as it is, ``graph`` the same call replayed as a CUDA graph, as ``simcast predict`` runs
it on a GPU, on CUDA alone; ``compiled`` is ``torch.compile`` of the whole network, whose first call is not counted. In
bf16 the weights are. Forecasts of the ways are compared, and one that differs is not written.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.end_to_end import CASES as CONFIGURED
from benchmarks.end_to_end import DTYPES
from benchmarks.harness import RESULTS, machine, write_rows
from benchmarks.timing import quantile, time_calls
from simcast_hpc.config import TrainConfig, read_config
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.models import build_model, with_grid

ROOT = Path(__file__).resolve().parents[1]
CASES = ("simvp-student", "earthformer-student")
WAYS = ("eager", "graph", "compiled")
COLUMNS = (
    "case", "way", "precision", "shape", "p20_s", "p50_s", "p80_s", "apart", "repeats", "threads", "load", "device",
    "torch", "triton", "commit", "python",
)  # fmt: skip
# Of the largest value of the forecast: another order of additions, in bf16 of roundings.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every way of every case, write the rows; return 1 where a way gave another forecast."""
    options = parse(arguments)
    rows, wrong = [], False
    for precision in options.precision:
        for case in options.case:
            for row in measured(case, precision, options):
                if row["apart"] > TOLERANCE[precision]:
                    told = (
                        f"{row['apart']:.3g} of the largest off, must be at most {TOLERANCE[precision]:g}; not written"
                    )
                    print(f"{case}, {precision}: {row['way']} lies {told}", file=sys.stderr)
                    wrong = True
                    continue
                rows.append(row)
                print(f"{case:<20} {precision:<5} {row['way']:<9} p50 {1e3 * row['p50_s']:.2f} ms", flush=True)
    write_rows(rows, COLUMNS, options.csv)
    print(options.csv)
    return int(wrong)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line; without CUDA there is no way ``graph``."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=["bf16" if cuda else "fp32"])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=[way for way in WAYS if cuda or way != "graph"])
    parser.add_argument("--size", type=int, default=384, help="rows and columns of a frame")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10, help="of a CPU; a GPU is timed for two seconds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--csv", type=Path, default=RESULTS / "inference.csv")
    options = parser.parse_args(arguments)
    if "graph" in options.way and options.device != "cuda":
        parser.error("--way graph is a CUDA graph: it needs --device cuda")
    if min(options.size, options.batch, options.repeats) < 1:
        parser.error("--size, --batch and --repeats are at least 1")
    return options


@torch.inference_mode()
def measured(case: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way of one case; ``apart`` is the largest difference from the first way's forecast."""
    run = read_config(TrainConfig, ROOT / "configs" / CONFIGURED[case], [])
    grid, device = (options.size, options.size), options.device
    torch.manual_seed(0)
    model = with_grid(run.model, grid)
    network = build_model(model, frames_in=run.sequence.frames_in, frames_out=run.frames_out)
    network = network.to(device, DTYPES[precision]).eval().requires_grad_(False)
    frames = torch.rand(options.batch, run.sequence.frames_in, 1, *grid, device=device).to(DTYPES[precision])
    about = {name: value for name, value in machine(device).items() if name in COLUMNS}
    rows, first = [], None
    for way in options.way:
        call = called(way, network, frames)
        made = [call() for _ in range(2)][1]  # a graph is recorded by the second
        first = made if first is None else first
        seconds = [1e-6 * one for one in _times(call, device, options.repeats)]
        rows.append(
            {
                "case": case,
                "way": way,
                "precision": precision,
                "shape": f"{options.batch}x{run.sequence.frames_in + run.frames_out}x1x{options.size}x{options.size}",
                **{f"p{q}_s": round(quantile(seconds, q / 100), 6) for q in (20, 50, 80)},
                "apart": float(f"{((made - first).abs().max() / first.abs().max()).item():.2e}"),
                "repeats": len(seconds),
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 1),
                **about,
            }
        )
    return rows


def called(way: str, network: torch.nn.Module, frames: Tensor) -> Callable[[], Tensor]:
    """Return a call without arguments that forecasts in one way."""
    if way == "graph":
        graphs = GraphCache()
        return lambda: graphs.run(network, frames, network=network)
    if way == "compiled":
        compiled = torch.compile(network)
        return lambda: compiled(frames)
    return lambda: network(frames)


def _times(call: Callable[[], Tensor], device: str, repeats: int) -> list[float]:
    """Return microseconds of each call, after those that warmed up."""
    if device == "cuda":
        return time_calls(lambda _: call(), 1, device=device, seconds=2.0)
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        found.append(1e6 * (time.perf_counter() - began))
    return found


if __name__ == "__main__":
    sys.exit(main())
