"""Time reading and collating micro-batches: windows per second by number of workers and batch size.

    PYTHONPATH=kernels python -m benchmarks.data_workers [--root DIR --dataset NAME] [--workers 0 1] [--batch 4]

Without ``--root`` a temporary synthetic archive is read. A repetition reads whole batches; p20, p50 and p80 are
quantiles over the repetitions. Files are in the page cache: this is the speed of decoding and collating, not of a disk.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from benchmarks.measurements import RESULTS, elapsed, now, provenance, report
from simcast_hpc.config import DataConfig
from simcast_hpc.data.dataset_spec import built_in_specs
from simcast_hpc.data.loader import micro_batches
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.data.window_source import WindowSource


def rates(
    source: WindowSource, *, workers: int, batch_size: int, repetitions: int, windows_per_repetition: int
) -> list[float]:
    """Return windows per second of each repetition; a repetition reads at least one whole batch."""
    batches = micro_batches(
        source, seed=0, first_step=0, global_size=batch_size, micro_size=batch_size, rank=0, world_size=1,
        workers=workers,
    )  # fmt: skip
    count = max(1, windows_per_repetition // batch_size)
    for _ in range(max(count, 2 * workers + 1)):  # more than the workers prefetch
        next(batches)
    result = []
    for _ in range(repetitions):
        start = now()
        for _ in range(count):
            next(batches)
        result.append(count * batch_size / elapsed(start).wall)
    return result


def measure(source: WindowSource, case: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Return a row per number of workers and batch size."""
    height, width = source.grid
    rows = []
    for workers in options.workers:
        for batch_size in options.batch:
            windows = max(1, options.windows // batch_size) * batch_size
            values = rates(
                source,
                workers=workers,
                batch_size=batch_size,
                repetitions=options.repetitions,
                windows_per_repetition=windows,
            )
            p20, p50, p80 = (float(value) for value in np.quantile(values, [0.2, 0.5, 0.8]))
            rows.append(
                {
                    "case": case,
                    "workers": workers,
                    "shape": f"{batch_size}x{source.frames}x{height}x{width}",
                    "windows_per_repetition": windows,
                    "repetitions": options.repetitions,
                    "p20_windows_per_s": round(p20, 2),
                    "p50_windows_per_s": round(p50, 2),
                    "p80_windows_per_s": round(p80, 2),
                    "mib_per_s": round(p50 * source.frames * height * width / 2**20, 2),
                    "cores": os.cpu_count() or 0,
                    "h5py": h5py.__version__,
                    "numpy": np.__version__,
                    **provenance("cpu"),
                }
            )
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--root", type=Path, help="archive to read; default: a temporary synthetic archive")
    parser.add_argument("--dataset", default="synthetic", help=f"{', '.join(built_in_specs())}, or a file")
    parser.add_argument("--events", type=_positive, default=48, help="events of a synthetic archive")
    parser.add_argument("--size", type=_positive, default=48, help="rows and columns of a synthetic archive")
    parser.add_argument("--frames-per-event", type=_positive, default=25, help="frames of a synthetic archive")
    parser.add_argument("--frames", type=_positive, default=12, help="frames per window")
    parser.add_argument("--window-stride", type=_positive, default=6)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=_positive, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repetitions", type=_positive, default=15)
    parser.add_argument("--windows", type=_positive, default=64, help="windows per repetition, in whole batches")
    parser.add_argument("--csv", type=Path, default=RESULTS / "data_workers.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print the rows; return 0."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            options.root, shape = Path(folder, "archive"), (options.size, options.frames_per_event)
            events = {"train": options.events}
            write_archive(options.root, seed=0, events=events, size=shape[0], frames_per_event=shape[1])
        config = DataConfig(
            dataset=options.dataset, root=options.root, window_stride=options.window_stride, max_percent_missing=None
        )
        source = open_windows(config, split="train", frames=options.frames)
        rows = measure(source, f"{options.dataset} train, {len(source)} windows", options)
    report(rows, options.csv)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
