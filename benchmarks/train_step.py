"""Time a training step of a backbone without its optimizer: forward, backward, peak memory; kernels on and off.

    PYTHONPATH=kernels python -m benchmarks.train_step [--model earthformer] [--batch 1 2] [--size 384]
                                                       [--precision fp32 bf16] [--earthformer CHECKOUT]

The networks have their default (released SEVIR) sizes; ``--frames`` and ``--size`` change horizon and grid alone.
``--earthformer`` names a checkout of amazon-science/earth-forecasting-transformer: its model is built from the same
configuration, ours gets its weights through ``load_public``, both outputs are compared, and both are timed in this
process in turns, each round in the other order. The checkout is imported from its ``src`` as it stands.

``bf16`` is autocast over float32 weights. Kernels can be on where there is a CUDA device. Peak memory is the
allocator's on CUDA; on a CPU the largest resident size of this process during the steps, looked at every 5 ms. There
the processor's time is told besides the clock's, which on a machine with other work says little.
"""

import argparse
import contextlib
import csv
import ctypes
import dataclasses
import gc
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import public_code
from benchmarks.harness import machine, use_implementation
from simcast_hpc.config import EarthformerConfig, SimVPConfig
from simcast_hpc.models import build_model
from simcast_hpc.models.published_weights import load_public

RESULTS = Path(os.environ.get("RESULTS") or Path(__file__).parent / "results")
# How far outputs of equal weights may lie apart, relative to the largest.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
PARTS = ("forward", "backward", "step")


class Seconds(NamedTuple):
    """A point or a stretch of time, by the clock and by this process's use of processors."""

    clock: float
    processor: float


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One network with its batch: ``loss()`` runs the forward; ``body`` is what ``SIMCAST_KERNELS`` holds then."""

    name: str
    network: nn.Module
    loss: Callable[[], Tensor]
    body: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the CSV; times are quantiles over the rounds, ``peak_gb`` is the largest over them.

    ``cpu_p50`` is the processor time of this process, over all threads.
    """

    op: str
    provider: str
    mode: str
    case: str
    shape: str
    dtype: str
    p20: float
    p50: float
    p80: float
    unit: str
    cpu_p50: float
    peak_gb: float
    rounds: int
    device: str
    torch: str
    triton: str
    commit: str
    python: str


class WrongOutputError(Exception):
    """Two networks of equal weights give different forecasts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what the command line asks for, print a table and write the CSV."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    about = machine(options.device)
    print(f"{about['device']}, torch {about['torch']}, commit {about['commit']}, {options.rounds} rounds a number")
    rows: list[Row] = []
    for precision in options.precision:
        for batch in options.batch:
            for model in options.model:
                found = contenders(model, batch, precision, options)
                rows += measure(found, model, batch, precision, options, about)
                show(rows[-len(found) * len(PARTS) :])
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    print(options.csv)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", nargs="+", choices=["simvp", "earthformer"], default=["simvp", "earthformer"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--frames", nargs=2, type=int, default=[13, 12], metavar=("IN", "OUT"))
    parser.add_argument("--size", type=int, default=384, help="rows and columns")
    parser.add_argument("--precision", nargs="+", choices=list(TOLERANCE), default=["fp32"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; PyTorch's own choice by default")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each; two more warm up")
    parser.add_argument("--eval", action="store_true", help="without dropout")
    parser.add_argument("--earthformer", type=Path, metavar="CHECKOUT", help="time this public checkout as well")
    parser.add_argument("--csv", type=Path, default=RESULTS / "train_step.csv")
    options = parser.parse_args(arguments)
    if options.earthformer:
        try:
            public_code.check_checkout("earthformer", options.earthformer)
        except FileNotFoundError as error:
            parser.error(str(error))
    if min(options.rounds, options.size, *options.batch, *options.frames) < 1:
        parser.error("--rounds, --size, --batch and --frames are at least 1")
    return options


def contenders(model: str, batch: int, precision: str, options: argparse.Namespace) -> list[Contender]:
    """Return the networks to time: the public one first, if asked for, and ours, its kernels off and on.

    Raises:
        WrongOutputError: ours does not forecast what the public one does.
    """
    generator = torch.Generator().manual_seed(1)
    frames_in, frames_out = options.frames
    shape = (batch, frames_in + frames_out, 1, options.size, options.size)
    frames, target = torch.rand(shape, generator=generator).to(options.device).split([frames_in, frames_out], dim=1)
    found = []
    if model == "earthformer" and options.earthformer:
        public, config = public_network(options)
        ours = load_public("earthformer", config, public.state_dict()).to(options.device)
        found.append(_contender("public", public, frames, target, "", precision, features_last=True))
    else:
        size = (options.size, options.size)
        config = EarthformerConfig(grid=size) if model == "earthformer" else SimVPConfig()
        ours = build_model(config, frames_in=frames_in, frames_out=frames_out).to(options.device)
    bodies = {"reference": "kernels off", "triton": "kernels on"} if options.device == "cuda" else {"reference": "ours"}
    found += [_contender(name, ours, frames, target, body, precision) for body, name in bodies.items()]
    if len({id(contender.network) for contender in found}) > 1:
        compare(found, precision)
    for contender in found:
        contender.network.train(not options.eval)
    return found


def public_network(options: argparse.Namespace) -> tuple[nn.Module, dict]:
    """Return the checkout's model at the asked frames and size, and its configuration."""
    root = options.earthformer
    network, config = public_code.earthformer(root, frames=options.frames, size=options.size)
    print(f"public Earthformer: {root}, commit {public_code.commit_of(root)}")
    return network.to(options.device), config


def compare(found: Sequence[Contender], precision: str) -> None:
    """Compare the forecasts of all contenders in evaluation mode; print how far they lie apart.

    Raises:
        WrongOutputError: further than ``TOLERANCE``.
    """
    for contender in found:
        contender.network.eval()
    want = _forecast(found[0])
    for contender in found[1:]:
        apart = ((_forecast(contender) - want).abs().max() / want.abs().max()).item()
        print(f"outputs of {found[0].name} and {contender.name} at equal weights: {apart:.2e} of the largest apart")
        if not apart < TOLERANCE[precision]:
            raise WrongOutputError(f"{contender.name} lies {apart:.3g} from {found[0].name}; not timed")


def measure(
    found: Sequence[Contender],
    model: str,
    batch: int,
    precision: str,
    options: argparse.Namespace,
    about: dict[str, str],
) -> list[Row]:
    """Run every contender's step ``rounds`` times in turns and return three rows of each."""
    times: dict[str, dict[str, list[Seconds]]] = {c.name: {part: [] for part in PARTS} for c in found}
    peaks = dict.fromkeys(times, 0.0)
    for turn in range(-2, options.rounds):
        for contender in found if turn % 2 == 0 else found[::-1]:
            forward, backward, peak = one_step(contender, options.device)
            if turn >= 0:
                step = Seconds(*map(sum, zip(forward, backward, strict=True)))
                for part, seconds in zip(PARTS, (forward, backward, step), strict=True):
                    times[contender.name][part].append(seconds)
                peaks[contender.name] = max(peaks[contender.name], peak)
    frames = "->".join(map(str, options.frames))
    return [
        Row(
            op="train_step",
            provider=name,
            mode=part,
            case=f"{model} {frames}{' eval' if options.eval else ''}",
            shape=f"{batch}x{sum(options.frames)}x{options.size}x{options.size}",
            dtype=precision,
            **{f"p{q}": round(1e3 * _quantile([s.clock for s in seconds], q / 100), 2) for q in (20, 50, 80)},
            unit="ms",
            cpu_p50=round(1e3 * _quantile([s.processor for s in seconds], 0.5), 2),
            peak_gb=round(peaks[name], 3),
            rounds=options.rounds,
            **about,
        )
        for name, parts in times.items()
        for part, seconds in parts.items()
    ]


def one_step(contender: Contender, device: str) -> tuple[Seconds, Seconds, float]:
    """Return the time of a forward and of a backward pass, and the peak memory of both in gigabytes."""
    contender.network.zero_grad(set_to_none=True)
    with peak_memory(device) as peak, use_implementation(contender.body), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = seconds_now(device)
        loss = contender.loss()
        between = seconds_now(device)
        loss.backward()
        ended = seconds_now(device)
    contender.network.zero_grad(set_to_none=True)
    forward, backward = (
        Seconds(*(b - a for a, b in zip(*ends, strict=True))) for ends in ((began, between), (between, ended))
    )
    return forward, backward, peak[0]


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table; ``vs first`` is how many times faster than the case's first contender."""
    first = {row.mode: row.p50 for row in reversed(rows)}
    lines = [("model", "batch", "dtype", "provider", "part", "p50 ms", "p20..p80", "cpu ms", "peak GB", "vs first")]
    for row in rows:
        spread, ratio = f"{row.p20}..{row.p80}", f"{first[row.mode] / row.p50:.2f}x"
        shape = (row.case, row.shape, row.dtype, row.provider, row.mode)
        lines.append((*shape, str(row.p50), spread, str(row.cpu_p50), str(row.peak_gb), ratio))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _contender(
    name: str,
    network: nn.Module,
    frames: Tensor,
    target: Tensor,
    body: str,
    precision: str,
    *,
    features_last: bool = False,
) -> Contender:
    if features_last:
        frames, target = (x.movedim(2, -1).contiguous() for x in (frames, target))

    def loss() -> Tensor:
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=precision == "bf16"):
            forecast = network(frames)
        return (forecast.float() - target).square().mean()

    return Contender(name=name, network=network, loss=loss, body=body)


def _forecast(contender: Contender) -> Tensor:
    """Return the forecast ``[B, T', C, H, W]`` of a contender's batch, caught on its way into the loss."""
    caught: list[Tensor] = []
    hook = contender.network.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad(), use_implementation(contender.body):
        contender.loss()
    hook.remove()
    (forecast,) = caught
    return (forecast.movedim(-1, 2) if contender.name == "public" else forecast).float()


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[list[float]]:
    """Yield a list whose one number is, afterwards, the peak memory of what ran in between."""
    gc.collect()
    peak = [0.0]
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = torch.cuda.max_memory_allocated() / 1e9
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the step before left behind is no memory of this one
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _resident_gb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], _resident_gb())


def _resident_gb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def seconds_now(device: str) -> Seconds:
    """Return the time, after what the device was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[round(q * (len(ordered) - 1))]


if __name__ == "__main__":
    sys.exit(main())
