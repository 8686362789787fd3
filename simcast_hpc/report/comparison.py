"""Join score files of several runs and evaluations where their numbers are comparable.

Two files are comparable if they have the same windows of the same data, the same thresholds in means and at least one
protocol of equal name and hash. Files that are not comparable get separate sections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from simcast_hpc.config import from_mapping

from .example_window import SUFFIX, ExampleFrames, ResultsError, read_example
from .pipeline_results import RunResults, ScoredTestSet, ScoreFile, read_json, read_results, reject_stage_run

T = TypeVar("T")
# JSON files in run and export directories that are not score files
_NO_SCORES = ("DONE.json", "durations.json", "export.json", "versions.json")


@dataclass(frozen=True)
class Source:
    """One run or evaluation: its label in the report, its test sets, and the results of a pipeline run."""

    label: str
    path: Path
    test_sets: tuple[ScoredTestSet, ...]
    run: RunResults | None = None


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Read pipeline runs, output folders of ``simcast evaluate``, and single score files.

    Raises:
        ResultsError: a path contains no scores, or damaged ones.
        ConfigError: a configuration or a score file has a wrong or missing key.
    """
    return [_read(path, label) for path, label in zip(paths, labels_of(paths), strict=True)]


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Return for each path its shortest unique suffix, without a final ``scores`` folder."""
    all_parts = [_label_parts(path) for path in paths]
    labels = []
    for parts in all_parts:
        unique = (n for n in range(1, len(parts)) if sum(other[-n:] == parts[-n:] for other in all_parts) == 1)
        labels.append("/".join(parts[-next(unique, len(parts)) :]))
    return labels


def join_test_sets(sources: Sequence[Source]) -> list[ScoredTestSet]:
    """Return the test sets of all sources, with comparable ones joined.

    Entries of equal name and scores, such as a baseline in every file, are joined; entries of equal name with other
    scores get the label of their source.
    """
    groups: list[list[tuple[str, ScoredTestSet]]] = []
    for source in sources:
        for test_set in source.test_sets:
            group = next((some for some in groups if _comparable([one for _, one in some], test_set)), None)
            if group is None:
                groups.append([(source.label, test_set)])
            else:
                group.append((source.label, test_set))
    return [_join(group, number) for number, group in enumerate(groups, start=1)]


def _label_parts(path: Path) -> tuple[str, ...]:
    parts = list(path.resolve().parts[1:])
    if path.suffix == ".json":
        parts[-1] = path.stem
    # A path given as `scores` keeps that name; as the end of a longer path it adds nothing.
    while len(path.parts) > 1 and len(parts) > 1 and parts[-1] == "scores":
        parts.pop()
    return tuple(parts)


def _read(path: Path, label: str) -> Source:
    if not path.exists():
        raise ResultsError(f"{path} does not exist")
    if path.is_dir() and (path / "config.yaml").is_file() and (path / "scores").is_dir():
        run = read_results(path)
        return Source(label, path, run.test_sets, run)
    folders = [path, path / "scores"] if path.is_dir() else []
    in_folders = [file for folder in folders for file in sorted(folder.glob("*.json")) if file.name not in _NO_SCORES]
    files = [path] if path.is_file() else in_folders
    if not files:
        reject_stage_run(path)
        raise ResultsError(
            f"{path} contains no scores; give the run directory of `simcast pipeline`, the output folder of "
            "`simcast evaluate --out`, or a score file"
        )
    return Source(label, path, tuple(_test_set(file) for file in files))


def _test_set(file: Path) -> ScoredTestSet:
    scores = from_mapping(ScoreFile, read_json(file), where=str(file))
    return ScoredTestSet(file.stem, scores, read_example(file.with_name(file.stem + SUFFIX)))


def _comparable(group: Sequence[ScoredTestSet], other: ScoredTestSet) -> bool:
    return _windows(group[0].scores) == _windows(other.scores) and bool(
        _shared_protocols([*(one.scores for one in group), other.scores])
    )


def _windows(scores: ScoreFile) -> tuple[object, ...]:
    frames = (scores.frames_in, scores.frames_out, scores.step_minutes, scores.windows)
    return (scores.fingerprint, scores.dataset, scores.split, frames, scores.supported_thresholds, scores.unit)


def _shared_protocols(files: Sequence[ScoreFile]) -> list[str]:
    """Return the protocols of the first file that all others have with the same hash."""
    first, *others = files
    return [
        name
        for name, used in first.protocols.items()
        if all(name in one.protocols and one.protocols[name].hash == used.hash for one in others)
    ]


def _join(group: Sequence[tuple[str, ScoredTestSet]], number: int) -> ScoredTestSet:
    first = group[0][1]
    if len(group) == 1:
        return replace(first, stem=f"{number}-{first.stem}")
    protocols = _shared_protocols([test_set.scores for _, test_set in group])
    names = _entry_names(group, protocols)
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
    return ScoredTestSet(f"{number}-{first.stem}", scores, _example([test_set.example for _, test_set in group], names))


def _entry_names(group: Sequence[tuple[str, ScoredTestSet]], protocols: Sequence[str]) -> list[dict[str, str]]:
    """Return for each source the new names of its entries by name, without entries that an earlier source has."""
    distinct: dict[str, list[object]] = {}
    kept: list[list[str]] = []
    for _, test_set in group:
        kept.append([])
        for name in test_set.scores.names:
            scores = [test_set.scores.scores[name][protocol] for protocol in protocols]
            if scores not in distinct.setdefault(name, []):
                distinct[name].append(scores)
                kept[-1].append(name)
    return [
        {name: f"{label}/{name}" if len(distinct[name]) > 1 else name for name in names}
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
    """Return the first example window with the forecasts of all files that have the same window."""
    first = next((example for example in examples if example is not None), None)
    if first is None:
        return None
    same = [
        (example, renamed)
        for example, renamed in zip(examples, names, strict=True)
        if example is not None and example.event == first.event and np.array_equal(example.observed, first.observed)
    ]
    by_file = [renamed for _, renamed in same]
    return replace(
        first,
        forecasts=_renamed([example.forecasts for example, _ in same], by_file),
        ensembles=_renamed([example.ensembles for example, _ in same], by_file),
    )
