"""Time an ensemble of one window: sampling by each sampler, decoding, and the released code's way, in one run.

    python -m benchmarks.sampling [--members 10] [--repeats 5] [--device cuda] [--size 384] [--parts decode] [--small]

Networks of CasCast's SEVIR size with random weights, 12 frames of 384 x 384 or ``--size``, guidance on. ``batched``
draws all members together, in bfloat16 on CUDA, ``graph`` the same with the loop replayed as a CUDA graph, on CUDA
alone; ``member by member`` draws one after the other in float32, as the released evaluation does. Each line is one
part, so that nothing hides in a sum. ``--small`` takes networks that a CPU can run, to try the script; its numbers say
nothing of the full size.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import RESULTS, machine, write_rows
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
COLUMNS = (
    "part",
    "way",
    "networks",
    "shape",
    "members",
    "dtype",
    "p20_s",
    "p50_s",
    "p80_s",
    "repeats",
    "load",
    "device",
    "torch",
    "triton",
    "commit",
    "python",
)
PARTS = ("ddim-20", "dpm-solver-6", "decode")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every part and write the table; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, help="pixels along a side: 384, of small networks 64")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true", help="networks that a CPU can run, on 64 x 64 pixels")
    parser.add_argument("--csv", type=Path, default=RESULTS / "sampling.csv")
    options = parser.parse_args(arguments)
    options.size = options.size or (64 if options.small else 384)
    if options.size % 8 or min(options.size, options.members, options.repeats) < 1:
        parser.error("--size is a multiple of 8, the pixels of a latent's side; --members and --repeats are at least 1")
    chosen = {name: getattr(options, name) for name in ("members", "repeats", "device", "size", "parts", "small")}
    ways = ["batched", *(["graph"] if options.device == "cuda" else []), "member by member"]
    rows = [row for way in ways for row in timed(way, **chosen)]
    write_rows(rows, COLUMNS, options.csv)
    for row in rows:
        print(f"{row['part']:<14} {row['way']:<18} {row['dtype']:<9} p50 {row['p50_s']:.4f} s")
    print(f"{rows[0]['device']}; {options.csv}")
    return 0


@torch.inference_mode()
def timed(
    way: str, *, members: int, repeats: int, device: str, size: int, parts: Sequence[str], small: bool
) -> list[dict[str, object]]:
    """Return a row for each part of drawing an ensemble of ``size`` x ``size`` pixels in one way."""
    batched = way != "member by member"
    dtype = torch.bfloat16 if batched and device == "cuda" else torch.float32
    torch.manual_seed(0)
    coder = Autoencoder(SMALL_AUTOENCODER if small else AutoencoderConfig()).to(device, dtype).eval()
    channels, size = coder.config.latent_channels, size // coder.config.reduction
    network = CasFormer(SMALL_CASFORMER if small else CasFormerConfig(), frames=FRAMES, channels=channels)
    network.to(device, dtype).eval()
    groups = [range(members)] if batched else [range(member, member + 1) for member in range(members)]
    condition = torch.randn(1, FRAMES, channels, size, size, device=device)
    schedule = make_schedule()
    plans = {
        "ddim-20": plan_steps("ddim", schedule, spaced_timesteps(schedule, 20)),
        "dpm-solver-6": plan_steps("dpm_solver", schedule, spaced_timesteps(schedule, 6, "trailing")),
    }
    graphs = {name: GraphCache("the sampling loop") if way == "graph" else None for name in plans}
    calls: dict[str, Callable[[], object]] = {
        name: lambda name=name: [draw(network, plans[name], condition, each, graphs[name]) for each in groups]
        for name in plans
    }
    latents = [torch.randn(len(numbers) * FRAMES, channels, size, size, device=device) for numbers in groups]
    calls["decode"] = lambda: [coder.decode(part) for part in latents]
    about = {key: value for key, value in machine(device).items() if key in COLUMNS}
    found = []
    for part in parts:
        times = seconds(calls[part], repeats=repeats, device=device)
        p20, p50, p80 = (sorted(times)[round(q * (len(times) - 1))] for q in (0.2, 0.5, 0.8))
        row = {"part": part, "way": way, "members": members, "dtype": str(dtype).removeprefix("torch."), **about}
        row |= {"networks": "small" if small else "SEVIR", "shape": f"{members}x{FRAMES}x{channels}x{size}x{size}"}
        quantiles = {name: round(value, 5) for name, value in (("p20_s", p20), ("p50_s", p50), ("p80_s", p80))}
        found.append({**row, **quantiles, "repeats": repeats, "load": round(os.getloadavg()[0], 1)})
    return found


def draw(
    network: CasFormer,
    steps: Sequence[SamplerStep],
    condition: Tensor,
    numbers: range,
    graphs: GraphCache | None = None,
) -> Tensor:
    """Return the latents of some members of one window, with guidance."""
    member = torch.tensor(list(numbers), device=condition.device)
    rows = BatchNoise(7, torch.zeros_like(member), member)

    def loop(start: Tensor, sample: Tensor, member: Tensor, under: Tensor) -> SamplingResult:
        return run_sampler(
            steps,
            lambda x, t: network(x, t, under),
            start,
            unconditional=lambda x, t: network(x, t, torch.zeros_like(under)),
            guidance=GUIDANCE,
            clip=CLIP,
            batch_noise=BatchNoise(rows.key, sample, member),
        )

    under = condition.expand(len(numbers), -1, -1, -1, -1)
    tensors = (rows.initial(tuple(condition.shape[1:])), rows.sample, member, under)
    return (loop(*tensors) if graphs is None else graphs.run(loop, *tensors)).latents


def seconds(call: Callable[[], object], *, repeats: int, device: str) -> list[float]:
    """Return the wall seconds of each of ``repeats`` calls, after one that is not counted, two on CUDA: it records."""
    found, before = [], 2 if device == "cuda" else 1
    for number in range(repeats + before):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= before:
            found.append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    sys.exit(main())
