"""Train and score the units of the study that are missing: an arm with a seed each, about 20 seconds of one core.

    python -m benchmarks.evidence.run_study [--work DIR] [--arms ARM ...] [--stop-after MINUTES] [--set KEY=VALUE ...]

Start it as often and as many times at once as you like, on any machines that share ``--work``, say as a Slurm array:

    sbatch --array=1-20 --cpus-per-task=1 --time=01:00:00 --export=ALL,OMP_NUM_THREADS=1,PYTHONPATH=kernels \
        --wrap=".venv/bin/python -m benchmarks.evidence.run_study"

Each process takes the next unit that nobody has and whose teacher is done: all arms of the first seed, then of the
second, so that an early end leaves a balanced table. A unit is claimed by a lock that the kernel drops with the
process: what was killed is free at once and is trained again; what is finished is never trained again.
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
from benchmarks.evidence.unit_results import is_finished, save_unit
from simcast_hpc.baselines import Persistence
from simcast_hpc.config import ConfigError, SimcastError, from_mapping
from simcast_hpc.inference.trained_model import forecast_device, load_trained
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.storage.run_directory import versions

from .study import PERSISTENCE, STUDY, Arm, Study, arm_named, arms_of, read_study

WORK = Path("runs/evidence")
_WAIT_SECONDS = 2.0


class Unit(NamedTuple):
    """What one turn of a worker does; persistence has neither arm nor seed."""

    name: str
    arm: Arm | None
    seed: int | None
    needs: str | None


def units_of(study: Study, arms: Sequence[str] = ()) -> list[Unit]:
    """Return all units, the first seed's first; with ``arms`` those of the named arms and their teachers alone.

    Raises:
        ConfigError: the study has no such arm.
    """
    wanted = {arm_named(study, name) for name in arms} or set(arms_of(study))
    wanted |= {arm_named(study, arm.teacher) for arm in wanted if arm.teacher is not None}
    units = [Unit(PERSISTENCE, None, None, None)]
    for seed in study.seeds:
        for arm in filter(wanted.__contains__, arms_of(study)):
            needs = None if arm.teacher is None else unit_name(arm.teacher, seed)
            units.append(Unit(unit_name(arm.name, seed), arm, seed, needs))
    return units


class Workplace:
    """The folder that all workers of a study share: archive, one folder a unit, locks."""

    def __init__(self, study: Study, root: Path, *, arms: Sequence[str] = ()):
        self.study, self.root, self.units = study, root, units_of(study, arms)
        self.archive = Archive(study, root / "archive")

    def folder(self, unit: str) -> Path:
        """Return where a unit's weights and results stand."""
        return self.root / "units" / unit

    def open(self) -> None:
        """Make what is missing; one worker at a time.

        Raises:
            ConfigError: the folder belongs to another study.
        """
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with self._lock("archive", wait=True):
            path = self.root / "study.json"
            if path.is_file():
                self._require_same(path)
            write_text(path, self.study.model_dump_json(indent=1))
            self.archive.make()

    def _require_same(self, path: Path) -> None:
        # More seeds are the same study, and a setting that has come since had its default.
        found = json.loads(path.read_text(encoding="utf-8")) | {"seeds": list(self.study.seeds)}
        known = from_mapping(Study, found, where=str(path)).model_dump(mode="json")
        wanted = self.study.model_dump(mode="json")
        differing = [key for key in wanted if known[key] != wanted[key]]
        if differing:
            raise ConfigError(
                f"{self.root} belongs to another study: {differing[0]} is {known[differing[0]]} there and "
                f"{wanted[differing[0]]} here; give another --work, or remove it"
            )

    def work(self, *, until: float, say: Any = print) -> int:
        """Do units until none is left, or no new one after ``until`` (``time.monotonic``); return how many."""
        done = 0
        while time.monotonic() < until:
            unfinished = [unit for unit in self.units if not is_finished(self.folder(unit.name))]
            if not unfinished:
                break
            for unit in unfinished:
                if unit.needs is not None and not is_finished(self.folder(unit.needs)):
                    continue
                with self._lock(unit.name) as mine:
                    if not mine or is_finished(self.folder(unit.name)):
                        continue
                    seconds = self._do(unit)
                    say(f"{unit.name}: {seconds:.1f} CPU s; {len(unfinished) - 1} units left", flush=True)
                    done += 1
                    break
            else:
                time.sleep(_WAIT_SECONDS)  # others have all that can be begun; a teacher's end frees its student
        return done

    def _do(self, unit: Unit) -> float:
        folder = self.folder(unit.name)
        started, cpu = time.monotonic(), _cpu_seconds()
        record: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
        if unit.arm is None or unit.seed is None:
            folder.mkdir(parents=True, exist_ok=True)
            sums = self._persistence()
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

    def _persistence(self) -> Sums:
        frames = self.study.sequence.frames_out
        return score_forecast(self.study, self.archive, lambda codes: Persistence().forecast(codes, frames))

    @contextmanager
    def _lock(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold a lock of this name, or give False where another process holds it."""
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
    """Work until nothing is left, or the time is over."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.run_study", description="Train and score what is missing."
    )
    parser.add_argument("--study", type=Path, default=STUDY, help="the study's YAML file")
    parser.add_argument("--work", type=Path, default=WORK, help="folder that all workers share")
    parser.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="these and their teachers alone")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="MINUTES", help="begin no unit later")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides of the study")
    options = parser.parse_args(arguments)
    until = time.monotonic() + 60 * options.stop_after
    try:
        study = read_study(options.study, tuple(options.set))
        place = Workplace(study, options.work, arms=options.arms)
        place.open()
        print(f"{place.work(until=until)} units done")
    except SimcastError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
