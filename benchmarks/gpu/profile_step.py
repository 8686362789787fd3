"""Profile one training step of a network on a GPU: a table by kernel, a CSV of the longest 40 and a trace.

    python -m benchmarks.gpu.profile_step --network simvp --csv FILE [--trace FILE.json.gz] [--batch 8] [--check-only]

The networks are those of ``configs/`` at 384 x 384 pixels; a step is forward pass in bf16 autocast, weighted MSE,
backward pass and fused AdamW. Without memory for the batch, half of it is tried. The configuration needs pydantic and
PyYAML; without them the CSV is one row with the reason.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurements import ROOT, machine, print_table, read_rows, write_rows
from benchmarks.timing import wait

NETWORKS = {"simvp": "student/sevir.yaml", "earthformer": "teacher/sevir-earthformer.yaml"}
LONGEST = 40
ROUNDS = 5


def training_step(network: str, device: str, *, batch: int, size: int) -> Callable[[], None]:
    """Return a training step of a network on random windows.

    Raises:
        ImportError: the libraries that a configuration needs are missing.
    """
    from benchmarks.cases.weighted_mse_cases import CASES
    from simcast_hpc.config import TrainConfig, read_config
    from simcast_hpc.models import build_model, with_grid
    from simcast_kernels import weighted_mse

    run = read_config(TrainConfig, ROOT / "configs" / NETWORKS[network], [])
    model_config = with_grid(run.model, (size, size))
    torch.manual_seed(0)
    model = build_model(model_config, frames_in=run.sequence.frames_in, frames_out=run.frames_out).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    inputs = torch.rand(batch, run.sequence.frames_in, 1, size, size, device=device)
    target = torch.randint(0, 256, (batch, run.frames_out, 1, size, size), dtype=torch.uint8, device=device)
    valid = torch.ones_like(target, dtype=torch.bool)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            prediction = model(inputs)
        loss = weighted_mse(prediction.float(), target, mask=valid, **CASES[0].table)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def profile(network: str, device: str, *, batch: int, size: int, trace: Path | None) -> list[dict[str, Any]]:
    """Return a row of the whole step and one per kernel (on a CPU: operator), the longest first.

    Columns: wall time of a step without the profiler (median of 5), and of each kernel the calls and the time.
    """
    step = training_step(network, device, batch=batch, size=size)
    times = []
    for _ in range(ROUNDS + 2):  # two for compilation, memory and the choice of algorithms
        wait(device)
        began = time.perf_counter()
        step()
        wait(device)
        times.append(1e3 * (time.perf_counter() - began))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        wait(device)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    column = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    kernels = sorted(profiler.key_averages(), key=lambda event: -getattr(event, column))
    kernels = [event for event in kernels if device != "cuda" or event.device_type.name != "CPU"]
    total = sum(getattr(event, column) for event in kernels) or 1.0
    about = {"network": network, "batch": batch, "size": size, **machine(device), "status": "profiled"}
    step_ms = sorted(times[2:])[ROUNDS // 2]
    whole = {"kernel": "step", "calls": 1, "ms": round(total / 1e3, 3), "share": 1.0, "step_ms": round(step_ms, 3)}
    rows = [whole | about]
    for event in kernels[:LONGEST]:
        spent = getattr(event, column)
        row = {"kernel": event.key[:160], "calls": event.count, "ms": round(spent / 1e3, 3)}
        rows.append(row | {"share": round(spent / total, 4), "step_ms": None} | about)
    return rows


def rows_of(network: str, device: str, *, batch: int, size: int, trace: Path | None) -> list[dict[str, Any]]:
    """Return the rows of :func:`profile` for the largest batch that fits, or one row with the reason."""
    while True:
        failure = ""
        try:
            return profile(network, device, batch=batch, size=size, trace=trace)
        except torch.cuda.OutOfMemoryError as error:
            failure = f"OutOfMemoryError at batch {batch}: {error}"
        except ImportError as error:
            failure = f"not profiled, {error}; a configuration needs pydantic and PyYAML"
            batch = 1
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            batch = 1
        if batch == 1:
            first = next(iter(failure.splitlines()))[:300]
            return [{"network": network, "batch": batch, "size": size, **machine(device), "status": first}]
        batch //= 2
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile a step, write the CSV and print the table; return 1 if there is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--trace", type=Path, help="write a Chrome trace here")
    parser.add_argument("--check-only", action="store_true", help="run one step, which compiles its kernels")
    options = parser.parse_args(arguments)
    if options.check_only:
        training_step(options.network, options.device, batch=options.batch, size=options.size)()
        return 0
    rows = rows_of(options.network, options.device, batch=options.batch, size=options.size, trace=options.trace)
    write_rows(rows, options.csv)
    if rows[0]["status"] != "profiled":
        print(f"{options.network}: {rows[0]['status']}", file=sys.stderr)
        return 1
    table = [("kernel", "calls", "ms", "share")]
    table += [(row["kernel"][:90], row["calls"], row["ms"], row["share"]) for row in read_rows(options.csv)]
    print_table(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
