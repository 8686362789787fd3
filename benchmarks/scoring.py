"""Time counting a forecast beside CasCast's evaluator, in one run, outputs compared first.

    python -m benchmarks.scoring --cascast DIR [--threads 2] [--repetitions 20] [--device cpu|cuda] [--csv FILE]

DIR is a checkout of OpenEarthLab/CasCast; torchmetrics and einops must be installed for it. A forecast is 12 frames of
384 x 384, six thresholds. Rows:

- ``cascast``: their ``SEVIRSkillScore.update``: pixels, maxima over 4 and 16, averages over 4 and 16.
- ``ours, same tables``: ``count`` under ``cascast-released`` with the same five tables, the squared and absolute errors
  besides; its integers are compared with theirs before anything is timed.
- ``ours, maxima``: ``count`` under ``sevir-global`` with pixels and maxima over 4 and 16 (the scores of SimCast's
  tables) and the errors; the observation as the radar's bytes.

Every repetition runs each of them in turn, so that a busy machine slows all alike; CPU time is that of the process.
One row each is written, seconds a forecast, to ``scoring.csv`` by default.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.harness import PROVENANCE, RESULTS, machine, provenance, write_rows
from benchmarks.public_code import commit_of
from benchmarks.released_evaluators import load_cascast
from simcast_hpc.verification import PROTOCOLS, count

SHAPE = (12, 384, 384)
_POOLS = {
    "": "",
    "pool4": "_max_pool_4",
    "pool16": "_max_pool_16",
    "pool4_avg": "_avg_pool_4",
    "pool16_avg": "_avg_pool_16",
}


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds a forecast: quantiles of the wall clock and the least CPU time over the repetitions."""

    provider: str
    p20: float
    p50: float
    p80: float
    least_cpu: float

    def row(self) -> dict[str, object]:
        """Return its columns of the CSV."""
        seconds = {"p20_s": self.p20, "p50_s": self.p50, "p80_s": self.p80, "cpu_least_s": self.least_cpu}
        return {"provider": self.provider, **{name: round(value, 5) for name, value in seconds.items()}}


COLUMNS = (
    "provider", "shape", "thresholds", "p20_s", "p50_s", "p80_s", "cpu_least_s", "repetitions", "public_commit",
    *PROVENANCE,
)  # fmt: skip


def storm(*, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return observed codes uint8 ``[1, T, H, W]``, of which a fifth has echo, and an unrounded forecast that errs."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.rand(2, shape[0], shape[1] // 8, shape[2] // 8, generator=generator)
    field = torch.nn.functional.interpolate(fine, size=shape[1:], mode="bicubic")
    field = (field * 2.2 - 1.2).clamp(0, 0.99)
    observed = (field[0] * 255).round().byte()[None]
    forecast = (0.8 * field[0] + 0.2 * field[1])[None].contiguous()
    return observed, forecast


def compare(theirs: object, ours: dict[str, torch.Tensor]) -> None:
    """Refuse to go on where an integer differs.

    Raises:
        SystemExit: names the first table that differs.
    """
    for pool, suffix in _POOLS.items():
        for row, name in enumerate(("hits", "misses", "fas")):
            expected = getattr(theirs, name + suffix).long().cpu()
            counts = ours[pool][row].sum(-1).cpu()
            if not torch.equal(expected, counts):
                raise SystemExit(
                    f"{name}{suffix} differ: theirs {expected.tolist()}, ours {counts.tolist()}; not timed"
                )


def tables(observed: torch.Tensor, forecast: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return int64 ``[4, thresholds, T]`` by pool under the released protocol."""
    counted = count(observed, forecast, protocol=_RELEASED)
    pixels = torch.stack([counted.hits, counted.misses, counted.false_alarms, counted.correct_negatives], 1)
    found = {"": pixels[0]}
    return found | {pool.key: counted.extra[f"{pool.key}/table"][0] for pool in _RELEASED.pools}


_RELEASED = dataclasses.replace(PROTOCOLS["cascast-released"], oddities=())
_MAXIMA = dataclasses.replace(PROTOCOLS["sevir-global"], ssim=False, fss_km=())


def timed(calls: dict[str, Callable[[], object]], *, repetitions: int, device: torch.device) -> list[Timed]:
    """Return the times of each call, run in turn."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 2):
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began, used = time.perf_counter(), time.process_time()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repetition >= 2:  # the first two grow the heap
                wall[name].append(time.perf_counter() - began)
                busy[name].append(time.process_time() - used)
    rows = []
    for name, seconds in wall.items():
        cuts = statistics.quantiles(seconds, n=10)
        rows.append(Timed(name, cuts[1], statistics.median(seconds), cuts[7], min(busy[name])))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, time, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cascast", type=Path, required=True, help="root of a checkout of OpenEarthLab/CasCast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, default=RESULTS / "scoring.csv")
    given = parser.parse_args(arguments)
    if given.threads < 1 or given.repetitions < 2:
        parser.error("--threads is at least 1, --repetitions at least 2")
    torch.set_num_threads(given.threads)
    device, module = torch.device(given.device), load_cascast(given.cascast.resolve())
    codes, forecast = (field.to(device) for field in storm())
    floats = codes.float() / torch.full((), 255.0, device=device)

    def cascast() -> object:
        evaluator = module.SEVIRSkillScore(layout="NTCHW", mode="0", seq_len=codes.shape[1])
        evaluator.update(forecast[:, :, None], floats[:, :, None])
        return evaluator

    compare(cascast(), tables(floats, forecast))
    calls: dict[str, Callable[[], object]] = {
        "cascast": cascast,
        "ours, same tables": lambda: count(floats, forecast, protocol=_RELEASED),
        "ours, maxima": lambda: count(codes, forecast, protocol=_MAXIMA),
    }
    rows = timed(calls, repetitions=given.repetitions, device=device)
    print(f"{machine(device.type)}, {given.threads} threads, {given.repetitions} repetitions; all integers are equal")
    for row in rows:
        ratio = f"{rows[0].p50 / row.p50:.1f} x by the median, {rows[0].least_cpu / row.least_cpu:.1f} x by least CPU"
        spread = f"p20 {row.p20 * 1e3:.1f}  p50 {row.p50 * 1e3:.1f}  p80 {row.p80 * 1e3:.1f} ms"
        print(f"{row.provider:<18} {spread}, least CPU {row.least_cpu * 1e3:.1f} ms: {ratio}")
    about = {
        "shape": "x".join(map(str, codes.shape[1:])),
        "thresholds": len(_RELEASED.thresholds),
        "repetitions": given.repetitions,
        "public_commit": commit_of(given.cascast),
        **provenance(device.type),
    }
    write_rows([row.row() | about for row in rows], COLUMNS, given.csv)
    print(given.csv)


if __name__ == "__main__":
    main()
