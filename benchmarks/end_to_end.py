"""Whole training steps: samples a second, memory, kinds of work, share of the product's peak, with and without input.

    PYTHONPATH=kernels python -m benchmarks.end_to_end [--case simvp-student ...] [--precision fp32 bf16]
                                                       [--rounds 3] [--most-gb 12]

A case is a configuration of ``configs/`` at one window a step: forward pass, weighted loss (CasFormer: mean squared
error of the noise), backward pass, AdamW. Each runs in a process of its own. ``input`` is ``none`` (one sample again
and again) or ``archive`` (windows of a synthetic archive in SEVIR's layout, read and decoded by one worker). The
model's operations are counted, not timed (``simcast_hpc.planning.flops``); its share of the peak is those a second
over a large matrix product of the same dtype, measured just before and after. One more step without input is profiled.
A model whose fp32 weights, gradients, moments and kept activations pass ``--most-gb`` is counted only. bf16 is autocast
over fp32 weights.
"""

import argparse
import csv
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, machine
from benchmarks.run_gpu import child_environment
from benchmarks.timing import matmul_rate, quantile
from benchmarks.train_step import Seconds, peak_memory, seconds_now
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

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "simvp-student": "student/sevir.yaml",
    "earthformer-teacher": "teacher/sevir-earthformer.yaml",
    "earthformer-student": "student/sevir-earthformer.yaml",
    "earthformer-100m": "direct/sevir-earthformer-100m.yaml",
    "earthformer-1b": "direct/sevir-earthformer-1b.yaml",
    "casformer": "diffusion/sevir.yaml",
}
INPUTS = ("none", "archive")
LATENT_CHANNELS, REDUCTION = 4, 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the CSV; what was not measured is empty. ``kinds`` are shares, ``name:share`` one after another.

    ``needs_gb`` is computed: fp32 weights, gradients and both moments, and the activations kept for backward.
    """

    case: str
    input: str
    precision: str
    shape: str
    parameters: int
    training_gflop: float
    needs_gb: float
    p20_s: float | None = None
    p50_s: float | None = None
    p80_s: float | None = None
    cpu_p50_s: float | None = None
    samples_per_s: float | None = None
    peak_gb: float | None = None
    product_tflop_per_s: float | None = None
    model_flop_utilisation: float | None = None
    kinds: str = ""
    rounds: int = 0
    load: float | None = None
    device: str
    torch: str
    commit: str
    python: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case in its process, or the one that is asked for in this one; write and print the rows."""
    options = parse(arguments)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = [(case, precision) for precision in options.precision for case in options.case]
    rows, failed = [], False
    for case, precision in wanted:
        if len(wanted) == 1:
            rows += [dataclasses.asdict(row) for row in measured(case, precision, options)]
        else:
            found = _in_child(case, precision, options)
            failed |= not found
            rows += found
        _write(rows, options.csv)
    for row in rows:
        print(line(row))
    print(options.csv)
    return int(failed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=["fp32"])
    parser.add_argument("--size", type=int, default=384, help="rows and columns; of latents, an eighth")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps; one more warms up")
    parser.add_argument("--most-gb", type=float, default=12.0, help="what a model may need to be run")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; PyTorch's own choice by default")
    parser.add_argument("--csv", type=Path, default=RESULTS / "end_to_end.csv")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.size) < 1:
        parser.error("--rounds and --size are at least 1")
    return options


def measured(case: str, precision: str, options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row of a case for each input, or a row of what is only counted."""
    run = read_config(TrainConfig, ROOT / "configs" / CASES[case], ["batch.micro_size=1"])
    account = counted(run, options.size, DTYPES[precision])
    parameters = sum(account.parameters.values())
    needs = (16 * parameters + account.activation_bytes) / 1e9
    about: dict[str, Any] = {
        "case": case,
        "precision": precision,
        "shape": _shape(run, options.size),
        "parameters": parameters,
        "training_gflop": round(account.training_flops / 1e9, 1),
        "needs_gb": round(needs, 2),
        **{key: value for key, value in machine("cpu").items() if key != "triton"},
    }
    if needs > options.most_gb:
        yield Row(input="none", **about)
        return
    module, samples = _prepared(run, options.size)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)  # as the engine of a run has it

    def step(sample: Sequence[Any]) -> None:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = module(*sample)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for kind in INPUTS if run.stage != "diffusion" else INPUTS[:1]:
        with samples(kind) as source:
            found = _timed(step, source, precision, options.rounds)
            shares = shares_by_kind(lambda: step(next(source))) if kind == "none" else {}
        rate = account.training_flops / found["p50_s"]
        yield Row(
            input=kind,
            rounds=options.rounds,
            model_flop_utilisation=round(rate / 1e12 / found["product_tflop_per_s"], 4),
            kinds=" ".join(f"{name}:{share:.3f}" for name, share in shares.items()),
            load=round(os.getloadavg()[0], 1),
            **found,
            **about,
        )


def counted(run: TrainConfig, size: int, dtype: torch.dtype) -> ModelCost:
    """Return the costs of a configuration's network on one window, without memory."""
    sizes: dict[str, Any] = {"frames_in": run.sequence.frames_in, "frames_out": run.frames_out, "batch": 1}
    if run.stage == "diffusion":
        grid = (size // REDUCTION, size // REDUCTION)
        return denoiser_cost(run.diffusion.casformer, channels=LATENT_CHANNELS, grid=grid, dtype=dtype, **sizes)
    grid = (size, size)
    return forecaster_cost(with_grid(run.model, grid), grid=grid, dtype=dtype, **sizes)


def line(row: dict[str, Any]) -> str:
    """Return one row as text."""
    head = (
        f"{row['case']:<20} {row['precision']:<5} input {row['input']:<8} {float(row['training_gflop']):>9.1f} GFLOP, "
        f"needs {float(row['needs_gb']):.2f} GB"
    )
    if not row["p50_s"]:
        return f"{head}: counted only"
    return (
        f"{head}: {float(row['p50_s']):.2f} s (cpu {float(row['cpu_p50_s']):.2f}), {float(row['peak_gb']):.2f} GB, "
        f"{100 * float(row['model_flop_utilisation']):.0f} % of the product's peak; {row['kinds']}"
    )


class Forecasting(torch.nn.Module):
    """A backbone and the weighted loss of SEVIR's code."""

    def __init__(self, run: TrainConfig, size: int):
        super().__init__()
        model = with_grid(run.model, (size, size))
        self.model = build_model(model, frames_in=run.sequence.frames_in, frames_out=run.frames_out)
        self.loss = WeightedMSE(run.loss, target_spec(DataConfig(dataset="sevir", root=Path("."))))

    def forward(self, inputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the loss of a sample."""
        return self.loss(self.model(inputs), target, valid)


class Denoising(torch.nn.Module):
    """CasFormer and the mean squared error of the noise."""

    def __init__(self, run: TrainConfig):
        super().__init__()
        config = run.diffusion.casformer
        self.model = CasFormer(
            config, frames=run.frames_out, channels=LATENT_CHANNELS, frames_in=run.sequence.frames_in
        )

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor):
        """Return the loss of a latent sequence."""
        return (self.model(noisy, timesteps, condition) - noise).square().mean()


def _prepared(run: TrainConfig, size: int) -> tuple[torch.nn.Module, Callable[[str], Any]]:
    torch.manual_seed(0)
    if run.stage == "diffusion":
        shape = (1, run.frames_out, LATENT_CHANNELS, size // REDUCTION, size // REDUCTION)
        noisy, condition, noise = (torch.randn(shape) for _ in range(3))
        sample = (noisy, torch.tensor([500]), condition, noise)
        return Denoising(run).train(), lambda kind: nullcontext(_again(sample))
    return Forecasting(run, size).train(), lambda kind: _Samples(run, size, archive=kind == "archive")


class _Samples:
    """Samples of a run without end: of an archive made for it, or the first of them again and again."""

    def __init__(self, run: TrainConfig, size: int, *, archive: bool):
        self.run, self.size, self.archive = run, size, archive

    def __enter__(self) -> Iterator[Any]:
        frames_in, frames_out = self.run.sequence.frames_in, self.run.frames_out
        self.folder = tempfile.TemporaryDirectory()
        root, frames = Path(self.folder.name, "archive"), frames_in + frames_out
        write_archive(root, seed=0, events={"train": 4}, size=self.size, frames_per_event=frames)
        data = DataConfig(dataset="synthetic", root=root, max_percent_missing=None)
        batches = micro_batches(
            open_windows(data, split="train", frames=frames), seed=0, first_step=0, global_size=1, micro_size=1,
            rank=0, world_size=1, workers=int(self.archive),
        )  # fmt: skip
        first = torch.zeros(1, dtype=torch.int64)
        samples = (window_of_codes(b.windows, first, frames_in=frames_in, frames_out=frames_out) for b in batches)
        return samples if self.archive else _again(next(samples))

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


def _again(sample: Any) -> Iterator[Any]:
    while True:
        yield sample


def _timed(step: Callable[[Any], None], source: Iterator[Any], precision: str, rounds: int) -> dict[str, Any]:
    rates = [matmul_rate("cpu", DTYPES[precision])]
    times, peaks = [], []
    for _ in range(rounds + 1):
        with peak_memory("cpu") as peak:
            began = seconds_now("cpu")
            step(next(source))
            times.append(Seconds(*(b - a for a, b in zip(began, seconds_now("cpu"), strict=True))))
        peaks.append(peak[0])
    rates.append(matmul_rate("cpu", DTYPES[precision]))
    clock, processor = zip(*times[1:], strict=True)
    p50 = quantile(clock, 0.5)
    return {
        **{f"p{q}_s": round(quantile(clock, q / 100), 4) for q in (20, 50, 80)},
        "cpu_p50_s": round(quantile(processor, 0.5), 4),
        "samples_per_s": round(1 / p50, 5),
        "peak_gb": round(max(peaks), 3),
        "product_tflop_per_s": round(max(rates) / 1e12, 4),
    }


def _shape(run: TrainConfig, size: int) -> str:
    if run.stage == "diffusion":
        return f"1x{run.frames_out}x{LATENT_CHANNELS}x{size // REDUCTION}x{size // REDUCTION}"
    return f"1x{run.sequence.frames_in + run.frames_out}x1x{size}x{size}"


def _in_child(case: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        words = ["--case", case, "--precision", precision, "--csv", str(path), "--rounds", str(options.rounds)]
        words += ["--size", str(options.size), "--most-gb", str(options.most_gb), "--threads", str(options.threads)]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.end_to_end", *words]
        done = subprocess.run(command, cwd=ROOT, env=child_environment(), stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"{case}, {precision}: the process ended with {done.returncode}", file=sys.stderr)
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
