"""Train CasFormer on each ZeRO stage: samples a second and memory of a rank, measured, beside what is computed of it.

    python -m benchmarks.zero_stages [--size small] [--ranks 2] [--stages 0 1 2 3] [--micro 2] [--steps 5]

Starts the ranks of this machine once for each stage, each with the engine of a run, on random latents. ``state`` is
what all live tensors of a rank hold after a step, ``computed state`` the weights, gradients and optimizer of
``simcast model info``: between steps gradients are gone on stages 0 to 2, while stage 3 keeps its share and the bucket
that DeepSpeed sets aside for reductions, a whole model's gradients but no more than 5e8 elements.
``peak`` is the largest resident size during the steps less that before the engine was built, on a GPU the allocator's;
``computed peak`` adds the activations that autograd keeps. Times are wall seconds of whole steps (forward, backward,
update), so on a machine with other work they say little; the processor's seconds stand beside them.
"""

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness import RESULTS, machine, write_rows
from simcast_hpc.config import CasFormerConfig, TrainConfig, from_mapping
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.launchers import child_environment, run_ranks
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.distributed.zero_memory import rank_bytes
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.planning.flops import ModelCost, denoiser_cost
from simcast_hpc.train.stages.diffusion_stage import DiffusionModule

CHANNELS, MIB = 4, 2**20
THREADS = 1  # of each rank
# Sizes by name: the network, frames of a sequence, and the rows and columns of a latent.
SIZES: dict[str, tuple[CasFormerConfig, int, int]] = {
    "tiny": (CasFormerConfig(frame_width=16, frame_depth=1, frame_heads=2, width=24, depth=1, heads=2), 2, 4),
    "small": (CasFormerConfig(frame_width=128, frame_depth=4, frame_heads=4, width=512, depth=6, heads=8), 12, 16),
    "sevir": (CasFormerConfig(), 12, 48),
}
COLUMNS = (
    "size", "parameters", "precision", "ranks", "micro_batch", "zero_stage", "samples_per_s", "step_s_p50",
    "step_cpu_s_p50", "state_mib", "computed_state_mib", "peak_mib", "computed_peak_mib", "steps", "load",
    "device", "torch", "triton", "deepspeed", "commit", "python",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every asked stage in ranks of its own, print the table and write the CSV."""
    options = parse(arguments)
    if options.worker is not None:
        work(options)
        return 0
    rows = []
    for stage in options.stages:
        rows.append(measured(options, stage))
        print(told(rows[-1]), flush=True)
    write_rows(rows, COLUMNS, options.csv)
    print(f"{rows[0]['device']}; {options.csv}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=[0, 1, 2, 3])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--micro", type=int, default=2, help="samples of a rank in a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; two more warm up")
    parser.add_argument("--csv", type=Path, default=RESULTS / "zero_stages.csv")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.precision == "bf16" and 0 in options.stages:
        parser.error("--precision bf16 needs ZeRO, as in training: --stages 1 2 3")
    if min(options.ranks, options.micro, options.steps) < 1:
        parser.error("--ranks, --micro and --steps are at least 1")
    return options


def measured(options: argparse.Namespace, stage: int) -> dict[str, Any]:
    """Return the row of one stage: the slowest and the fullest rank count."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--size", options.size, "--ranks", options.ranks, "--stages", stage, "--precision", options.precision,
                 "--micro", options.micro, "--steps", options.steps, "--worker", folder]  # fmt: skip
        line = [sys.executable, "-m", "benchmarks.zero_stages", *map(str, words)]
        status = run_ranks(line, ranks=options.ranks, environment=child_environment())
        if status:
            raise SystemExit(f"the ranks of ZeRO stage {stage} ended with status {status}: the reason stands above")
        found = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("rank-*.json")]
    about = machine("cuda" if torch.cuda.is_available() else "cpu", threads=THREADS)
    computed = account_of(options)
    held = rank_bytes(
        sum(computed.parameters.values()), engine=config_of(options, stage).engine, world_size=options.ranks
    )
    states = held.weights + held.gradients + held.optimizer
    seconds = max(one["step_s"] for one in found)
    row = {
        "size": options.size,
        "parameters": sum(computed.parameters.values()),
        "precision": options.precision,
        "ranks": options.ranks,
        "micro_batch": options.micro,
        "zero_stage": stage,
        "samples_per_s": round(options.ranks * options.micro / seconds, 4),
        "step_s_p50": round(seconds, 4),
        "step_cpu_s_p50": round(max(one["step_cpu_s"] for one in found), 4),
        "state_mib": round(max(one["state"] for one in found) / MIB, 1),
        "computed_state_mib": round(states / MIB, 1),
        "peak_mib": round(max(one["peak"] for one in found) / MIB, 1),
        "computed_peak_mib": round((states + computed.activation_bytes) / MIB, 1),
        "steps": options.steps,
        "load": round(os.getloadavg()[0], 1),
        "deepspeed": found[0]["deepspeed"],
        **about,
    }
    return {key: row[key] for key in COLUMNS}


def told(row: dict[str, Any]) -> str:
    """Return a row as a line for a reader."""
    return (
        f"ZeRO {row['zero_stage']}, {row['ranks']} ranks, {row['precision']}: {row['samples_per_s']:.3f} samples/s, "
        f"step {row['step_s_p50']:.2f} s (processor {row['step_cpu_s_p50']:.2f} s); MiB of a rank: "
        f"state {row['state_mib']} (computed {row['computed_state_mib']}), "
        f"peak {row['peak_mib']} (computed {row['computed_peak_mib']})"
    )


def config_of(options: argparse.Namespace, stage: int) -> TrainConfig:
    """Return a run with this engine."""
    return from_mapping(
        TrainConfig,
        {
            "name": "zero-stages",
            "run_dir": "unused",
            "stage": "diffusion",
            "batch": {"global_size": options.micro * options.ranks, "micro_size": options.micro},
            "engine": {"zero_stage": stage, "precision": options.precision},
        },
    )


def account_of(options: argparse.Namespace) -> ModelCost:
    """Return the costs of the network on one micro batch, computed."""
    config, frames, side = SIZES[options.size]
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    return denoiser_cost(
        config, frames_in=1, frames_out=frames, channels=CHANNELS, grid=(side, side), batch=options.micro, dtype=dtype
    )


def work(options: argparse.Namespace) -> None:
    """Be one rank: train some steps and leave what was measured in the folder ``options.worker``."""
    torch.set_num_threads(THREADS)
    ranks = join_process_group(timeout_minutes=10.0)
    try:
        found = trained(options, ranks)
        path = options.worker / f"rank-{ranks.rank}.json"
        path.write_text(json.dumps(found), encoding="utf-8")
        ranks.barrier()
    finally:
        ranks.leave()


def trained(options: argparse.Namespace, ranks: TorchRanks) -> dict[str, Any]:
    """Train warm-up and timed steps on random latents; return medians of seconds, and bytes."""
    import deepspeed

    network, frames, side = SIZES[options.size]
    torch.manual_seed(0)
    before = peak_bytes(ranks.device)
    config = config_of(options, options.stages[0])
    engine = build_engine(DiffusionModule(CasFormer(network, frames=frames, channels=CHANNELS)), config, ranks)
    set_learning_rate(engine, 1e-4)
    generator = torch.Generator().manual_seed(ranks.rank)
    shape = (options.micro, frames, CHANNELS, side, side)
    noisy, condition, target = (torch.randn(shape, generator=generator).to(ranks.device) for _ in range(3))
    timesteps = torch.randint(0, 1000, (options.micro,), generator=generator).to(ranks.device)
    spent = []
    for _ in range(options.steps + 2):
        ranks.barrier()
        began = time.perf_counter(), time.process_time()
        engine.backward(engine(noisy, timesteps, condition, target))
        engine.step()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        spent.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {
        "step_s": median(clock for clock, _ in spent[2:]),
        "step_cpu_s": median(processor for _, processor in spent[2:]),
        "state": live_bytes(),
        "peak": peak_bytes(ranks.device) - before,
        "deepspeed": deepspeed.__version__,
    }


def live_bytes() -> int:
    """Return the bytes of all tensors that this process holds, each storage once."""
    gc.collect()
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory that this process has had so far: resident, or of a GPU's allocator."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
