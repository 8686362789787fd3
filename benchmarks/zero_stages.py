"""Train CasFormer with each ZeRO stage: throughput and memory per rank, measured and computed.

    python -m benchmarks.zero_stages [--size small] [--ranks 2] [--stages 0 1 2 3] [--micro 2] [--steps 5]

Starts local ranks once per stage, each with the engine of a run, on random latents. ``state`` is the size of all live
tensors of a rank after a step; ``computed state`` is weights, gradients and optimizer state as in ``simcast model
info``. Between steps, stages 0 to 2 have freed gradients; stage 3 keeps its shard and DeepSpeed's reduction bucket (all
gradients, but at most 5e8 elements). ``peak`` is the largest resident size during the steps minus that before the
engine was built, on a GPU the allocator's peak; ``computed peak`` adds the activations kept by autograd. Times are wall
and CPU time of a step (forward, backward, update).
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measurements import RESULTS, memory_bytes, provenance, report, time_call
from simcast_hpc.config import CasFormerConfig, TrainConfig, from_mapping
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.launchers import child_environment, run_ranks
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.distributed.zero_memory import rank_bytes
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.planning.flops import ModelCost, denoiser_cost
from simcast_hpc.train.stages.diffusion_stage import DiffusionModule

CHANNELS, MIB = 4, 2**20
THREADS = 1  # per rank
# Sizes by name: the network, frames per sequence, rows and columns of a latent.
SIZES: dict[str, tuple[CasFormerConfig, int, int]] = {
    "tiny": (CasFormerConfig(frame_width=16, frame_depth=1, frame_heads=2, width=24, depth=1, heads=2), 2, 4),
    "small": (CasFormerConfig(frame_width=128, frame_depth=4, frame_heads=4, width=512, depth=6, heads=8), 12, 16),
    "sevir": (CasFormerConfig(), 12, 48),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every stage in new ranks, write and print the rows; with ``--worker``, be one of the ranks."""
    options = parse(arguments)
    if options.worker is not None:
        work(options)
        return 0
    report([measure(options, stage) for stage in options.stages], options.csv)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=[0, 1, 2, 3])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--micro", type=int, default=2, help="samples per rank and step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two warm-up steps")
    parser.add_argument("--csv", type=Path, default=RESULTS / "zero_stages.csv")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.precision == "bf16" and 0 in options.stages:
        parser.error("--precision bf16 requires ZeRO: --stages 1 2 3")
    if min(options.ranks, options.micro, options.steps) < 1:
        parser.error("--ranks, --micro and --steps must be at least 1")
    return options


def measure(options: argparse.Namespace, stage: int) -> dict[str, Any]:
    """Return the row of one stage: the largest time and memory over the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--size", options.size, "--ranks", options.ranks, "--stages", stage, "--precision", options.precision,
                 "--micro", options.micro, "--steps", options.steps, "--worker", folder]  # fmt: skip
        line = [sys.executable, "-m", "benchmarks.zero_stages", *map(str, words)]
        if status := run_ranks(line, ranks=options.ranks, environment=child_environment()):
            raise SystemExit(f"the ranks of ZeRO stage {stage} ended with status {status}")
        ranks = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("rank-*.json")]
    largest = {key: max(rank[key] for rank in ranks) for key in ("step_s", "step_cpu_s", "state", "peak")}
    cost = model_cost(options)
    parameters = sum(cost.parameters.values())
    computed = rank_bytes(parameters, engine=config_of(options, stage).engine, world_size=options.ranks)
    state = computed.weights + computed.gradients + computed.optimizer
    return {
        "size": options.size,
        "parameters": parameters,
        "precision": options.precision,
        "ranks": options.ranks,
        "micro_batch": options.micro,
        "zero_stage": stage,
        "samples_per_s": round(options.ranks * options.micro / largest["step_s"], 4),
        "step_s_p50": round(largest["step_s"], 4),
        "step_cpu_s_p50": round(largest["step_cpu_s"], 4),
        "state_mib": round(largest["state"] / MIB, 1),
        "computed_state_mib": round(state / MIB, 1),
        "peak_mib": round(largest["peak"] / MIB, 1),
        "computed_peak_mib": round((state + cost.activation_bytes) / MIB, 1),
        "steps": options.steps,
        "deepspeed": ranks[0]["deepspeed"],
        **provenance("cuda" if torch.cuda.is_available() else "cpu", threads=THREADS),
    }


def config_of(options: argparse.Namespace, stage: int) -> TrainConfig:
    """Return the configuration of a run with this ZeRO stage."""
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


def model_cost(options: argparse.Namespace) -> ModelCost:
    """Return the computed costs of the network on one micro-batch."""
    config, frames, side = SIZES[options.size]
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    return denoiser_cost(
        config, frames_in=1, frames_out=frames, channels=CHANNELS, grid=(side, side), batch=options.micro, dtype=dtype
    )


def work(options: argparse.Namespace) -> None:
    """Run one rank: train some steps and write the measurements to the folder ``options.worker``."""
    torch.set_num_threads(THREADS)
    ranks = join_process_group(timeout_minutes=10.0)
    try:
        path = options.worker / f"rank-{ranks.rank}.json"
        path.write_text(json.dumps(train(options, ranks)), encoding="utf-8")
        ranks.barrier()
    finally:
        ranks.leave()


def train(options: argparse.Namespace, ranks: TorchRanks) -> dict[str, Any]:
    """Train warm-up and timed steps on random latents; return medians of the times in seconds, and bytes."""
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

    def step() -> None:
        engine.backward(engine(noisy, timesteps, condition, target))
        engine.step()

    times = []
    for _ in range(options.steps + 2):
        ranks.barrier()
        times.append(time_call(step, ranks.device.type))
    return {
        "step_s": median(one.wall for one in times[2:]),
        "step_cpu_s": median(one.cpu for one in times[2:]),
        "state": live_bytes(),
        "peak": peak_bytes(ranks.device) - before,
        "deepspeed": deepspeed.__version__,
    }


def live_bytes() -> int:
    """Return the bytes of all tensors of this process, each storage once."""
    gc.collect()
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process so far: of a GPU's allocator, or the resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return memory_bytes("VmHWM")


if __name__ == "__main__":
    sys.exit(main())
