"""Data at SEVIR's size: reading beside the public loader, preparing beside the least that anybody could do, opening.

    PYTHONPATH=kernels python -m benchmarks.sevir_data --public CHECKOUT  # of earth-forecasting-transformer

Without ``--public`` our own rows alone. The goals: shards give 5 times the windows of the public loader on its own kind
of file, and nothing of ours is slower than it; preparation has 0.85 of the bare loop's speed; processor time an event
grows by at most 15 % from one rank to two; an index opens in 2 s and 500 MB. All on one core; see each part's module.
Each part writes a CSV: ``data_reading.csv``, ``data_preparation.csv``, ``data_opening.csv``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import torch

from benchmarks import data_index
from benchmarks.data_archives import make_events, write_layouts
from benchmarks.data_preparation import compare_with_bare, of_ranks
from benchmarks.data_reading import BATCH, Reading, compare, read_all
from benchmarks.harness import PROVENANCE, RESULTS, machine, provenance, write_rows
from benchmarks.public_code import commit_of
from benchmarks.public_sevir_loader import import_loader

SEVIR_FRAMES = 49
_EVENTS = ("events", "frames", "size", "repetitions")  # of what the first two parts read
_VERSIONS = ("h5py", "hdf5")
READING = (
    "provider", "layout", "order", "cache", "windows_per_core_s", "windows_per_s", *_EVENTS, "public_commit",
    *_VERSIONS, *PROVENANCE,
)  # fmt: skip
PREPARATION = ("way", "layout", "codec", "ranks", "bare_ms", "ours_ms", "megabytes", *_EVENTS, *_VERSIONS, *PROVENANCE)
OPENING = ("events", "windows", "seconds", "mib", *_VERSIONS, *PROVENANCE)


def table(lines: Sequence[tuple[str, ...]]) -> None:
    """Print lines in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_reading(rows: Sequence[Reading]) -> None:
    """Print the reading table, each row over the public loader's on the same layout, and over its own on gzip."""
    public = {(r.layout, r.order, r.cache): r.per_core_second for r in rows if r.provider == "public loader"}
    lines = [
        ("provider", "layout", "order", "page cache", "windows/s/core", "windows/s", "/ public", "/ public on gzip")
    ]
    for row in rows:
        same = public.get((row.layout, row.order, row.cache))
        gzip = public.get(("gzip", row.order, row.cache))
        rates = (f"{row.per_core_second:.1f}", f"{row.per_second:.1f}")
        ratios = (f"{row.per_core_second / one:.2f}" if one else "" for one in (same, gzip))
        lines.append((row.provider, row.layout, row.order, row.cache, *rates, *ratios))
    table(lines)


def reading(options: argparse.Namespace, roots: dict[str, Path]) -> None:
    """Compare outputs, then time reading."""
    loader = None if options.public is None else import_loader(options.public)
    if loader is not None:
        compared = compare(loader, roots)
        print(f"\nReading: {compared} windows of the public loader equal ours in every layout; batches of {BATCH}")
    rows = read_all(loader, roots, repetitions=options.repetitions)
    show_reading(rows)
    about = {"public_commit": "" if options.public is None else commit_of(options.public)}
    write([row.row() | of_events(options) | about for row in rows], READING, options.csv / "data_reading.csv")


def preparing(options: argparse.Namespace, roots: dict[str, Path], folder: Path) -> None:
    """Time preparation."""
    print("\nPreparing, ms of processor time an event (bare: read, transpose, checksum, compressed write)")
    lines = [("from", "codec", "bare", "ours", "ours / bare speed", "MB written")]
    rows = compare_with_bare(roots, folder, repetitions=options.repetitions)
    for row in rows:
        numbers = (f"{row.bare_ms:.1f}", f"{row.ours_ms:.1f}", f"{row.ratio:.2f}", f"{row.megabytes:.0f}")
        lines.append((row.layout, row.codec, *numbers))
    table(lines)
    fewer = max(2, options.events // 6)
    with h5py.File(roots["gzip"] / "data" / "vil/2018/events.h5") as file:
        few = write_layouts(folder / "few", file["vil"][:fewer])["gzip"]  # pyright: ignore
    half = max(1, options.repetitions // 2)
    spent = of_ranks(roots["gzip"], few, folder, events=options.events, fewer=fewer, repetitions=half)
    print(
        f"ranks: 1 takes {spent[1]:.1f} ms an event, 2 take {spent[2]:.1f} ms: {100 * (spent[2] / spent[1] - 1):+.1f} %"
    )
    command = {"way": "command", "layout": "gzip", "codec": "lz4"} | of_events(options) | {"repetitions": half}
    ranks = [{**command, "ranks": count, "ours_ms": round(milliseconds, 2)} for count, milliseconds in spent.items()]
    written = [*(row.row() | of_events(options) for row in rows), *ranks]
    write(written, PREPARATION, options.csv / "data_preparation.csv")


def opening(options: argparse.Namespace, folder: Path) -> None:
    """Time opening an index, each in a process of its own."""
    print("\nOpening an index (sparse shards), reading a window, fingerprint")
    lines, rows = [("events", "windows", "seconds", "MiB added")], []
    for times in (1, 10):
        root = folder / f"index-{times}"
        data_index.make(root, times * data_index.SEVIR_EVENTS)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.data_index", "--open", str(root)],
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout)
        events = times * data_index.SEVIR_EVENTS
        rows.append({"events": events, **found, "windows": int(found["windows"])})
        lines.append((str(events), f"{found['windows']:.0f}", f"{found['seconds']:.2f}", f"{found['mib']:.0f}"))
    table(lines)
    write(rows, OPENING, options.csv / "data_opening.csv")


def of_events(options: argparse.Namespace) -> dict[str, object]:
    """Return the columns that say what was read, and how often."""
    return {
        "events": options.events,
        "frames": SEVIR_FRAMES,
        "size": options.size,
        "repetitions": options.repetitions,
    }


def write(rows: Sequence[dict[str, object]], columns: Sequence[str], path: Path) -> None:
    """Write the rows of a part with what they were measured on, and say where."""
    about = {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version, **provenance("cpu")}
    write_rows([row | about for row in rows], columns, path)
    print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says and print the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.sevir_data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--public", type=Path, help="checkout of Earthformer's repository")
    parser.add_argument("--events", type=int, default=12)
    parser.add_argument("--size", type=int, default=384, help="pixels along a side")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=["reading", "preparing", "opening"])
    parser.add_argument("--csv", type=Path, metavar="FOLDER", default=RESULTS, help="where each part writes its CSV")
    options = parser.parse_args(arguments)
    parts = options.parts or ["reading", "preparing", "opening"]
    torch.set_num_threads(1)
    about = machine("cpu")
    print(
        f"{about['device']}, {os.cpu_count()} cores; Python {about['python']}, torch {about['torch']}, h5py "
        f"{h5py.__version__}, HDF5 {h5py.version.hdf5_version}, commit {about['commit']}; {options.events} synthetic "
        f"events of {SEVIR_FRAMES} x {options.size} x {options.size}, medians of {options.repetitions} repetitions"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"reading", "preparing"} & set(parts):
            stored = make_events(folder / "made", events=options.events, size=options.size, frames=SEVIR_FRAMES)
            roots = write_layouts(folder, stored)
            if "reading" in parts:
                reading(options, roots)
            if "preparing" in parts:
                preparing(options, roots, folder)
        if "opening" in parts:
            opening(options, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
