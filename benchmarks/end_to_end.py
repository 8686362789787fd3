"""Time training steps of configured models: wall time, memory, kinds of work, fraction of the matmul rate.

    PYTHONPATH=kernels python -m benchmarks.end_to_end [--case simvp-student ...] [--precision fp32 bf16]
                                                       [--rounds 3] [--most-gb 12]

A case is a configuration of ``configs/`` with a batch of one window: forward pass, weighted loss (CasFormer: MSE of the
noise), backward pass, AdamW. Each runs in a process of its own. ``input`` is ``none`` (one sample repeatedly) or
``archive`` (windows of a synthetic archive in SEVIR's layout, read and decoded by one worker). FLOPs of the model are
counted (``simcast_hpc.planning.flops``) and related to the rate of a large matmul of the same dtype, measured before
and after. One more step without input is profiled. A model whose fp32 weights, gradients, moments and kept activations
exceed ``--most-gb`` is only counted. bf16 is autocast over fp32 weights.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.child_processes import child_environment
from benchmarks.measurements import (
    RESULTS,
    ROOT,
    peak_memory,
    provenance,
    quantiles,
    read_rows,
    report,
    time_call,
    write_rows,
)
from benchmarks.timing import matmul_rate, quantile
from benchmarks.work_kinds import shares_by_kind
from simcast_hpc.config import DataConfig, TrainConfig, read_config
from simcast_hpc.data.loader import micro_batches
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distill.cut_windows import window_of_codes
from simcast_hpc.losses import WeightedMSE
from simcast_hpc.models import build_model, with_grid
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.planning.flops import ModelCost, denoiser_cost, forecaster_cost

CASES = {
    "simvp-student": "student/sevir.yaml",
    "earthformer-teacher": "teacher/sevir-earthformer.yaml",
    "earthformer-student": "student/sevir-earthformer.yaml",
    "earthformer-100m": "direct/sevir-earthformer-100m.yaml",
    "earthformer-1b": "direct/sevir-earthformer-1b.yaml",
    "casformer": "diffusion/sevir.yaml",
}
MEASURED = ("p20_s", "p50_s", "p80_s", "cpu_p50_s", "samples_per_s", "peak_gb", "product_tflop_per_s",
            "model_flop_utilisation", "kinds")  # fmt: skip
LATENT_CHANNELS, REDUCTION = 4, 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case in a process of its own, or a single one in this process; write and print the rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    pairs = [(case, precision) for precision in options.precision for case in options.case]
    rows, failed = [], False
    for case, precision in pairs:
        new = list(measure(case, precision, options)) if len(pairs) == 1 else _run_process(case, precision, options)
        failed |= not new
        rows += new
        write_rows(rows, options.csv)  # keep the rows of an interrupted run
    report(rows, options.csv)
    return int(failed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=["fp32"])
    parser.add_argument("--size", type=int, default=384, help="rows and columns in pixels; latents have an eighth")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps, after one warm-up step")
    parser.add_argument("--most-gb", type=float, default=12.0, help="memory above which a model is only counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, default=RESULTS / "end_to_end.csv")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.size, options.threads) < 1:
        parser.error("--rounds, --size and --threads must be at least 1")
    return options


def measure(case: str, precision: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row per input, or one row of a model that is only counted.

    ``needs_gb`` is computed: fp32 weights, gradients and both moments, and the activations kept for backward.
    ``kinds`` lists ``kind:share`` of the profiled step.
    """
    # 1. Costs
    run = read_config(TrainConfig, ROOT / "configs" / CASES[case], ["batch.micro_size=1"])
    cost = model_cost(run, options.size, DTYPES[precision])
    parameters = sum(cost.parameters.values())
    needs = (16 * parameters + cost.activation_bytes) / 1e9
    row: dict[str, Any] = {
        "case": case,
        "input": "none",
        "precision": precision,
        "shape": "x".join(map(str, _shape(run, options.size))),
        "parameters": parameters,
        "training_gflop": round(cost.training_flops / 1e9, 1),
        "needs_gb": round(needs, 2),
    }
    if needs > options.most_gb:
        yield row | {name: "" for name in MEASURED} | {"rounds": 0, **provenance("cpu")}
        return
    # 2. Module and optimizer
    torch.manual_seed(0)
    module = (Denoising if run.stage == "diffusion" else Forecasting)(run, options.size).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)  # as in the engine of a run

    def step(sample: Sequence[Any]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = module(*sample)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # 3. Timed steps per input
    for source in ("none", "archive") if run.stage != "diffusion" else ("none",):
        with samples(run, options.size, source) as iterator:
            times = _time_steps(step, iterator, precision, options.rounds)
            shares = shares_by_kind(lambda: step(next(iterator))) if source == "none" else {}
        utilisation = cost.training_flops / 1e12 / times["p50_s"] / times["product_tflop_per_s"]
        yield row | times | {
            "input": source,
            "model_flop_utilisation": round(utilisation, 4),
            "kinds": " ".join(f"{name}:{share:.3f}" for name, share in shares.items()),
            "rounds": options.rounds,
            **provenance("cpu"),
        }  # fmt: skip


def model_cost(run: TrainConfig, size: int, dtype: torch.dtype) -> ModelCost:
    """Return the costs of a configuration's network on one window, computed without memory."""
    sizes: dict[str, Any] = {"frames_in": run.sequence.frames_in, "frames_out": run.frames_out, "batch": 1}
    if run.stage == "diffusion":
        grid = (size // REDUCTION, size // REDUCTION)
        return denoiser_cost(run.diffusion.casformer, channels=LATENT_CHANNELS, grid=grid, dtype=dtype, **sizes)
    grid = (size, size)
    return forecaster_cost(with_grid(run.model, grid), grid=grid, dtype=dtype, **sizes)


class Forecasting(torch.nn.Module):
    """A backbone and the weighted loss of SEVIR's encoded values."""

    def __init__(self, run: TrainConfig, size: int):
        super().__init__()
        model = with_grid(run.model, (size, size))
        self.model = build_model(model, frames_in=run.sequence.frames_in, frames_out=run.frames_out)
        self.loss = WeightedMSE(run.loss, target_spec(DataConfig(dataset="sevir", root=Path("."))))

    def forward(self, inputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the loss of a sample."""
        return self.loss(self.model(inputs), target, valid)


class Denoising(torch.nn.Module):
    """CasFormer and the MSE of the noise."""

    def __init__(self, run: TrainConfig, _size: int):
        super().__init__()
        config = run.diffusion.casformer
        self.model = CasFormer(
            config, frames=run.frames_out, channels=LATENT_CHANNELS, frames_in=run.sequence.frames_in
        )

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor):
        """Return the loss of a latent sequence."""
        return (self.model(noisy, timesteps, condition) - noise).square().mean()


@contextmanager
def samples(run: TrainConfig, size: int, source: str) -> Iterator[Iterator[Any]]:
    """Yield an endless iterator of samples: of a temporary synthetic archive, or the same sample repeatedly."""
    if run.stage == "diffusion":
        noisy, condition, noise = (torch.randn(_shape(run, size)) for _ in range(3))
        yield repeat((noisy, torch.tensor([500]), condition, noise))
        return
    frames_in, frames = run.sequence.frames_in, run.sequence.frames_in + run.frames_out
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "archive")
        write_archive(root, seed=0, events={"train": 4}, size=size, frames_per_event=frames)
        data = DataConfig(dataset="synthetic", root=root, max_percent_missing=None)
        batches = micro_batches(
            open_windows(data, split="train", frames=frames), seed=0, first_step=0, global_size=1, micro_size=1,
            rank=0, world_size=1, workers=int(source == "archive"),
        )  # fmt: skip
        first, lengths = torch.zeros(1, dtype=torch.int64), {"frames_in": frames_in, "frames_out": run.frames_out}
        windows = (window_of_codes(batch.windows, first, **lengths) for batch in batches)
        yield windows if source == "archive" else repeat(next(windows))


def _time_steps(step: Callable[[Any], None], source: Iterator[Any], precision: str, rounds: int) -> dict[str, Any]:
    rates = [matmul_rate("cpu", DTYPES[precision])]
    times, peaks = [], []
    for _ in range(rounds + 1):
        with peak_memory("cpu") as peak:
            times.append(time_call(lambda: step(next(source))))
        peaks.append(peak[0])
    rates.append(matmul_rate("cpu", DTYPES[precision]))
    wall, cpu = zip(*times[1:], strict=True)
    return {
        **quantiles(wall),
        "cpu_p50_s": round(quantile(cpu, 0.5), 4),
        "samples_per_s": round(1 / quantile(wall, 0.5), 5),
        "peak_gb": round(max(peaks), 3),
        "product_tflop_per_s": round(max(rates) / 1e12, 4),
    }


def _shape(run: TrainConfig, size: int) -> tuple[int, ...]:
    if run.stage == "diffusion":
        return 1, run.frames_out, LATENT_CHANNELS, size // REDUCTION, size // REDUCTION
    return 1, run.sequence.frames_in + run.frames_out, 1, size, size


def _run_process(case: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        words = ["--case", case, "--precision", precision, "--csv", str(path), "--rounds", str(options.rounds)]
        words += ["--size", str(options.size), "--most-gb", str(options.most_gb), "--threads", str(options.threads)]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.end_to_end", *words]
        done = subprocess.run(command, cwd=ROOT, env=child_environment(), stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"{case}, {precision}: the process ended with status {done.returncode}", file=sys.stderr)
            return []
        return [*read_rows(path)]


if __name__ == "__main__":
    sys.exit(main())
