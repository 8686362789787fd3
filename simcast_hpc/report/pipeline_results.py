"""The results of a pipeline run, read from its folder and checked before anything is drawn."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, from_mapping, read_config
from simcast_hpc.monitoring.metrics import read_metrics

from .example_window import SUFFIX, ExampleFrames, ResultsError, read_example

METRICS_PER_THRESHOLD = ("csi", "pod", "far", "frequency_bias")


class _Read(BaseModel):
    """Frozen and typed; keys that a later version may add are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ObservedCount(_Read):
    """How much of the observation lies at or above one threshold, over all windows and leads."""

    pixels: NonNegativeInt
    events: NonNegativeInt


class ProtocolUsed(_Read):
    """One verification protocol, as far as a reader needs it."""

    hash: str
    labels: tuple[str, ...]
    aggregation: str
    source: str = ""


class ScoredEntry(_Read):
    """One forecast that was scored. ``kind`` is ``baseline`` or ``model``; a baseline has no steps."""

    name: str
    kind: str
    steps: int | None = None
    parameters: int | None = None
    note: str = ""


class Spectra(_Read):
    """Mean radial power of the [0, 1] field by lead, at each wavelength, over the frames that miss no pixel."""

    wavelength_km: tuple[float, ...]
    frames: tuple[int, ...]
    observed: tuple[tuple[float | None, ...], ...]
    forecast: tuple[tuple[float | None, ...], ...]
    members: tuple[tuple[float | None, ...], ...] | None = None


class Reliability(_Read):
    """How often an event was observed where so many members forecast it."""

    probability: tuple[float, ...]
    observed_frequency: tuple[float | None, ...]
    forecasts: tuple[int, ...]


class Diagrams(_Read):
    """What the figures of one entry are drawn from; of a single forecast the spectra alone."""

    spectra: Spectra | None = None
    members: int = 1
    ranks: tuple[tuple[int, ...], ...] = ()
    reliability: dict[str, Reliability] = {}


class Difference(_Read):
    """The first entry's score less the second's, with its interval over the same resamples of events."""

    first: str
    second: str
    protocol: str
    key: str
    value: float | None
    low: float | None
    high: float | None


class ScoreFile(_Read):
    """What ``scores/<test set>.json`` holds; a score that is undefined is None.

    ``mean_csi_by_lead`` is the mean over ``supported_thresholds`` of CSI from counts pooled at that lead.
    ``train_dates`` may name the dates of the training windows, so that the page can say which dates are shared.
    ``grid`` (height, width), ``spacing_km``, ``differences`` and ``diagrams`` are absent from files of older versions.
    """

    name: str
    title: str
    dataset: str
    quantity: str
    unit: str
    license: str
    citation: str
    split: str
    windows: NonNegativeInt
    events: NonNegativeInt
    dates: tuple[str, ...]
    train_dates: tuple[str, ...] | None = None
    step_minutes: PositiveFloat
    frames_in: PositiveInt
    frames_out: PositiveInt
    fingerprint: str
    observed: dict[str, ObservedCount]
    supported_thresholds: tuple[str, ...]
    min_observed_pixels: NonNegativeInt
    min_observed_events: NonNegativeInt
    protocols: dict[str, ProtocolUsed]
    entries: tuple[ScoredEntry, ...]
    scores: dict[str, dict[str, dict[str, float | None]]]
    mean_csi_by_lead: dict[str, tuple[float | None, ...]]
    intervals: dict[str, dict[str, dict[str, tuple[float | None, float | None]]]] = {}
    differences: tuple[Difference, ...] = ()
    diagrams: dict[str, Diagrams] = {}
    grid: tuple[int, int] | None = None
    spacing_km: float | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if not self.entries or not self.protocols:
            raise ValueError("entries and protocols must each name at least one")
        if absent := [label for label in self.supported_thresholds if label not in self.observed]:
            raise ValueError(f"supported_thresholds {absent} are not among those observed: {list(self.observed)}")
        for label in self.supported_thresholds:
            seen = self.observed[label]
            if seen.pixels < self.min_observed_pixels or seen.events < self.min_observed_events:
                raise ValueError(
                    f"supported_thresholds has {label} with {seen.pixels} pixels from {seen.events} events; at least "
                    f"{self.min_observed_pixels} from {self.min_observed_events} are asked for"
                )
        for entry in self.entries:
            leads = self.mean_csi_by_lead.get(entry.name, ())
            if len(leads) != self.frames_out:
                raise ValueError(
                    f"mean_csi_by_lead.{entry.name} has {len(leads)} values; frames_out={self.frames_out} wants as many"
                )
            for protocol, used in self.protocols.items():
                given = self.scores.get(entry.name, {}).get(protocol, {})
                if lacking := [key for key in self._needed(used) if key not in given]:
                    raise ValueError(f"scores.{entry.name}.{protocol} lacks {lacking[0]} ({len(lacking)} keys in all)")
        return self

    def _needed(self, protocol: ProtocolUsed) -> list[str]:
        whole = [f"{metric}/{label}" for metric in METRICS_PER_THRESHOLD for label in protocol.labels]
        leads = range(1, self.frames_out + 1)
        return whole + [f"csi/{label}/lead/{lead}" for label in protocol.labels for lead in leads]

    @property
    def is_synthetic(self) -> bool:
        """Whether the observations are simulated storms, for which dates mean nothing."""
        return self.dataset == "synthetic"

    @property
    def names(self) -> tuple[str, ...]:
        """The entries' names, in the order of the file."""
        return tuple(entry.name for entry in self.entries)

    @property
    def lead_minutes(self) -> tuple[float, ...]:
        """Lead time of every forecast frame, in minutes after the last input frame."""
        return tuple((k + 1) * self.step_minutes for k in range(self.frames_out))

    @property
    def ensembles(self) -> tuple[str, ...]:
        """The entries that are ensembles and whose diagrams were kept."""
        return tuple(name for name in self.names if name in self.diagrams and self.diagrams[name].members > 1)

    def by_lead(self, name: str, key: str) -> tuple[float | None, ...]:
        """Return one score of an entry at every lead, under the protocol of curves; None where it has none."""
        found = self.scores[name][self.pooled_protocol]
        return tuple(found.get(f"{key}/lead/{lead}") for lead in range(1, self.frames_out + 1))

    def interval(self, name: str, protocol: str, key: str) -> tuple[float, float] | None:
        """Return the bounds of one score over resamples of events; None where there are none."""
        low, high = self.intervals.get(name, {}).get(protocol, {}).get(key, (None, None))
        return None if low is None or high is None else (low, high)

    def difference(self, first: str, second: str, key: str) -> tuple[float, float, float] | None:
        """Return the first entry's score less the second's and its bounds, under the protocol of curves.

        None where it was not resampled, as between entries of different files.
        """
        for one in self.differences:
            if one.protocol == self.pooled_protocol and one.key == key and {one.first, one.second} == {first, second}:
                if one.value is None or one.low is None or one.high is None:
                    return None
                return (one.value, one.low, one.high) if one.first == first else (-one.value, -one.high, -one.low)
        return None

    @property
    def pooled_protocol(self) -> str:
        """The protocol of per-lead curves: the first that pools counts over leads, else the first."""
        pooled = (name for name, used in self.protocols.items() if used.aggregation == "global")
        return next(pooled, next(iter(self.protocols)))

    @property
    def compared_leads(self) -> tuple[int, ...]:
        """Lead indices (from 0) at which the mean CSI of every entry is defined."""
        return tuple(
            k for k in range(self.frames_out) if all(self.mean_csi_by_lead[name][k] is not None for name in self.names)
        )

    def mean_csi(self, name: str) -> float | None:
        """Return the mean of ``mean_csi_by_lead`` over the leads at which every entry has one; None without any."""
        values = [value for k in self.compared_leads if (value := self.mean_csi_by_lead[name][k]) is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class ScoredTestSet:
    """The scores of one test set, the stem of its files and its example, where one was kept."""

    __test__ = False  # not a pytest class

    stem: str
    scores: ScoreFile
    example: ExampleFrames | None


@dataclass(frozen=True)
class StageResult:
    """One finished training stage: its configuration, its marker, its metrics by step and those of validation."""

    name: str
    config: TrainConfig
    marker: dict[str, Any]
    metrics: list[dict[str, Any]]
    validated: list[dict[str, Any]]

    @property
    def steps(self) -> int:
        """Optimizer steps that were taken."""
        return int(self.marker["steps"])

    @property
    def seconds(self) -> float:
        """Wall time of the steps, from the step times of ``metrics.jsonl``; start-up and pauses are not in it."""
        before, total = 0, 0.0
        for line in self.metrics:
            total += (line["step"] - before) * line.get("time/seconds_per_step", 0.0)
            before = line["step"]
        return total


@dataclass(frozen=True)
class RunResults:
    """Everything a page shows of one pipeline run; the first test set is the run's own."""

    run_dir: Path
    config: PipelineConfig
    versions: dict[str, str]
    stages: tuple[StageResult, ...]
    test_sets: tuple[ScoredTestSet, ...]

    def stage(self, name: str) -> StageResult | None:
        """Return the stage of that name, if the run has one."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def names_of(self, kind: str) -> tuple[str, ...]:
        """Return the names of the stages of one kind (``teacher``, ``direct``, ``student``)."""
        return tuple(stage.name for stage in self.stages if stage.config.stage == kind)


def read_results(run_dir: Path) -> RunResults:
    """Read a finished pipeline run.

    Raises:
        ResultsError: a file or a stage's folder is absent or damaged, or this is the run of one stage.
        ConfigError: the configuration or a score file has a wrong or missing key.
    """
    if not run_dir.is_dir():
        raise ResultsError(f"{run_dir} is not a folder; give the run folder of `simcast pipeline` (its run_dir)")
    reject_a_stage(run_dir)
    config = read_config(PipelineConfig, run_dir / "config.yaml")
    return RunResults(
        run_dir=run_dir,
        config=config,
        versions={key: str(value) for key, value in read_json(run_dir / "versions.json").items()},
        stages=tuple(_read_stage(run_dir / name, config.train_config(name)) for name in config.stages),
        test_sets=_read_test_sets(run_dir / "scores", config),
    )


def reject_a_stage(run_dir: Path) -> None:
    """Refuse the folder of one training run, which holds no scores; what is wrong otherwise is left to the reader.

    Raises:
        ResultsError: says what to give in its place.
    """
    if not _holds(TrainConfig, run_dir):
        return
    whole = f"give its pipeline's folder ({run_dir.parent}), or " if _holds(PipelineConfig, run_dir.parent) else ""
    raise ResultsError(
        f"{run_dir} is one stage's run; {whole}score it first: `simcast evaluate {run_dir} --out scores`"
    )


def _holds(kind: type[TrainConfig] | type[PipelineConfig], folder: Path) -> bool:
    try:
        read_config(kind, folder / "config.yaml")
    except ConfigError:
        return False
    return True


def _read_stage(folder: Path, config: TrainConfig) -> StageResult:
    if not folder.is_dir():
        raise ResultsError(
            f"stage {folder.name} of the configuration has no folder {folder}; run `simcast pipeline` to its end first"
        )
    marker = read_json(folder / "DONE.json", hint=f"stage {folder.name} is not finished")
    if not isinstance(marker.get("steps"), int):
        raise ResultsError(f"{folder / 'DONE.json'}: steps must be a whole number, got {marker.get('steps')!r}")
    lines = read_metrics(folder / "metrics.jsonl")
    metrics = [line for line in lines if "loss" in line]
    if not metrics:
        raise ResultsError(f"{folder / 'metrics.jsonl'} is absent or empty; the stage's training writes it")
    return StageResult(folder.name, config, marker, metrics, [line for line in lines if "loss" not in line])


def _read_test_sets(folder: Path, config: PipelineConfig) -> tuple[ScoredTestSet, ...]:
    """Read all score files: first those that the run's own data made, then ``evaluation.also`` in its order."""
    found = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if not found:
        raise ResultsError(f"no score files at {folder}/*.json; verification writes one for every test set")
    also = [test_set.name for test_set in config.evaluation.also]
    stems = [stem for stem in found if stem not in also] + [name for name in also if name in found]
    return tuple(
        ScoredTestSet(
            stem=stem,
            scores=from_mapping(ScoreFile, read_json(found[stem]), where=str(found[stem])),
            example=read_example(folder / (stem + SUFFIX)),
        )
        for stem in stems
    )


def read_json(path: Path, *, hint: str = "the run is not finished or its folder is damaged") -> dict[str, Any]:
    """Return the mapping in a JSON file; NaN in it means null.

    Raises:
        ResultsError: it cannot be read, or holds something else.
    """
    try:
        # NaN is not JSON, but Python writes it; here it means the same as null, an undefined score.
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror or error}; {hint}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is not JSON ({error}); {hint}") from error
    if not isinstance(data, dict):
        raise ResultsError(f"{path} must hold a mapping of keys to values, got {type(data).__name__}")
    return data
