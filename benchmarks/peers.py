"""Set our training steps and sampling beside the public code's: equal weights, inputs and shapes, one process each.

    PYTHONPATH=kernels:FOLDER python -m benchmarks.peers --earthformer PATH --openstl PATH --cascast PATH
        [--case simvp earthformer casformer sampling] [--precision fp32 bf16] [--turns 2] [--rounds 2]

The paths are checkouts of amazon-science/earth-forecasting-transformer, chengtan9907/OpenSTL and OpenEarthLab/CasCast;
a case whose checkout is not named is left out. FOLDER holds timm, see ``public_code``. Each contender runs in a
process of its own, which warms up and then times ``--rounds`` steps; of every second turn the order is the other one.
Forecasts at equal weights are compared with the public one in fp32, and a case is not written where ours lies further
off than rounding: in bf16, than twice what the public one does. fp32 is the precision that all three train in by
default; bf16 is autocast over fp32 weights on both sides.

Steps are forward and backward without an optimizer, at SEVIR size (13 -> 12 frames of 384 x 384, latents of 48 x 48);
sampling draws ``--members`` by ``--steps`` of DDIM under guidance, the public loop member by member, ours together.
Peak memory is the largest resident size of the process. On a machine with other work look at processor seconds.
"""

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import public_code
from benchmarks.harness import RESULTS, machine
from benchmarks.peer_contenders import CHECKOUTS, Task
from benchmarks.run_gpu import child_environment

ROOT = Path(__file__).resolve().parents[1]
# How far forecasts of equal weights may lie apart in fp32, relative to the largest: as the tests of published weights
# have it. Sampling feeds each step to the next.
TOLERANCE, TOLERANCE_AFTER_SAMPLING = 1e-4, 1e-3
# Of bf16, how many times further off than the public forecast.
TIMES_PUBLIC = 2.0
PRECISIONS = ("fp32", "bf16")
SIDES = ("public", "ours")


class WrongForecastError(Exception):
    """Two networks of equal weights give different forecasts, or one of them did not come to an end."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the CSV: a part of one contender's step, its seconds as quantiles over all timed rounds.

    ``apart`` is the contender's largest difference from the public forecast in fp32 over the largest of that; ``load``
    the machine's mean number of running processes over the last minute, when the case ended.
    """

    case: str
    provider: str
    part: str
    precision: str
    shape: str
    p20_s: float
    p50_s: float
    p80_s: float
    cpu_p50_s: float
    samples_per_s: float
    peak_gb: float
    rounds: int
    processes: int
    apart: float
    public_commit: str
    load: float
    device: str
    torch: str
    commit: str
    python: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, write their rows as they come, print the table; return 1 if a case failed."""
    options = parse(arguments)
    about = {k: v for k, v in machine("cpu").items() if k != "triton"}
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    failed, rows = False, []
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        for precision in options.precision:
            for case in options.case:
                try:
                    rows += (found := list(measured(case, precision, options, about)))
                except WrongForecastError as error:
                    print(f"{case}, {precision}: {error}", file=sys.stderr)
                    failed = True
                    continue
                writer.writerows(dataclasses.asdict(row) for row in found)
                file.flush()
                print("\n".join(lines(found)), flush=True)
    print(options.csv)
    return int(failed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line; ``case`` holds those whose checkout is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name in public_code.SOURCES:
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--case", nargs="+", choices=list(CHECKOUTS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--frames", nargs=2, type=int, default=[13, 12], metavar=("IN", "OUT"))
    parser.add_argument("--size", type=int, default=384, help="rows and columns of a frame; of latents, an eighth")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2, help="processes of each contender")
    parser.add_argument("--rounds", type=int, default=2, help="timed in each process; one more warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, default=RESULTS / "peers.csv")
    options = parser.parse_args(arguments)
    named = [case for case, checkout in CHECKOUTS.items() if getattr(options, checkout)]
    options.case = [
        case
        for case in options.case or named
        if case in named or parser.error(f"--case {case} needs --{CHECKOUTS[case]}")
    ]
    if not options.case:
        parser.error("name at least one checkout: --earthformer, --openstl or --cascast")
    for name in public_code.SOURCES:
        if root := getattr(options, name):
            try:
                public_code.check_checkout(name, root)
            except FileNotFoundError as error:
                parser.error(str(error))
    counts = ("size", "batch", "members", "steps", "turns", "rounds", "threads")
    wrong = [f"--{name} {getattr(options, name)}" for name in counts if getattr(options, name) < 1]
    if wrong:
        parser.error(f"{wrong[0]} is no count; it is at least 1")
    if options.frames[1] > options.frames[0] and "simvp" in options.case:
        parser.error("OpenSTL's SimVP makes no more frames in one pass than it sees")
    return options


def measured(case: str, precision: str, options: argparse.Namespace, about: dict[str, str]) -> Iterator[Row]:
    """Run every process of one case in turns and yield the rows of both contenders.

    Raises:
        WrongForecastError: the forecasts differ, or a process failed.
    """
    answers: dict[str, list[dict]] = {side: [] for side in SIDES}
    apart: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        forecasts = {side: Path(folder, f"{side}.pt") for side in SIDES}
        for turn in range(options.turns):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                forecast = forecasts[side] if turn == 0 else None
                answers[side].append(_answer(task_of(case, side, precision, options, forecast)))
            if turn == 0:
                exact = forecasts["public"]
                if precision != "fp32":
                    exact = Path(folder, "exact.pt")
                    _answer(replace(task_of(case, "public", "fp32", options, exact), rounds=0))
                apart = {name: _apart(exact, path, of=name) for name, path in forecasts.items()}
                _reject_wrong(apart, case=case, precision=precision)
    root = getattr(options, CHECKOUTS[case])
    batch = options.members if case == "sampling" else options.batch
    shape = (batch, sum(options.frames), 1, options.size, options.size)
    if case in ("casformer", "sampling"):
        shape = (batch, options.frames[1], 4, options.size // 8, options.size // 8)
    for side, found in answers.items():
        for part in found[0]["times"]:
            clock, processor = zip(*(pair for answer in found for pair in answer["times"][part]), strict=True)
            p50 = quantile(clock, 0.5)
            yield Row(
                case=case,
                provider=side,
                part=part,
                precision=precision,
                shape="x".join(map(str, shape)),
                p20_s=round(quantile(clock, 0.2), 4),
                p50_s=round(p50, 4),
                p80_s=round(quantile(clock, 0.8), 4),
                cpu_p50_s=round(quantile(processor, 0.5), 4),
                samples_per_s=round(batch / p50, 5),
                peak_gb=round(max(answer["peak_gb"] for answer in found), 3),
                rounds=len(clock),
                processes=len(found),
                apart=float(f"{apart[side]:.2e}"),
                public_commit=public_code.commit_of(root),
                load=round(os.getloadavg()[0], 1),
                **about,
            )


def task_of(case: str, side: str, precision: str, options: argparse.Namespace, forecast: Path | None) -> Task:
    """Return what one process is asked for."""
    in_latents = case in ("casformer", "sampling")
    return Task(
        case=case,
        side=side,
        checkout=str(getattr(options, CHECKOUTS[case]).resolve()),
        precision=precision,
        frames=tuple(options.frames),
        size=options.size // 8 if in_latents else options.size,
        batch=options.members if case == "sampling" else options.batch,
        rounds=options.rounds,
        threads=options.threads,
        steps=options.steps,
        forecast=str(forecast or ""),
    )


def _answer(task: Task) -> dict:
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.peer_contenders", json.dumps(dataclasses.asdict(task))]
    done = subprocess.run(words, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise WrongForecastError(f"the process of {task.side} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _apart(exact: Path, forecast: Path, *, of: str) -> float:
    want, got = (torch.load(path, weights_only=True) for path in (exact, forecast))
    if want.shape != got.shape:
        raise WrongForecastError(f"the public forecast is {tuple(want.shape)}, that of {of} {tuple(got.shape)}")
    return ((got - want).abs().max() / want.abs().max()).item()


def _reject_wrong(apart: Mapping[str, float], *, case: str, precision: str) -> None:
    limit = TOLERANCE_AFTER_SAMPLING if case == "sampling" else TOLERANCE
    if precision != "fp32":
        limit += TIMES_PUBLIC * apart["public"]
    if not apart["ours"] < limit:
        raise WrongForecastError(
            f"our forecast lies {apart['ours']:.3g} of the largest off the public one in fp32, must be below "
            f"{limit:.3g}; not timed"
        )


def quantile(values: Sequence[float], q: float) -> float:
    """Return the value of rank ``q``, as the harness does."""
    ordered = sorted(values)
    return ordered[round(q * (len(ordered) - 1))]


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the table of one case; ``vs public`` is how many times faster, by clock and by processor."""
    public = {row.part: row for row in rows if row.provider == "public"}
    return [
        f"{row.case:<12} {row.precision:<5} {row.shape:<16} {row.part:<9} {row.provider:<7} {row.p50_s:>9.3f} s "
        f"({row.p20_s:.3f}..{row.p80_s:.3f}), cpu {row.cpu_p50_s:>8.3f} s, {row.peak_gb:>6.2f} GB, vs public "
        f"{public[row.part].p50_s / row.p50_s:.2f}x, cpu {public[row.part].cpu_p50_s / row.cpu_p50_s:.2f}x"
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
