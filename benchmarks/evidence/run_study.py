"""Train and score the missing units of the study; a unit is an arm with a seed, about 20 seconds on one core.

    python -m benchmarks.evidence.run_study [--work DIR] [--results DIR] [--arms ARM ...] [--groups GROUP ...]
        [--stop-after MINUTES] [--set KEY=VALUE ...]

Any number of processes can run, on any machines that share ``--work``, for example as a Slurm array:

    sbatch --array=1-20 --cpus-per-task=1 --time=01:00:00 --export=ALL,OMP_NUM_THREADS=1,PYTHONPATH=kernels \
        --wrap=".venv/bin/python -m benchmarks.evidence.run_study"

Each process takes the next free unit whose teacher is finished: by group of arms, then by seed, so that an interrupted
study is balanced. A process holds a file lock of its unit, which the operating system releases when the process ends.
Each unit's result is written when it is finished. Interrupted units are trained again; finished units, and those whose
packed results are in ``--results``, are not, except teachers whose weights a missing student needs.
"""

import argparse
import fcntl
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.evidence.block_sums import Sums, score_forecast
from benchmarks.evidence.study_windows import Archive
from benchmarks.evidence.train_arm import train_unit, unit_name
from benchmarks.evidence.unit_results import RESULTS, is_finished, packed_units, save_unit
from simcast_hpc.baselines import load_baseline
from simcast_hpc.config import ConfigError, SimcastError, from_mapping
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.inference.trained_model import forecast_device, load_trained
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.storage.run_directory import versions

from .arms import BASELINES, GROUPS, Arm, arm_named, arms_of
from .study import STUDY, Study, read_study

WORK = Path("runs/evidence")
_WAIT_SECONDS = 2.0


class Unit(NamedTuple):
    """An arm with a seed; a baseline has neither."""

    name: str
    arm: Arm | None
    seed: int | None
    needs: str | None


def units_of(study: Study, arms: Sequence[str] = (), groups: Sequence[str] = GROUPS) -> list[Unit]:
    """Return the units of these groups in the order of the groups, and in a group those of the first seed first.

    Args:
        study: the study.
        arms: only these arms or baselines, of any group, and their teachers; all if empty.
        groups: only the arms of these groups and their teachers.

    Raises:
        ConfigError: the study has no such arm.
    """
    selected = {arm_named(study, name) for name in arms if name not in BASELINES}
    if not arms:
        selected = {arm for arm in arms_of(study) if arm.group in groups}
    selected |= {arm_named(study, arm.teacher) for arm in selected if arm.teacher is not None}
    units = [Unit(name, None, None, None) for name in BASELINES if not arms or name in arms]
    for group in dict.fromkeys([*groups, *GROUPS]):
        for seed in study.seeds:
            for arm in arms_of(study):
                if arm in selected and arm.group == group:
                    needs = None if arm.teacher is None else unit_name(arm.teacher, seed)
                    units.append(Unit(unit_name(arm.name, seed), arm, seed, needs))
    return units


def missing_units(units: Sequence[Unit], packed: set[str]) -> list[Unit]:
    """Return the units without packed results, and the teachers whose weights they need."""
    needed = {unit.name for unit in units if unit.name not in packed}
    needed |= {unit.needs for unit in units if unit.name in needed and unit.needs is not None}
    return [unit for unit in units if unit.name in needed]


class Workplace:
    """The shared folder of all workers of a study: archive, one folder per unit, locks."""

    def __init__(self, study: Study, root: Path, *, units: Sequence[Unit] = ()):
        self.study, self.root, self.units = study, root, units
        self.archive = Archive(study, root / "archive")

    def folder(self, unit: str) -> Path:
        """Return the folder of a unit's weights and results."""
        return self.root / "units" / unit

    def open(self) -> None:
        """Create the folder and the archive; one worker at a time.

        Raises:
            ConfigError: the folder belongs to another study.
        """
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with self._lock("archive", wait=True):
            path = self.root / "study.json"
            if path.is_file():
                self._require_same(path)
            write_text(path, self.study.model_dump_json(indent=1))
            self.archive.write()

    def _require_same(self, path: Path) -> None:
        # Seeds may be added; a setting that is missing in the file had its default.
        stored = json.loads(path.read_text(encoding="utf-8")) | {"seeds": list(self.study.seeds)}
        known = from_mapping(Study, stored, where=str(path)).model_dump(mode="json")
        current = self.study.model_dump(mode="json")
        differing = [key for key in current if known[key] != current[key]]
        if differing:
            raise ConfigError(
                f"{self.root} belongs to another study: {differing[0]} is {known[differing[0]]} there and "
                f"{current[differing[0]]} here; choose another --work"
            )

    def work(self, *, until: float, log: Any = print) -> int:
        """Process units until none is left or ``until`` (``time.monotonic``) is reached; return their number."""
        done = 0
        while time.monotonic() < until:
            unfinished = [unit for unit in self.units if not is_finished(self.folder(unit.name))]
            if not unfinished:
                break
            for unit in unfinished:
                if unit.needs is not None and not is_finished(self.folder(unit.needs)):
                    continue
                with self._lock(unit.name) as acquired:
                    if not acquired or is_finished(self.folder(unit.name)):
                        continue
                    seconds = self._process(unit)
                    log(f"{unit.name}: {seconds:.1f} CPU s; {len(unfinished) - 1} units left", flush=True)
                    done += 1
                    break
            else:
                time.sleep(
                    _WAIT_SECONDS
                )  # all available units are locked; a finished teacher makes its student available
        return done

    def _process(self, unit: Unit) -> float:
        folder = self.folder(unit.name)
        started, cpu = time.monotonic(), _cpu_seconds()
        record: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
        if unit.arm is None or unit.seed is None:
            folder.mkdir(parents=True, exist_ok=True)
            sums = self._baseline(unit.name)
        else:
            record |= train_unit(self.study, unit.arm, seed=unit.seed, folder=folder, archive=self.archive)
            record["train_cpu_seconds"] = round(_cpu_seconds() - cpu, 2)
            sums = self._score(folder)
        record |= {
            "cpu_seconds": round(_cpu_seconds() - cpu, 2),
            "wall_seconds": round(time.monotonic() - started, 2),
            "threads": torch.get_num_threads(),
            "processor": _processor(),
            **versions(),
        }
        save_unit(folder, sums, record)
        return record["cpu_seconds"]

    def _score(self, folder: Path) -> Sums:
        model = load_trained(folder, device=forecast_device())
        frames = self.study.sequence.frames_out
        return score_forecast(self.study, self.archive, lambda codes: model.forecast(codes, frames_out=frames))

    def _baseline(self, name: str) -> Sums:
        frames, baseline = self.study.sequence.frames_out, load_baseline(name, read_spec("synthetic").encoding)
        return score_forecast(self.study, self.archive, lambda codes: baseline.forecast(codes, frames))

    @contextmanager
    def _lock(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Acquire the lock of this name and yield True, or yield False if another process holds it."""
        with (self.root / "locks" / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main(arguments: Sequence[str] | None = None) -> int:
    """Process units until none is left or the time is over; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.run_study", description="Train and score missing units."
    )
    parser.add_argument("--study", type=Path, default=STUDY, help="the study's YAML file")
    parser.add_argument("--work", type=Path, default=WORK, help="shared folder of all workers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of packed results, not trained again")
    parser.add_argument(
        "--arms", nargs="+", default=[], metavar="ARM", help="only these arms or baselines, and teachers"
    )
    parser.add_argument(
        "--groups", nargs="+", default=GROUPS, choices=GROUPS, metavar="GROUP",
        help=f"only these groups of arms, in this order ({', '.join(GROUPS)})",
    )  # fmt: skip
    parser.add_argument(
        "--stop-after", type=float, default=float("inf"), metavar="MINUTES", help="start no unit after this time"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of the study")
    options = parser.parse_args(arguments)
    until = time.monotonic() + 60 * options.stop_after
    try:
        study = read_study(options.study, tuple(options.set))
        units = units_of(study, options.arms, options.groups)
        place = Workplace(study, options.work, units=missing_units(units, packed_units(study, options.results)))
        place.open()
        print(f"{place.work(until=until)} units done")
    except SimcastError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
