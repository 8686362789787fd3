"""Time counting a forecast, compared with CasCast's evaluator in the same run.

    python -m benchmarks.scoring --cascast DIR [--threads 2] [--repetitions 20] [--device cpu|cuda] [--csv FILE]

DIR is a checkout of OpenEarthLab/CasCast, which requires torchmetrics and einops. A forecast has 12 frames of
384 x 384; there are six thresholds. Rows, timed in alternation:

- ``cascast``: the ``update`` of CasCast's evaluator: pixels, maxima over 4 and 16, averages over 4 and 16.
- ``ours, same tables``: ``count`` under ``cascast-released`` with the same five tables, and squared and absolute
  errors; its integers are compared with CasCast's before the timing.
- ``ours, maxima``: ``count`` under ``sevir-global`` with pixels and maxima over 4 and 16 (the scores of SimCast's
  tables) and the errors, of encoded observations.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.measurements import RESULTS, Seconds, commit_of, provenance, quantiles, report, time_call
from benchmarks.published_evaluators import load_cascast
from simcast_hpc.verification import PROTOCOLS, count

SHAPE = (12, 384, 384)
_POOLS = {
    "": "",
    "pool4": "_max_pool_4",
    "pool16": "_max_pool_16",
    "pool4_avg": "_avg_pool_4",
    "pool16_avg": "_avg_pool_16",
}


def storm(*, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return encoded observations uint8 ``[1, T, H, W]``, a fifth with echo, and an unrounded imperfect forecast."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.rand(2, shape[0], shape[1] // 8, shape[2] // 8, generator=generator)
    field = torch.nn.functional.interpolate(fine, size=shape[1:], mode="bicubic")
    field = (field * 2.2 - 1.2).clamp(0, 0.99)
    observed = (field[0] * 255).round().byte()[None]
    forecast = (0.8 * field[0] + 0.2 * field[1])[None].contiguous()
    return observed, forecast


def compare(evaluator: object, counts: dict[str, torch.Tensor]) -> None:
    """Compare all integers of CasCast's evaluator with ours.

    Raises:
        SystemExit: a table differs.
    """
    for pool, suffix in _POOLS.items():
        for row, name in enumerate(("hits", "misses", "fas")):
            expected = getattr(evaluator, name + suffix).long().cpu()
            actual = counts[pool][row].sum(-1).cpu()
            if not torch.equal(expected, actual):
                raise SystemExit(f"{name}{suffix}: CasCast {expected.tolist()}, ours {actual.tolist()}; not timed")


def tables(observed: torch.Tensor, forecast: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return int64 ``[4, thresholds, T]`` by pool under CasCast's protocol."""
    counted = count(observed, forecast, protocol=_PUBLISHED)
    pixels = torch.stack([counted.hits, counted.misses, counted.false_alarms, counted.correct_negatives], 1)
    return {"": pixels[0]} | {pool.key: counted.extra[f"{pool.key}/table"][0] for pool in _PUBLISHED.pools}


_PUBLISHED = dataclasses.replace(PROTOCOLS["cascast-released"], oddities=())
_MAXIMA = dataclasses.replace(PROTOCOLS["sevir-global"], ssim=False, fss_km=())


def time_in_turn(calls: dict[str, Callable[[], object]], *, repetitions: int, device: str) -> list[dict[str, object]]:
    """Return the times of calls that alternate, a row per call."""
    times: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(repetitions + 2):
        for name, call in calls.items():
            times[name].append(time_call(call, device))
    return [
        {
            "provider": name,
            **quantiles([one.wall for one in seconds[2:]]),  # the first two grow the heap
            "cpu_least_s": round(min(one.cpu for one in seconds[2:]), 5),
        }
        for name, seconds in times.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, time, write and print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cascast", type=Path, required=True, help="root of a checkout of OpenEarthLab/CasCast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, default=RESULTS / "scoring.csv")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.repetitions < 2:
        parser.error("--threads must be at least 1, --repetitions at least 2")
    torch.set_num_threads(options.threads)
    device, module = torch.device(options.device), load_cascast(options.cascast.resolve())
    codes, forecast = (field.to(device) for field in storm())
    floats = codes.float() / torch.full((), 255.0, device=device)

    def cascast() -> object:
        evaluator = module.SEVIRSkillScore(layout="NTCHW", mode="0", seq_len=codes.shape[1])
        evaluator.update(forecast[:, :, None], floats[:, :, None])
        return evaluator

    compare(cascast(), tables(floats, forecast))
    calls: dict[str, Callable[[], object]] = {
        "cascast": cascast,
        "ours, same tables": lambda: count(floats, forecast, protocol=_PUBLISHED),
        "ours, maxima": lambda: count(codes, forecast, protocol=_MAXIMA),
    }
    about = {
        "shape": "x".join(map(str, codes.shape[1:])),
        "thresholds": len(_PUBLISHED.thresholds),
        "repetitions": options.repetitions,
        "public_commit": commit_of(options.cascast),
        **provenance(device.type),
    }
    rows = time_in_turn(calls, repetitions=options.repetitions, device=device.type)
    report([row | about for row in rows], options.csv, ratio="provider:cascast:p50_s,cpu_least_s")


if __name__ == "__main__":
    main()
