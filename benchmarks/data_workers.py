"""Time the way from an archive to micro batches: windows a second by number of workers and batch size.

    PYTHONPATH=kernels python -m benchmarks.data_workers [--root DIR --dataset NAME] [--workers 0 1] [--batch 4] [--csv]

Without ``--root`` a synthetic archive is made in a temporary folder and removed again. A repetition reads so many
whole batches; p20, p50 and p80 are quantiles over the repetitions. The first batches, in which workers start and files
are opened, are not counted, and the files then stand in the page cache: this is the speed of decoding and collating,
not of a disk.
"""

import argparse
import csv
import dataclasses
import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import machine
from simcast_hpc.config import DataConfig
from simcast_hpc.data.dataset_spec import built_in_specs
from simcast_hpc.data.loader import micro_batches
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.data.window_source import WindowSource

RESULTS = Path(os.environ.get("RESULTS") or Path(__file__).parent / "results")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the CSV: ``op provider mode case shape dtype p20 p50 p80 unit`` as in the benchmarks of kernels."""

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
    repetitions: int
    windows_per_repetition: int
    mib_per_s: float
    device: str
    cores: int
    torch: str
    h5py: str
    numpy: str
    commit: str
    python: str


def rates(
    source: WindowSource, *, workers: int, batch_size: int, repetitions: int, windows_per_repetition: int
) -> list[float]:
    """Return windows a second of each repetition, in order; a repetition is at least one whole batch."""
    batches = micro_batches(
        source,
        seed=0,
        first_step=0,
        global_size=batch_size,
        micro_size=batch_size,
        rank=0,
        world_size=1,
        workers=workers,
    )
    batches_each = max(1, windows_per_repetition // batch_size)
    for _ in range(max(batches_each, 2 * workers + 1)):  # past what the workers read ahead
        next(batches)
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        for _ in range(batches_each):
            next(batches)
        found.append(batches_each * batch_size / (time.perf_counter() - began))
    return found


def measure(source: WindowSource, case: str, options: argparse.Namespace) -> list[Row]:
    """Return a row for each number of workers and batch size."""
    about = machine("cpu")
    height, width = source.grid
    rows = []
    for workers in options.workers:
        for batch_size in options.batch:
            found = rates(
                source,
                workers=workers,
                batch_size=batch_size,
                repetitions=options.repetitions,
                windows_per_repetition=options.windows,
            )
            p20, p50, p80 = (float(value) for value in np.quantile(found, [0.2, 0.5, 0.8]))
            rows.append(
                Row(
                    op="data_workers",
                    provider="micro_batches",
                    mode=f"workers={workers}",
                    case=case,
                    shape=f"{batch_size}x{source.frames}x{height}x{width}",
                    dtype="uint8",
                    p20=round(p20, 2),
                    p50=round(p50, 2),
                    p80=round(p80, 2),
                    unit="windows/s",
                    repetitions=options.repetitions,
                    windows_per_repetition=max(1, options.windows // batch_size) * batch_size,
                    mib_per_s=round(p50 * source.frames * height * width / 2**20, 2),
                    device=about["device"],
                    cores=os.cpu_count() or 0,
                    torch=about["torch"],
                    h5py=importlib.metadata.version("h5py"),
                    numpy=np.__version__,
                    commit=about["commit"],
                    python=about["python"],
                )
            )
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table, below what holds for all of them."""
    first = rows[0]
    print(
        f"{first.case}: {first.device}, {first.cores} cores; Python {first.python}, torch {first.torch}, "
        f"h5py {first.h5py}, numpy {first.numpy}, commit {first.commit}; {first.repetitions} repetitions each"
    )
    lines = [("mode", "batch x T x H x W", "windows each", "p20", "p50", "p80", "unit", "MiB/s")]
    for row in rows:
        p20, p50, p80, rate = (f"{value:.1f}" for value in (row.p20, row.p50, row.p80, row.mib_per_s))
        lines.append((row.mode, row.shape, str(row.windows_per_repetition), p20, p50, p80, row.unit, rate))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows([dataclasses.asdict(row) for row in rows])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.data_workers", description=(__doc__ or "").splitlines()[0])
    archive = parser.add_argument_group("a real archive")
    archive.add_argument("--root", type=Path, help="folder of its CATALOG.csv; without it a synthetic one is made")
    archive.add_argument(
        "--dataset", default="synthetic", help=f"{', '.join(built_in_specs())}, or the file of another"
    )
    archive.add_argument("--split", choices=["train", "val", "test", "all"], default="train")
    archive.add_argument("--block-mean", type=_positive, default=1, help="average n x n pixels")
    archive.add_argument("--recode-as", help="write in the code of this data set")
    made = parser.add_argument_group("a synthetic archive")
    made.add_argument("--events", type=_positive, default=48)
    made.add_argument("--size", type=_positive, default=48, help="pixels along a side; SEVIR has 384")
    made.add_argument("--frames-per-event", type=_positive, default=25, help="SEVIR has 49")
    parser.add_argument("--frames", type=_positive, default=12, help="frames in a window; 25 in SEVIR's protocol")
    parser.add_argument("--window-stride", type=_positive, default=6)
    parser.add_argument("--frame-stride", type=_positive, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=_positive, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repetitions", type=_positive, default=15)
    parser.add_argument("--windows", type=_positive, default=64, help="windows in a repetition, in whole batches")
    parser.add_argument(
        "--csv",
        type=Path,
        nargs="?",
        const=RESULTS / "data_workers.csv",
        help=f"write the rows too, by default to {RESULTS}",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says and print the table."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = options.root
        if root is None:
            root = Path(folder, "archive")
            events = {options.split if options.split != "all" else "train": options.events}
            write_archive(root, seed=0, events=events, size=options.size, frames_per_event=options.frames_per_event)
        config = DataConfig(
            dataset=options.dataset,
            root=root,
            frame_stride=options.frame_stride,
            window_stride=options.window_stride,
            block_mean=options.block_mean,
            recode_as=options.recode_as,
            max_percent_missing=None,
        )
        source = open_windows(config, split=options.split, frames=options.frames)
        rows = measure(source, f"{options.dataset} {options.split}, {len(source)} windows", options)
    show(rows)
    if options.csv is not None:
        write(options.csv, rows)
        print(options.csv)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
