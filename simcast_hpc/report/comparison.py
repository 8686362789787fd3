"""Score files of several runs and evaluations, brought together where their numbers may stand side by side.

Two files are comparable if they hold the same windows of the same data, the same thresholds in the means and at least
one protocol of equal name and hash. What is not comparable keeps a section of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from simcast_hpc.config import from_mapping

from .example_window import SUFFIX, ExampleFrames, ResultsError, read_example
from .pipeline_results import RunResults, ScoredTestSet, ScoreFile, read_json, read_results, reject_a_stage

T = TypeVar("T")
# What stands in the folder of a run or of an export and is no score file.
_NO_SCORES = ("DONE.json", "durations.json", "export.json", "versions.json")


@dataclass(frozen=True)
class Source:
    """One run or evaluation: what it is called on the page, its test sets, and all else of a pipeline's run."""

    label: str
    path: Path
    test_sets: tuple[ScoredTestSet, ...]
    run: RunResults | None = None


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Read pipeline runs, folders that ``simcast evaluate`` wrote, and single score files.

    Raises:
        ResultsError: a path holds no scores, or damaged ones.
        ConfigError: a configuration or a score file has a wrong or missing key.
    """
    return [_read(path, label) for path, label in zip(paths, labels_of(paths), strict=True)]


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Return for each path the shortest of its ends that no other path has, without what all runs share."""
    whole = [_telling_parts(path) for path in paths]
    labels = []
    for own in whole:
        length = next((n for n in range(1, len(own)) if sum(one[-n:] == own[-n:] for one in whole) == 1), len(own))
        labels.append("/".join(own[-length:]))
    return labels


def joined(sources: Sequence[Source]) -> list[ScoredTestSet]:
    """Return the test sets of all sources, those that are comparable as one.

    Entries of equal name and scores, such as a baseline in every file, stand once; those of equal name and other scores
    bear the label of their source.
    """
    groups: list[list[tuple[str, ScoredTestSet]]] = []
    for source in sources:
        for test_set in source.test_sets:
            group = next((held for held in groups if _comparable([one for _, one in held], test_set)), None)
            if group is None:
                groups.append([(source.label, test_set)])
            else:
                group.append((source.label, test_set))
    return [_joined(group, place) for place, group in enumerate(groups, start=1)]


def _telling_parts(path: Path) -> tuple[str, ...]:
    parts = list(path.resolve().parts[1:])
    if path.suffix == ".json":
        parts[-1] = path.stem
    # `scores` alone is what its reader knows it by; as a part of a named folder it tells nothing.
    while len(path.parts) > 1 and len(parts) > 1 and parts[-1] == "scores":
        parts.pop()
    return tuple(parts)


def _read(path: Path, label: str) -> Source:
    if not path.exists():
        raise ResultsError(f"{path}: no such folder or file")
    if path.is_dir() and (path / "config.yaml").is_file() and (path / "scores").is_dir():
        run = read_results(path)
        return Source(label, path, run.test_sets, run)
    folders = [path, path / "scores"] if path.is_dir() else []
    held = [file for folder in folders for file in sorted(folder.glob("*.json")) if file.name not in _NO_SCORES]
    files = [path] if path.is_file() else held
    if not files:
        reject_a_stage(path)
        raise ResultsError(
            f"{path} holds no scores; give the run folder of `simcast pipeline`, the folder that `simcast evaluate "
            "--out` wrote, or a score file of it"
        )
    return Source(label, path, tuple(_test_set(file) for file in files))


def _test_set(file: Path) -> ScoredTestSet:
    scores = from_mapping(ScoreFile, read_json(file), where=str(file))
    return ScoredTestSet(file.stem, scores, read_example(file.with_name(file.stem + SUFFIX)))


def _comparable(held: Sequence[ScoredTestSet], other: ScoredTestSet) -> bool:
    return _windows(held[0].scores) == _windows(other.scores) and bool(
        _shared_protocols([*(one.scores for one in held), other.scores])
    )


def _windows(scores: ScoreFile) -> tuple[object, ...]:
    frames = (scores.frames_in, scores.frames_out, scores.step_minutes, scores.windows)
    return (scores.fingerprint, scores.dataset, scores.split, frames, scores.supported_thresholds, scores.unit)


def _shared_protocols(files: Sequence[ScoreFile]) -> list[str]:
    """Return the protocols of the first file that all others hold with the same hash."""
    first, *others = files
    return [
        name
        for name, used in first.protocols.items()
        if all(name in one.protocols and one.protocols[name].hash == used.hash for one in others)
    ]


def _joined(group: Sequence[tuple[str, ScoredTestSet]], place: int) -> ScoredTestSet:
    first = group[0][1]
    if len(group) == 1:
        return replace(first, stem=f"{place}-{first.stem}")
    protocols = _shared_protocols([test_set.scores for _, test_set in group])
    names = _names(group, protocols)
    merged: dict[str, Any] = {
        "protocols": {name: first.scores.protocols[name] for name in protocols},
        "entries": tuple(
            entry.model_copy(update={"name": renamed[entry.name]})
            for (_, test_set), renamed in zip(group, names, strict=True)
            for entry in test_set.scores.entries
            if entry.name in renamed
        ),
        "differences": tuple(
            one.model_copy(update={"first": renamed[one.first], "second": renamed[one.second]})
            for (_, test_set), renamed in zip(group, names, strict=True)
            for one in test_set.scores.differences
            if one.first in renamed and one.second in renamed
        ),
    }
    for key in ("scores", "intervals", "diagrams", "mean_csi_by_lead"):
        merged[key] = _renamed([getattr(test_set.scores, key) for _, test_set in group], names)
    scores = first.scores.model_copy(update=merged)
    return ScoredTestSet(f"{place}-{first.stem}", scores, _example([test_set.example for _, test_set in group], names))


def _names(group: Sequence[tuple[str, ScoredTestSet]], protocols: Sequence[str]) -> list[dict[str, str]]:
    """Return what each source's entries are called; an entry that stands already is left out."""
    held: dict[str, list[object]] = {}
    kept: list[list[str]] = []
    for _, test_set in group:
        kept.append([])
        for name in test_set.scores.names:
            found = [test_set.scores.scores[name][protocol] for protocol in protocols]
            if found not in held.setdefault(name, []):
                held[name].append(found)
                kept[-1].append(name)
    return [
        {name: f"{label}/{name}" if len(held[name]) > 1 else name for name in names}
        for (label, _), names in zip(group, kept, strict=True)
    ]


def _renamed(parts: Sequence[Mapping[str, T]], names: Sequence[Mapping[str, str]]) -> dict[str, T]:
    return {
        renamed[name]: value
        for part, renamed in zip(parts, names, strict=True)
        for name, value in part.items()
        if name in renamed
    }


def _example(examples: Sequence[ExampleFrames | None], names: Sequence[Mapping[str, str]]) -> ExampleFrames | None:
    """Return one window with the forecasts of all files that show the same one."""
    first = next((example for example in examples if example is not None), None)
    if first is None:
        return None
    alike = [
        (example, renamed)
        for example, renamed in zip(examples, names, strict=True)
        if example is not None and example.event == first.event and np.array_equal(example.observed, first.observed)
    ]
    by_file = [renamed for _, renamed in alike]
    return replace(
        first,
        forecasts=_renamed([example.forecasts for example, _ in alike], by_file),
        ensembles=_renamed([example.ensembles for example, _ in alike], by_file),
    )
