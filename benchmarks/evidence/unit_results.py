"""Results of a unit, its sums and a record of the run, and the packed results of a seed, which are committed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence.block_sums import OF_OBSERVATION, Sums
from simcast_hpc.config import ConfigError
from simcast_hpc.storage.atomic_files import atomic_file, write_json

from .arms import BASELINES, arms_of
from .study import Study

RECORD, SUMS = "unit.json", "sums.npz"
RESULTS = Path(__file__).with_name("results")
"""Folder of the committed results."""


class Result(NamedTuple):
    """A finished unit; ``record`` contains loss curves, seconds, machine and commit."""

    sums: Sums
    record: dict[str, Any]


def save_unit(folder: Path, sums: Sums, record: dict[str, Any]) -> None:
    """Write a unit's results; ``unit.json`` is written last and marks the unit as finished."""
    _save_arrays(folder / SUMS, sums._asdict())
    write_json(folder / RECORD, record)


def is_finished(folder: Path) -> bool:
    """Return whether a unit is finished."""
    return (folder / RECORD).is_file()


def load_unit(folder: Path) -> Result:
    """Read a finished unit."""
    with np.load(folder / SUMS, allow_pickle=False) as arrays:
        sums = Sums(**{name: arrays[name] for name in Sums._fields})
    return Result(sums, json.loads((folder / RECORD).read_text(encoding="utf-8")))


def packed_path(folder: Path, seed: int | None) -> Path:
    """Return the file of a seed, or of the baselines, which have no seed."""
    return folder / ("baselines.npz" if seed is None else f"seed{seed}.npz")


def pack(path: Path, study: Study, results: dict[str, Result]) -> None:
    """Write the results of one seed as one file.

    Sums are stacked over the arms and stored as differences between lead times, which compress to a third; sums of the
    observations are stored once.

    Raises:
        ValueError: two arms were scored on different observations.
    """
    arms = list(results)
    arrays: dict[str, np.ndarray] = {}
    for name in Sums._fields:
        stacked = np.stack([getattr(results[arm].sums, name) for arm in arms])
        if name in OF_OBSERVATION:
            if (stacked != stacked[:1]).any():
                raise ValueError(f"the arms of {path.name} were scored on different observations ({name} differs)")
            stacked = stacked[0]
        arrays[name] = _small(np.diff(stacked, axis=-1, prepend=0))
    about = {"study": study.model_dump(mode="json"), "arms": {arm: results[arm].record for arm in arms}}
    arrays["about"] = np.array(json.dumps(about, separators=(",", ":")))
    path.parent.mkdir(parents=True, exist_ok=True)
    _save_arrays(path, arrays)


def unpack(path: Path) -> tuple[Study, dict[str, Result]]:
    """Read the results of one seed.

    Raises:
        ConfigError: the file is not a packed result.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            sums = {name: arrays[name].astype(np.int64).cumsum(axis=-1) for name in Sums._fields}
        study = Study.model_validate_json(json.dumps(about["study"]))
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a packed result of benchmarks.evidence.collect: {error}") from error
    results = {}
    for place, (arm, record) in enumerate(about["arms"].items()):
        own = {name: array if name in OF_OBSERVATION else array[place] for name, array in sums.items()}
        results[arm] = Result(Sums(**own), record)
    return study, results


def same_study(one: Study, other: Study) -> bool:
    """Return whether two studies are equal except for the number of seeds."""
    return one.model_copy(update={"seeds": other.seeds}) == other


def packed_units(study: Study, folder: Path) -> set[str]:
    """Return the names of the units of this study that are packed in a folder."""
    names: set[str] = set()
    for seed in (None, *study.seeds):
        path = packed_path(folder, seed)
        if path.is_file():
            packed, results = unpack(path)
            if same_study(packed, study):
                names |= {arm if seed is None else f"{arm}-seed{seed}" for arm in results}
    return names


class Evidence(NamedTuple):
    """All results of a study. ``by_arm`` maps an arm to its results by seed; a baseline has the one seed None."""

    study: Study
    by_arm: dict[str, dict[int | None, Result]]

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds with which all of ``arms`` were trained; a baseline has every seed."""
        trained = [set(self.by_arm.get(arm, {})) for arm in arms if arm not in BASELINES]
        return sorted(seed for seed in set.intersection(*trained) if seed is not None) if trained else []

    def result(self, arm: str, seed: int) -> Result:
        """Return the result of an arm with a seed; that of a baseline is the same for all seeds."""
        return self.by_arm[arm][None if arm in BASELINES else seed]


def load_evidence(folder: Path) -> Evidence:
    """Read all packed results in a folder.

    Raises:
        ConfigError: there are none, or they are of several studies.
    """
    paths = sorted(folder.glob("seed*.npz")) + [path for path in [packed_path(folder, None)] if path.is_file()]
    if not paths:
        raise ConfigError(
            f"{folder} contains no results; run benchmarks.evidence.run_study, then benchmarks.evidence.collect"
        )
    studies: list[Study] = []
    by_arm: dict[str, dict[int | None, Result]] = {}
    for path in paths:
        study, results = unpack(path)
        studies.append(study)
        seed = None if path == packed_path(folder, None) else int(path.stem.removeprefix("seed"))
        for arm, result in results.items():
            by_arm.setdefault(arm, {})[seed] = result
    if any(study != studies[0] for study in studies):
        raise ConfigError(f"the results in {folder} belong to several studies; use one folder per study")
    order = [*BASELINES, *(arm.name for arm in arms_of(studies[0]))]
    return Evidence(studies[0], {arm: by_arm[arm] for arm in order if arm in by_arm})


def _small(array: np.ndarray) -> np.ndarray:
    for dtype in (np.int8, np.int16, np.int32):
        if np.iinfo(dtype).min <= array.min() and array.max() <= np.iinfo(dtype).max:
            return array.astype(dtype)
    return array


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
