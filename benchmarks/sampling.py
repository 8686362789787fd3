"""Time an ensemble of one window: sampling with each sampler and decoding, batched and member by member.

    python -m benchmarks.sampling [--members 10] [--repeats 5] [--device cuda] [--size 384] [--parts decode] [--small]

Networks of CasCast's SEVIR size with random weights, 12 frames, guidance. ``batched`` samples all members together, on
CUDA in bfloat16; ``graph`` (CUDA only) also replays the loop as a CUDA graph; ``member by member`` samples sequentially
in float32, as CasCast's published evaluation does. ``--small`` takes small networks to try the script on a CPU.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measurements import RESULTS, provenance, quantiles, report, time_call
from simcast_hpc.config import AutoencoderConfig, CasFormerConfig
from simcast_hpc.diffusion import (
    BatchNoise,
    SamplerStep,
    SamplingResult,
    make_schedule,
    plan_steps,
    run_sampler,
    spaced_timesteps,
)
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer

FRAMES, GUIDANCE, CLIP = 12, 2.0, 13.0
SMALL_AUTOENCODER = AutoencoderConfig(widths=(8, 16, 16, 16), groups=8)
SMALL_CASFORMER = CasFormerConfig(frame_width=32, frame_depth=2, width=64, depth=2, heads=4)
PARTS = ("ddim-20", "dpm-solver-6", "decode")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every part and write the table; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=384, help="rows and columns in pixels")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true", help="small networks, to try the script")
    parser.add_argument("--csv", type=Path, default=RESULTS / "sampling.csv")
    options = parser.parse_args(arguments)
    if options.size % 8 or min(options.size, options.members, options.repeats) < 1:
        parser.error("--size must be a multiple of 8; --members and --repeats must be at least 1")
    ways = ["batched", *(["graph"] if options.device == "cuda" else []), "member by member"]
    rows = [row for way in ways for row in measure(way, options)]
    report(rows, options.csv, ratio="way:member by member:p50_s")
    return 0


@torch.inference_mode()
def measure(way: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Return a row per part of sampling an ensemble in one way."""
    # 1. Networks
    members, device, batched = options.members, options.device, way != "member by member"
    dtype = torch.bfloat16 if batched and device == "cuda" else torch.float32
    torch.manual_seed(0)
    coder = Autoencoder(SMALL_AUTOENCODER if options.small else AutoencoderConfig()).to(device, dtype).eval()
    channels, size = coder.config.latent_channels, options.size // coder.config.reduction
    network = CasFormer(SMALL_CASFORMER if options.small else CasFormerConfig(), frames=FRAMES, channels=channels)
    network.to(device, dtype).eval()
    # 2. Calls
    groups = [range(members)] if batched else [range(member, member + 1) for member in range(members)]
    condition = torch.randn(1, FRAMES, channels, size, size, device=device)
    schedule = make_schedule()
    plans = {
        "ddim-20": plan_steps("ddim", schedule, spaced_timesteps(schedule, 20)),
        "dpm-solver-6": plan_steps("dpm_solver", schedule, spaced_timesteps(schedule, 6, "trailing")),
    }
    graphs = {name: GraphCache("the sampling loop") if way == "graph" else None for name in plans}
    calls: dict[str, Callable[[], object]] = {
        name: lambda name=name: [sample_members(network, plans[name], condition, g, graphs[name]) for g in groups]
        for name in plans
    }
    latents = [torch.randn(len(numbers) * FRAMES, channels, size, size, device=device) for numbers in groups]
    calls["decode"] = lambda: [coder.decode(part) for part in latents]
    # 3. Times, after one call, on CUDA after two: the second records a graph
    warm_up = 2 if device == "cuda" else 1
    return [
        {
            "part": part,
            "way": way,
            "networks": "small" if options.small else "SEVIR",
            "shape": f"{members}x{FRAMES}x{channels}x{size}x{size}",
            "members": members,
            "dtype": str(dtype).removeprefix("torch."),
            **quantiles([time_call(calls[part], device).wall for _ in range(options.repeats + warm_up)][warm_up:]),
            "repeats": options.repeats,
            **provenance(device),
        }
        for part in options.parts
    ]


def sample_members(
    network: CasFormer,
    steps: Sequence[SamplerStep],
    condition: Tensor,
    numbers: range,
    graphs: GraphCache | None = None,
) -> Tensor:
    """Return the latents of some members of one window, with guidance."""
    member = torch.tensor(list(numbers), device=condition.device)
    noise = BatchNoise(7, torch.zeros_like(member), member)

    def loop(start: Tensor, sample: Tensor, member: Tensor, conditions: Tensor) -> SamplingResult:
        return run_sampler(
            steps,
            lambda x, t: network(x, t, conditions),
            start,
            unconditional=lambda x, t: network(x, t, torch.zeros_like(conditions)),
            guidance=GUIDANCE,
            clip=CLIP,
            batch_noise=BatchNoise(noise.key, sample, member),
        )

    conditions = condition.expand(len(numbers), -1, -1, -1, -1)
    tensors = (noise.initial(tuple(condition.shape[1:])), noise.sample, member, conditions)
    return (loop(*tensors) if graphs is None else graphs.run(loop, *tensors)).latents


if __name__ == "__main__":
    sys.exit(main())
