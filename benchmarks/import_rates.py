"""Frames per second and peak memory of ``simcast data import`` by format, on archives of small frames.

    python -m benchmarks.import_rates --frames 10000

Each format is imported once by one process, which reads every file twice (statistics, then pixels) in its reader
process. Memory is the largest sum of the resident sizes of both processes, sampled every 50 ms. The import must contain
every frame, and its peak memory must stay below ``--limit-mb``; otherwise the status is 1.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.measurements import RESULTS, provenance, report
from benchmarks.radar_archives import FORMATS, write_files
from simcast_hpc.data.shards.shard_format import read_manifest

_SAMPLE_SECONDS = 0.05


def measure(name: str, folder: Path, frames: int) -> dict[str, object]:
    """Return the row of a format; ``folder`` must be empty."""
    source = write_files(name, folder / "source", frames)
    target = folder / "target"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "simcast_hpc", "data", "import", str(source), str(target), "--quiet"]
    process = subprocess.Popen(
        [*command, "--name", name, "--event", "2h", "--gap-days", "0"],
        stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(_SAMPLE_SECONDS)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"the import of {name} failed with status {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    inventory = json.loads((target / "import.json").read_text())["inventory"]
    height, width = read_manifest(target).grid
    return {
        "format": "netCDF" if name == "netcdf" else name, "frames": inventory["used"], "pixels": f"{height} x {width}",
        "frames_per_s": round(frames / seconds, 1), "wall_s": round(seconds, 1), "cpu_s": round(cpu, 1),
        "cpu_ms_per_frame": round(1000 * cpu / frames, 2), "peak_mb": round(peak / 1e6),
    }  # fmt: skip


def _resident(pid: int) -> int:
    """Return the sum of the resident sizes of a process and its children in bytes."""
    try:
        parent = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (parent, *parent.children(recursive=True)))
    except psutil.Error:
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the formats, print and write the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.import_rates", description=str(__doc__).split("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000, help="per format (default: %(default)s)")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=FORMATS, metavar="NAME", help=", ".join(FORMATS)
    )
    parser.add_argument("--limit-mb", type=float, default=1000.0, help="valid peak memory (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", default=RESULTS / "cpu", help="folder of the CSV file")
    options = parser.parse_args(arguments)
    rows, problems = [], []
    for name in options.formats:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows.append(row := measure(name, Path(folder), options.frames) | provenance("cpu", threads=1))
            print(", ".join(f"{key} {row[key]}" for key in ("format", "frames", "frames_per_s", "peak_mb")), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            Path(folder).mkdir()
        if row["frames"] != options.frames:
            problems.append(f"{name}: {row['frames']} of {options.frames} frames were imported")
        if float(str(row["peak_mb"])) > options.limit_mb:
            problems.append(f"{name}: peak memory {row['peak_mb']} MB, at most {options.limit_mb:g} MB is valid")
    options.csv.mkdir(parents=True, exist_ok=True)
    report(rows, options.csv / "import_rates.csv")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
