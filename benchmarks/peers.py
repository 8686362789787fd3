"""Compare our training steps and sampling with reference implementations at equal weights, inputs and shapes.

    PYTHONPATH=kernels:FOLDER python -m benchmarks.peers --earthformer PATH --openstl PATH --cascast PATH
        [--case simvp earthformer casformer sampling] [--precision fp32 bf16] [--device cuda]

The paths are checkouts of amazon-science/earth-forecasting-transformer, chengtan9907/OpenSTL and OpenEarthLab/CasCast;
cases without a checkout are skipped. FOLDER contains timm, see ``reference_networks``. Each implementation runs in a
process of its own; the order alternates between turns. Steps are forward and backward without an optimizer, by default
at SEVIR size; sampling runs ``--steps`` of DDIM with guidance, the reference member by member, ours as one batch. bf16
is autocast over fp32 weights. On CUDA a third side runs our network without kernels.

Forecasts are compared with that of the reference implementation in fp32 (``apart``, max. relative difference). A case
is rejected above 1e-4 (sampling 1e-3), in bf16 above this plus twice the difference of the reference in bf16.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import reference_networks
from benchmarks.gpu.child_processes import child_environment
from benchmarks.measurements import RESULTS, ROOT, commit_of, provenance, quantiles, report, write_rows
from benchmarks.peer_process import CHECKOUTS, Task
from benchmarks.timing import quantile

# Max. relative difference of forecasts of equal weights in fp32; sampling feeds each step to the next.
TOLERANCE, SAMPLING_TOLERANCE = 1e-4, 1e-3
BF16_FACTOR = 2.0
PRECISIONS = ("fp32", "bf16")


class WrongForecastError(Exception):
    """Two networks of equal weights give different forecasts, or a process failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, write and print their rows; return 1 if a case failed."""
    options = parse(arguments)
    failed, rows = False, []
    for precision in options.precision:
        for case in options.case:
            try:
                rows += compare_case(case, precision, options)
                write_rows(rows, options.csv)  # keep the rows of an interrupted run
            except WrongForecastError as error:
                print(f"{case}, {precision}: {error}", file=sys.stderr)
                failed = True
    report(rows, options.csv, ratio="provider:reference:cpu_p50_s,p50_s,peak_gb")
    return int(failed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line; ``case`` contains only cases whose checkout is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name in reference_networks.SOURCES:
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--case", nargs="+", choices=list(CHECKOUTS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--frames", nargs=2, type=int, default=[13, 12], metavar=("IN", "OUT"))
    parser.add_argument("--size", type=int, default=384, help="rows and columns in pixels; latents have an eighth")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2, help="processes per implementation")
    parser.add_argument("--rounds", type=int, default=2, help="timed steps per process, after one warm-up step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, default=RESULTS / "peers.csv")
    options = parser.parse_args(arguments)
    given = [case for case, checkout in CHECKOUTS.items() if getattr(options, checkout)]
    for case in set(options.case or []) - set(given):
        parser.error(f"--case {case} requires --{CHECKOUTS[case]}")
    options.case = options.case or given
    if not options.case:
        parser.error("at least one checkout is required: --earthformer, --openstl or --cascast")
    for name in reference_networks.SOURCES:
        try:
            if root := getattr(options, name):
                reference_networks.check_checkout(name, root)
        except FileNotFoundError as error:
            parser.error(str(error))
    for name in ("size", "batch", "members", "steps", "turns", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} must be at least 1")
    if options.frames[1] > options.frames[0] and "simvp" in options.case:
        parser.error("OpenSTL's SimVP forecasts at most as many frames as its input has")
    return options


def compare_case(case: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every process of one case in alternating order and return the rows of all sides.

    Raises:
        WrongForecastError: the forecasts differ, or a process failed.
    """
    sides = ("reference", "ours", *(["ours, no kernels"] if options.device == "cuda" else []))
    answers: dict[str, list[dict]] = {side: [] for side in sides}
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        forecasts = {side: Path(folder, f"{side}.pt") for side in sides}
        for turn in range(options.turns):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                forecast = forecasts[side] if turn == 0 else None
                answers[side].append(_run_process(task_of(case, side, precision, options, forecast)))
            if turn == 0:
                exact = forecasts["reference"]
                if precision != "fp32":
                    exact = Path(folder, "exact.pt")
                    _run_process(replace(task_of(case, "reference", "fp32", options, exact), rounds=0))
                differences = {name: _difference(exact, path, name) for name, path in forecasts.items()}
                _reject_wrong(differences, case=case, precision=precision)
    task = task_of(case, "ours", precision, options, None)
    frames, channels = (options.frames[1], 4) if case in ("casformer", "sampling") else (sum(options.frames), 1)
    rows = []
    for side, runs in answers.items():
        for part in runs[0]["times"]:
            wall, cpu = zip(*(pair for run in runs for pair in run["times"][part]), strict=True)
            rows.append({
                "case": case,
                "provider": side,
                "part": part,
                "precision": precision,
                "shape": f"{task.batch}x{frames}x{channels}x{task.size}x{task.size}",
                **quantiles(wall),
                "cpu_p50_s": round(quantile(cpu, 0.5), 4),
                "samples_per_s": round(task.batch / quantile(wall, 0.5), 5),
                "peak_gb": round(max(run["peak_gb"] for run in runs), 3),
                "rounds": len(wall),
                "processes": len(runs),
                "apart": float(f"{differences[side]:.2e}"),
                "public_commit": commit_of(Path(task.checkout)),
                **provenance(options.device),
            })  # fmt: skip
    return rows


def task_of(case: str, side: str, precision: str, options: argparse.Namespace, forecast: Path | None) -> Task:
    """Return the arguments of one process."""
    latent = case in ("casformer", "sampling")
    return Task(
        case=case,
        side=side,
        checkout=str(getattr(options, CHECKOUTS[case]).resolve()),
        precision=precision,
        device=options.device,
        frames=tuple(options.frames),
        size=options.size // 8 if latent else options.size,
        batch=options.members if case == "sampling" else options.batch,
        rounds=options.rounds,
        threads=options.threads,
        steps=options.steps,
        forecast=str(forecast or ""),
    )


def _run_process(task: Task) -> dict:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peer_process", json.dumps(dataclasses.asdict(task))]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise WrongForecastError(f"the process of {task.side} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _difference(exact: Path, forecast: Path, side: str) -> float:
    expected, actual = (torch.load(path, weights_only=True) for path in (exact, forecast))
    if expected.shape != actual.shape:
        shapes = tuple(expected.shape), tuple(actual.shape)
        raise WrongForecastError(f"the forecast of reference has shape {shapes[0]}, that of {side} {shapes[1]}")
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def _reject_wrong(differences: Mapping[str, float], *, case: str, precision: str) -> None:
    limit = SAMPLING_TOLERANCE if case == "sampling" else TOLERANCE
    if precision != "fp32":
        limit += BF16_FACTOR * differences["reference"]
    for side, difference in differences.items():
        if side != "reference" and not difference < limit:
            raise WrongForecastError(
                f"max. relative difference of the forecast of {side} {difference:.3g}, must be below {limit:.3g}; "
                "not timed"
            )


if __name__ == "__main__":
    sys.exit(main())
