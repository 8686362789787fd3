"""Data at SEVIR's size: reading compared with Earthformer's loader, preparation with a minimal loop, opening an index.

    PYTHONPATH=kernels python -m benchmarks.sevir_data --earthformer CHECKOUT  # of earth-forecasting-transformer

Without ``--earthformer`` only our rows are measured. Goals, all on one core: shards give 5 times the windows of
Earthformer's loader on its own layout; preparation reaches 0.85 of the minimal loop's speed; CPU time per event grows
by at most 15 % from one rank to two; an index opens in 2 s and 500 MB. Each part writes a CSV: ``data_reading.csv``,
``data_preparation.csv``, ``data_opening.csv``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import torch

from benchmarks import data_index
from benchmarks.data_archives import FILE, make_events, write_layouts
from benchmarks.data_preparation import compare_with_minimum, time_ranks
from benchmarks.data_reading import compare_outputs, time_reading
from benchmarks.earthformer_loader import import_loader
from benchmarks.measurements import RESULTS, commit_of, provenance, report

SEVIR_FRAMES = 49
PARTS = ("reading", "preparing", "opening")


def measure_reading(options: argparse.Namespace, roots: dict[str, Path]) -> None:
    """Compare outputs, then time reading."""
    loader = None if options.earthformer is None else import_loader(options.earthformer)
    if loader is not None:
        print(f"{compare_outputs(loader, roots)} windows equal those of Earthformer's loader in every layout")
    rows = time_reading(loader, roots, repetitions=options.repetitions)
    about = {"public_commit": "" if options.earthformer is None else commit_of(options.earthformer)}
    _report([row | _events(options) | about for row in rows], options.csv / "data_reading.csv")


def measure_preparation(options: argparse.Namespace, roots: dict[str, Path], folder: Path) -> None:
    """Time preparation in this process, and with one and two ranks."""
    rows = [row | _events(options) for row in compare_with_minimum(roots, folder, repetitions=options.repetitions)]
    fewer, half = max(2, options.events // 6), max(1, options.repetitions // 2)
    with h5py.File(roots["gzip"] / "data" / FILE) as file:
        few = write_layouts(folder / "few", file["vil"][:fewer])["gzip"]  # pyright: ignore
    times = time_ranks(roots["gzip"], few, folder, events=options.events, fewer=fewer, repetitions=half)
    command = {"way": "command", "layout": "gzip", "codec": "lz4"} | _events(options) | {"repetitions": half}
    rows += [{**command, "ranks": ranks, "ours_ms": round(time, 2)} for ranks, time in times.items()]
    _report(rows, options.csv / "data_preparation.csv")


def measure_opening(options: argparse.Namespace, folder: Path) -> None:
    """Time opening an index of SEVIR's size and ten times that, each in a process of its own."""
    rows = []
    for events in (data_index.SEVIR_EVENTS, 10 * data_index.SEVIR_EVENTS):
        root = folder / f"index-{events}"
        data_index.make(root, events)
        command = [sys.executable, "-m", "benchmarks.data_index", "--open", str(root)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append({"events": events, **json.loads(done.stdout)})
    _report(rows, options.csv / "data_opening.csv")


def _events(options: argparse.Namespace) -> dict[str, object]:
    return {
        "events": options.events,
        "frames": SEVIR_FRAMES,
        "size": options.size,
        "repetitions": options.repetitions,
    }


def _report(rows: Sequence[dict[str, object]], path: Path) -> None:
    about = {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version, **provenance("cpu")}
    report([row | about for row in rows], path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, write and print their rows; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--earthformer", type=Path, metavar="CHECKOUT")
    parser.add_argument("--events", type=int, default=12)
    parser.add_argument("--size", type=int, default=384, help="rows and columns in pixels")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--csv", type=Path, metavar="FOLDER", default=RESULTS, help="folder of the CSV files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"reading", "preparing"} & set(options.parts):
            events = make_events(folder / "events", events=options.events, size=options.size, frames=SEVIR_FRAMES)
            roots = write_layouts(folder, events)
            if "reading" in options.parts:
                measure_reading(options, roots)
            if "preparing" in options.parts:
                measure_preparation(options, roots, folder)
        if "opening" in options.parts:
            measure_opening(options, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
