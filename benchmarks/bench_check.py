"""Compare speed and memory ratios, ours over a plain implementation in the same process, with the committed ones.

    PYTHONPATH=kernels python -m benchmarks.bench_check [--update] [--rounds 15] [--device cpu]

Times of different days or machines are not comparable; the ratio of two calls timed alternately is. Each pair of
``ratio_pairs`` runs ``--rounds`` times alternately, on a CPU in CPU time of one thread, on a GPU by events; the ratio
is the median over the rounds. ``memory`` is the ratio of the bytes saved for the backward pass, which has no noise. If
a ratio exceeds the committed one, in ``benchmarks/baseline.csv``, by more than the tolerance in the file, it is
reported and the exit status is 1. ``--update`` writes the ratios of this device to the file instead and keeps the
tolerances.
"""

import argparse
import csv
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurements import machine
from benchmarks.ratio_pairs import kept_bytes, pairs
from benchmarks.timing import quantile

COMMITTED = Path(__file__).parent / "baseline.csv"
# Factor by which a ratio may exceed the committed one. Time: the spread between runs on a busy machine.
TOLERANCE = {"time": 1.3, "memory": 1.001}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One ratio, ours over the peer's, and where it was measured: below 1 ours is faster or saves less memory."""

    device: str
    pair: str
    quantity: str
    ratio: float
    tolerance: float
    measured_on: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity of the ratio across runs."""
        return self.device, self.pair, self.quantity


def measured(device: str, rounds: int) -> list[Ratio]:
    """Return the ratios of a device, ``cpu`` or ``cuda``."""
    about = machine(device)
    name = "cpu" if device == "cpu" else about["device"]
    where = f"{about['device']}; torch {about['torch']}; triton {about['triton']}; commit {about['commit']}"
    found = []
    for pair in pairs(device):
        ratios = {"time": quantile(_times(pair.ours, pair.peer, device=device, rounds=rounds), 0.5)}
        if pair.kept is not None:
            ours, peer = map(kept_bytes, pair.kept)
            ratios["memory"] = ours / peer
        found += [
            Ratio(device=name, pair=pair.name, quantity=quantity, ratio=round(ratio, 4),
                  tolerance=TOLERANCE[quantity], measured_on=where)
            for quantity, ratio in ratios.items()
        ]  # fmt: skip
    return found


def _times(ours: Callable[[], Any], peer: Callable[[], Any], *, device: str, rounds: int) -> list[float]:
    """Return the ratio of each round; the order alternates, and one warm-up call of each is not counted."""
    clock = _gpu_seconds if device == "cuda" else _cpu_seconds
    for warm_up in (ours, peer):
        clock(warm_up)
    found = []
    for number in range(rounds):
        first, second = (ours, peer) if number % 2 == 0 else (peer, ours)
        a, b = clock(first), clock(second)
        found.append(a / b if number % 2 == 0 else b / a)
    return found


def _cpu_seconds(call: Callable[[], Any], least: float = 0.02) -> float:
    """Return the CPU time of a call, over enough calls to exceed the resolution of the clock."""
    count, began = 0, time.process_time()
    while not count or time.process_time() - began < least:
        call()
        count += 1
    return (time.process_time() - began) / count


def _gpu_seconds(call: Callable[[], Any], count: int = 10) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def compare(committed: Sequence[Ratio], found: Sequence[Ratio]) -> list[str]:
    """Return a message for each ratio that exceeds the committed one by more than the tolerance, or is missing."""
    before, after = ({ratio.key: ratio for ratio in ratios} for ratios in (committed, found))
    devices = {ratio.device for ratio in found}
    worse = [
        f"{pair}, {quantity}: missing" for device, pair, quantity in before.keys() - after.keys() if device in devices
    ]
    for key in before.keys() & after.keys():
        was, now = before[key], after[key]
        if not now.ratio <= was.ratio * was.tolerance:  # NaN is worse too
            worse.append(f"{was.pair}, {was.quantity}: {now.ratio:.3f} of the peer's, was {was.ratio:.3f}")
    return sorted(worse)


def read(path: Path) -> list[Ratio]:
    """Return the committed ratios; none without a file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Ratio(**row | {name: float(row[name]) for name in ("ratio", "tolerance")}) for row in rows]


def write(ratios: Sequence[Ratio], path: Path) -> None:
    """Write the ratios, sorted by key."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Ratio)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(ratio) for ratio in sorted(ratios, key=lambda ratio: ratio.key))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and compare or update; return 1 if a ratio got worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--baseline", type=Path, default=COMMITTED)
    parser.add_argument("--update", action="store_true", help="update the committed ratios of this device")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} is invalid; it must be at least 1")
    if options.device == "cpu":
        torch.set_num_threads(1)
    committed, found = read(options.baseline), measured(options.device, options.rounds)
    before = {ratio.key: ratio for ratio in committed}
    for ratio in found:
        was = before.get(ratio.key)
        limit = f"committed {was.ratio:.3f}, limit {was.ratio * was.tolerance:.3f}" if was else "new"
        print(f"{ratio.device}  {ratio.pair:<40} {ratio.quantity:<7} {ratio.ratio:>8.3f}  {limit}")
    if options.update:
        kept = {r.key: r.tolerance for r in committed}
        updated = [dataclasses.replace(r, tolerance=kept.get(r.key, r.tolerance)) for r in found]
        devices = {ratio.device for ratio in found}
        write([ratio for ratio in committed if ratio.device not in devices] + updated, options.baseline)
        print(f"{options.baseline}: {len(found)} ratios updated")
        return 0
    worse = compare(committed, found)
    for text in worse:
        print(f"worse: {text}", file=sys.stderr)
    print(f"{len(found)} ratios, {len(worse)} worse than {options.baseline}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
