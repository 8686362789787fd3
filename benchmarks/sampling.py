"""Time an ensemble of one window: sampling by each sampler, decoding, and the released code's way, in one run.

    python -m benchmarks.sampling [--members 10] [--repeats 5] [--device cuda] [--small]

Networks of CasCast's SEVIR size with random weights, 12 frames of 384 x 384, guidance on. ``batched`` draws all members
together, in bfloat16 on CUDA, ``graph`` the same with the loop replayed as a CUDA graph, on CUDA alone; ``member by
member`` draws one after the other in float32, as the released evaluation does. Each line is one part, so that nothing
hides in a sum. ``--small`` takes networks that a CPU can run, to try the script; its numbers say nothing of the full
size.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import machine
from simcast_hpc.config import AutoencoderConfig, CasFormerConfig
from simcast_hpc.diffusion import Drawn, LoopGraphs, Rows, Step, make_schedule, plan_steps, spaced_timesteps, walk
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer

FRAMES, GUIDANCE, CLIP = 12, 2.0, 13.0
SMALL_AUTOENCODER = AutoencoderConfig(widths=(8, 16, 16, 16), groups=8)
SMALL_CASFORMER = CasFormerConfig(frame_width=32, frame_depth=2, width=64, depth=2, heads=4)
COLUMNS = (
    "part",
    "way",
    "members",
    "dtype",
    "p20_s",
    "p50_s",
    "p80_s",
    "repeats",
    "device",
    "torch",
    "triton",
    "commit",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every part and write the table; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="networks that a CPU can run, on 64 x 64 pixels")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/sampling.csv"))
    options = parser.parse_args(arguments)
    chosen = {"members": options.members, "repeats": options.repeats, "device": options.device, "small": options.small}
    ways = ["batched", *(["graph"] if options.device == "cuda" else []), "member by member"]
    rows = [row for way in ways for row in timed(way, **chosen)]
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['part']:<14} {row['way']:<18} {row['dtype']:<9} p50 {row['p50_s']:.4f} s")
    print(f"{rows[0]['device']}; {options.csv}")
    return 0


@torch.inference_mode()
def timed(way: str, *, members: int, repeats: int, device: str, small: bool) -> list[dict[str, object]]:
    """Return a row for each part of drawing an ensemble in one way."""
    batched = way != "member by member"
    dtype = torch.bfloat16 if batched and device == "cuda" else torch.float32
    torch.manual_seed(0)
    coder = Autoencoder(SMALL_AUTOENCODER if small else AutoencoderConfig()).to(device, dtype).eval()
    channels, size = coder.config.latent_channels, (64 if small else 384) // coder.config.reduction
    network = CasFormer(SMALL_CASFORMER if small else CasFormerConfig(), frames=FRAMES, channels=channels)
    network.to(device, dtype).eval()
    groups = [range(members)] if batched else [range(member, member + 1) for member in range(members)]
    condition = torch.randn(1, FRAMES, channels, size, size, device=device)
    schedule = make_schedule()
    plans = {
        "ddim-20": plan_steps("ddim", schedule, spaced_timesteps(schedule, 20)),
        "dpm-solver-6": plan_steps("dpm_solver", schedule, spaced_timesteps(schedule, 6, "trailing")),
    }
    graphs = {name: LoopGraphs() if way == "graph" else None for name in plans}
    parts: dict[str, Callable[[], object]] = {
        name: lambda name=name: [draw(network, plans[name], condition, each, graphs[name]) for each in groups]
        for name in plans
    }
    latents = [torch.randn(len(numbers) * FRAMES, channels, size, size, device=device) for numbers in groups]
    parts["decode"] = lambda: [coder.decode(part) for part in latents]
    about = {key: value for key, value in machine(device).items() if key in COLUMNS}
    found = []
    for part, call in parts.items():
        times = seconds(call, repeats=repeats, device=device)
        p20, p50, p80 = (sorted(times)[round(q * (len(times) - 1))] for q in (0.2, 0.5, 0.8))
        row = {"part": part, "way": way, "members": members, "dtype": str(dtype).removeprefix("torch."), **about}
        found.append({**row, "p20_s": p20, "p50_s": p50, "p80_s": p80, "repeats": repeats})
    return found


def draw(
    network: CasFormer, steps: Sequence[Step], condition: Tensor, numbers: range, graphs: LoopGraphs | None = None
) -> Tensor:
    """Return the latents of some members of one window, with guidance."""
    member = torch.tensor(list(numbers), device=condition.device)
    rows = Rows(7, torch.zeros_like(member), member)

    def loop(start: Tensor, sample: Tensor, member: Tensor, under: Tensor) -> Drawn:
        return walk(
            steps,
            lambda x, t: network(x, t, under),
            start,
            unconditional=lambda x, t: network(x, t, torch.zeros_like(under)),
            guidance=GUIDANCE,
            clip=CLIP,
            rows=Rows(rows.key, sample, member),
        )

    under = condition.expand(len(numbers), -1, -1, -1, -1)
    tensors = (rows.start(tuple(condition.shape[1:])), rows.sample, member, under)
    return (loop(*tensors) if graphs is None else graphs.run(loop, *tensors)).latents


def seconds(call: Callable[[], object], *, repeats: int, device: str) -> list[float]:
    """Return the wall seconds of each of ``repeats`` calls, after two that are not counted: the second records."""
    found = []
    for number in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number > 1:
            found.append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    sys.exit(main())
