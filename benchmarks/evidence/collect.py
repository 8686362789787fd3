"""Add finished units to the packed results, one file per seed.

python -m benchmarks.evidence.collect [--work DIR] [--results DIR]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.run_study import WORK, Workplace, units_of
from benchmarks.evidence.unit_results import (
    RESULTS,
    Result,
    is_finished,
    load_unit,
    pack,
    packed_path,
    same_study,
    unpack,
)
from simcast_hpc.config import ConfigError, SimcastError

from .arms import BASELINES, arms_of
from .study import STUDY, Study, read_study


def collect(study: Study, work: Path, results: Path, *, arms: Sequence[str] = ()) -> int:
    """Add the finished units under ``work`` to ``results`` and return their number; with ``arms`` only those.

    Packed results are kept: a teacher that was trained again for a new student does not replace its results.

    Raises:
        ConfigError: no unit is finished, or ``results`` belongs to another study.
    """
    place = Workplace(study, work)
    by_seed: dict[int | None, dict[str, Result]] = {}
    for unit in units_of(study, arms):
        if is_finished(place.folder(unit.name)):
            arm = unit.name if unit.arm is None else unit.arm.name
            by_seed.setdefault(unit.seed, {})[arm] = load_unit(place.folder(unit.name))
    if not by_seed:
        raise ConfigError(f"{work} contains no finished unit; run benchmarks.evidence.run_study first")
    order = [*BASELINES, *(arm.name for arm in arms_of(study))]
    for seed, units in by_seed.items():
        path = packed_path(results, seed)
        kept: dict[str, Result] = {}
        if path.is_file():
            packed, kept = unpack(path)
            if not same_study(packed, study):
                raise ConfigError(f"{path} belongs to another study; choose another --results")
        together = {**units, **kept}
        pack(path, study, {name: together[name] for name in order if name in together})
    return sum(map(len, by_seed.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack the finished units; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.collect", description="Pack finished units.")
    parser.add_argument("--study", type=Path, default=STUDY, help="the study's YAML file")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the workers")
    parser.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms and their teachers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the packed results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of the study")
    options = parser.parse_args(arguments)
    try:
        number = collect(
            read_study(options.study, tuple(options.set)), options.work, options.results, arms=options.arms
        )
    except SimcastError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{number} units packed in {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
