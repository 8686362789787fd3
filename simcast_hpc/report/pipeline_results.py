"""Read and check the results of a pipeline run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, from_mapping, read_config
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.monitoring.metrics import read_metrics

from .example_window import SUFFIX, ExampleFrames, ResultsError, read_example

METRICS_PER_THRESHOLD = ("csi", "pod", "far", "frequency_bias")


class _Read(BaseModel):
    """Frozen and typed; unknown keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ObservedCount(_Read):
    """Observed pixels and events at or above one threshold, over all windows and lead times."""

    pixels: NonNegativeInt
    events: NonNegativeInt


class ProtocolUsed(_Read):
    """One verification protocol of a score file."""

    hash: str
    labels: tuple[str, ...]
    aggregation: str
    source: str = ""
    additional_scores: tuple[str, ...] = ()


class ScoredEntry(_Read):
    """One scored forecast. ``kind`` is ``baseline``, ``model`` or ``file``; only models have ``steps``."""

    name: str
    kind: str
    steps: int | None = None
    parameters: int | None = None
    note: str = ""


class Spectra(_Read):
    """Mean radial power of the [0, 1] field by lead time and wavelength, over frames without missing pixels."""

    wavelength_km: tuple[float, ...]
    frames: tuple[int, ...]
    observed: tuple[tuple[float | None, ...], ...]
    forecast: tuple[tuple[float | None, ...], ...]
    members: tuple[tuple[float | None, ...], ...] | None = None


class Reliability(_Read):
    """Observed frequency of an event by forecast probability."""

    probability: tuple[float, ...]
    observed_frequency: tuple[float | None, ...]
    forecasts: tuple[int, ...]


class Diagrams(_Read):
    """Data of the diagrams of one entry; a single forecast has only spectra."""

    spectra: Spectra | None = None
    members: int = 1
    ranks: tuple[tuple[int, ...], ...] = ()
    reliability: dict[str, Reliability] = {}


class Difference(_Read):
    """Score of the first entry minus that of the second, with its paired interval over events."""

    first: str
    second: str
    protocol: str
    key: str
    value: float | None
    low: float | None
    high: float | None


class ScoreFile(_Read):
    """Content of ``scores/<test set>.json``; an undefined score is None.

    ``mean_csi_by_lead`` is the mean over ``supported_thresholds`` of the CSI of counts pooled at each lead time.
    ``train_dates`` are the dates of the training windows, if known. ``grid`` (height, width), ``spacing_km``,
    ``differences`` and ``diagrams`` are absent in files of older versions.
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
    def _check_completeness(self) -> Self:
        if not self.entries or not self.protocols:
            raise ValueError("entries and protocols must not be empty")
        if unknown := [label for label in self.supported_thresholds if label not in self.observed]:
            raise ValueError(f"supported_thresholds {unknown} are not in observed, which has {list(self.observed)}")
        for label in self.supported_thresholds:
            count = self.observed[label]
            if count.pixels < self.min_observed_pixels or count.events < self.min_observed_events:
                raise ValueError(
                    f"supported_thresholds has {label} with {count.pixels} pixels from {count.events} events; required "
                    f"are {self.min_observed_pixels} pixels from {self.min_observed_events} events"
                )
        for entry in self.entries:
            leads = self.mean_csi_by_lead.get(entry.name, ())
            if len(leads) != self.frames_out:
                raise ValueError(
                    f"mean_csi_by_lead.{entry.name} must have frames_out={self.frames_out} values, got {len(leads)}"
                )
            for protocol, used in self.protocols.items():
                by_key = self.scores.get(entry.name, {}).get(protocol, {})
                if missing := [key for key in self._required_keys(used) if key not in by_key]:
                    raise ValueError(
                        f"scores.{entry.name}.{protocol} has no key {missing[0]} ({len(missing)} keys are missing)"
                    )
        return self

    def _required_keys(self, protocol: ProtocolUsed) -> list[str]:
        overall = [f"{metric}/{label}" for metric in METRICS_PER_THRESHOLD for label in protocol.labels]
        leads = range(1, self.frames_out + 1)
        return overall + [f"csi/{label}/lead/{lead}" for label in protocol.labels for lead in leads]

    @property
    def is_synthetic(self) -> bool:
        """Whether the observations are simulated storms, whose dates are meaningless."""
        return self.dataset == "synthetic"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the entries, in the order of the file."""
        return tuple(entry.name for entry in self.entries)

    @property
    def lead_minutes(self) -> tuple[float, ...]:
        """Lead time of every forecast frame, in minutes after the last input frame."""
        return tuple((k + 1) * self.step_minutes for k in range(self.frames_out))

    @property
    def ensembles(self) -> tuple[str, ...]:
        """The names of the entries that are ensembles with diagram data."""
        return tuple(name for name in self.names if name in self.diagrams and self.diagrams[name].members > 1)

    def by_lead(self, name: str, key: str) -> tuple[float | None, ...]:
        """Return one score of an entry at every lead time, under the pooled protocol; None where undefined."""
        by_key = self.scores[name][self.pooled_protocol]
        return tuple(by_key.get(f"{key}/lead/{lead}") for lead in range(1, self.frames_out + 1))

    def interval(self, name: str, protocol: str, key: str) -> tuple[float, float] | None:
        """Return the bounds of the interval of one score; None if there is no interval."""
        low, high = self.intervals.get(name, {}).get(protocol, {}).get(key, (None, None))
        return None if low is None or high is None else (low, high)

    def difference(
        self, first: str, second: str, key: str, protocol: str | None = None
    ) -> tuple[float, float, float] | None:
        """Return the score of the first entry minus that of the second, and its bounds; default: pooled protocol.

        None if the difference was not computed, as between entries of different files.
        """
        protocol = protocol or self.pooled_protocol
        for one in self.differences:
            if one.protocol == protocol and one.key == key and {one.first, one.second} == {first, second}:
                if one.value is None or one.low is None or one.high is None:
                    return None
                return (one.value, one.low, one.high) if one.first == first else (-one.value, -one.high, -one.low)
        return None

    @property
    def pooled_protocol(self) -> str:
        """The protocol of the curves: the first that pools counts over lead times, else the first."""
        pooled = (name for name, used in self.protocols.items() if used.aggregation == "global")
        return next(pooled, next(iter(self.protocols)))

    @property
    def compared_leads(self) -> tuple[int, ...]:
        """Indices of the lead times at which the mean CSI of every entry is defined."""
        return tuple(
            k for k in range(self.frames_out) if all(self.mean_csi_by_lead[name][k] is not None for name in self.names)
        )

    def mean_csi(self, name: str) -> float | None:
        """Return the mean of ``mean_csi_by_lead`` over ``compared_leads``; None if there are none."""
        values = [value for k in self.compared_leads if (value := self.mean_csi_by_lead[name][k]) is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class ScoredTestSet:
    """The scores of one test set, the stem of its file names, and its example window if there is one."""

    __test__ = False  # not a pytest class

    stem: str
    scores: ScoreFile
    example: ExampleFrames | None


@dataclass(frozen=True)
class StageResult:
    """One finished training stage: configuration, completion marker, training metrics and validation metrics."""

    name: str
    config: TrainConfig
    marker: dict[str, Any]
    metrics: list[dict[str, Any]]
    validated: list[dict[str, Any]]

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        return int(self.marker["steps"])

    @property
    def selection(self) -> dict[str, Any]:
        """What validation selected: score, best step and value, and the exported step; empty without validation."""
        selection = self.marker.get("validation")
        return selection if isinstance(selection, dict) else {}

    def validation_points(self, key: str) -> list[tuple[int, float]]:
        """Return the optimizer steps and values of a validation score, such as ``csi/mean`` or ``loss``."""
        name = f"validation/{key}"
        return [(line["step"], line[name]) for line in self.validated if line.get(name) is not None]

    def baseline_scores(self, key: str) -> dict[str, float]:
        """Return this score of each baseline on the validation windows, by name."""
        found = {}
        for line in self.validated:
            for name, value in line.items():
                kind, _, rest = name.partition("/")
                baseline, _, score = rest.partition("/")
                if kind == "baseline" and score == key and value is not None:
                    found[baseline] = value
        return found

    @property
    def seconds(self) -> float:
        """Wall time of the steps in seconds, from ``metrics.jsonl``, without start-up and interruptions."""
        before, total = 0, 0.0
        for line in self.metrics:
            total += (line["step"] - before) * line.get("time/seconds_per_step", 0.0)
            before = line["step"]
        return total


@dataclass(frozen=True)
class RunResults:
    """The results of one pipeline run; the first test set is that of the run's own data."""

    run_dir: Path
    config: PipelineConfig
    versions: dict[str, str]
    stages: tuple[StageResult, ...]
    test_sets: tuple[ScoredTestSet, ...]

    def stage(self, name: str) -> StageResult | None:
        """Return the stage of this name, or None."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def names_of(self, kind: str) -> tuple[str, ...]:
        """Return the names of the stages of one kind (``teacher``, ``direct``, ``student``)."""
        return tuple(stage.name for stage in self.stages if stage.config.stage == kind)


def read_results(run_dir: Path) -> RunResults:
    """Read a finished pipeline run.

    Raises:
        ResultsError: a file or a stage directory is missing or damaged, or ``run_dir`` is the run of one stage.
        ConfigError: the configuration or a score file has an invalid or missing key.
    """
    if not run_dir.is_dir():
        raise ResultsError(f"{run_dir} is not a directory; give the run directory of `simcast pipeline` (its run_dir)")
    reject_stage_run(run_dir)
    config = read_config(PipelineConfig, run_dir / "config.yaml")
    return RunResults(
        run_dir=run_dir,
        config=config,
        versions={key: str(value) for key, value in read_json(run_dir / "versions.json").items()},
        stages=tuple(_read_stage(run_dir / name, config.train_config(name)) for name in config.stages),
        test_sets=_read_test_sets(run_dir / "scores", config),
    )


def reject_stage_run(run_dir: Path) -> None:
    """Raise an error if ``run_dir`` is the run directory of one training stage, which contains no scores.

    Raises:
        ResultsError: with the valid alternatives.
    """
    if not _has_config(TrainConfig, run_dir):
        return
    pipeline = f"give its pipeline ({run_dir.parent}), or " if _has_config(PipelineConfig, run_dir.parent) else ""
    raise ResultsError(
        f"{run_dir} is the run of one stage; {pipeline}score it first: `simcast evaluate {run_dir} --out scores`"
    )


def _has_config(kind: type[TrainConfig] | type[PipelineConfig], folder: Path) -> bool:
    try:
        read_config(kind, folder / "config.yaml")
    except ConfigError:
        return False
    return True


def _read_stage(folder: Path, config: TrainConfig) -> StageResult:
    if not folder.is_dir():
        raise ResultsError(
            f"stage {folder.name} of the configuration has no directory {folder}; run `simcast pipeline` first"
        )
    marker = read_json(folder / "DONE.json", hint=f"stage {folder.name} is not finished")
    if not isinstance(marker.get("steps"), int):
        raise ResultsError(f"{folder / 'DONE.json'}: steps must be an integer, got {marker.get('steps')!r}")
    lines = read_metrics(folder / "metrics.jsonl")
    metrics = [line for line in lines if "loss" in line]
    if not metrics:
        raise ResultsError(f"{folder / 'metrics.jsonl'} is missing or empty; training of the stage writes it")
    return StageResult(folder.name, config, marker, metrics, [line for line in lines if "loss" not in line])


def _read_test_sets(folder: Path, config: PipelineConfig) -> tuple[ScoredTestSet, ...]:
    """Read all score files: first those of the run's own data, then those of ``evaluation.also`` in its order."""
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if not files:
        raise ResultsError(f"no score files at {folder}/*.json; evaluation writes one for every test set")
    also = [test_set.name for test_set in config.evaluation.also]
    stems = [stem for stem in files if stem not in also] + [name for name in also if name in files]
    return tuple(
        ScoredTestSet(
            stem=stem,
            scores=from_mapping(ScoreFile, read_json(files[stem]), where=str(files[stem])),
            example=read_example(folder / (stem + SUFFIX)),
        )
        for stem in stems
    )


def read_json(path: Path, *, hint: str = "the run is not finished or its directory is damaged") -> dict[str, Any]:
    """Return the mapping in a JSON file; NaN is read as None.

    Raises:
        ResultsError: the file cannot be read, or is not a JSON mapping.
    """
    try:
        # NaN is not valid JSON, but Python writes it; it is an undefined score.
        data = read_json_file(path, error=ResultsError, what="the file", parse_constant=lambda _: None)
    except ResultsError as error:
        raise ResultsError(f"{error}; {hint}") from error
    if not isinstance(data, dict):
        raise ResultsError(f"{path} must contain a mapping, got {type(data).__name__}")
    return data
