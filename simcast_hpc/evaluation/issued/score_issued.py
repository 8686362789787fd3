"""Verify the issued forecasts of a folder against the frames that came, and write scores, CSV and their cache."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.dataset_spec import DatasetSpec, Thresholds, ZRRelation, built_in_specs, read_spec
from simcast_hpc.data.shards.shard_format import is_prepared
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks
from simcast_hpc.evaluation.dataset_protocols import protocols_of
from simcast_hpc.forecast.watched_files import Stamp, list_stamps
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.radar.frame_description import is_of_frames, spec_of_frames
from simcast_hpc.radar.frame_encoding import ModelEncoding
from simcast_hpc.radar.importer_choice import ImporterChoice
from simcast_hpc.storage.atomic_files import write_json, write_text
from simcast_hpc.storage.directory_lock import hold_directory
from simcast_hpc.verification.protocols import ScoreProtocol, protocol_for

from ..score_files import without_nan
from .arrived_frames import ArrivedFrames, FrameFile, PhysicalValues, find_frame_files
from .count_cache import CountCache, IssueCounts
from .imported_frames import ImportedFrames
from .issue_counts import IssueCounter
from .issue_log import Issue, operation_log
from .issued_files import IssuedForecast, IssuedGrid, content_hash, read_issued
from .issued_results import Series, issues_csv, scores_csv, series_result

logger = logging.getLogger(__name__)
PROTOCOLS = ("global", "pysteps")
_EARTH_KM_PER_DEGREE = 6371.0 * np.pi / 180
_DATASET_FILE = "dataset.yaml"


@dataclass(frozen=True, kw_only=True)
class IssuedSettings:
    """Settings of a verification of issued forecasts.

    Attributes:
        dataset: description of the forecasts' data; None reads ``dataset.yaml`` in a folder of frames or next to the
            forecasts, or takes the built-in description that the forecast names.
        protocols: names of protocols.
        scores: names of additional scores, see ``OPTIONAL_SCORES``.
        missing_members: how an ensemble is scored where members are missing, ``mask`` or ``ignore``.
        thresholds: in the unit of the description; None takes its thresholds.
        baselines: names of baselines that are forecast from the same frames.
        since: first issue time; None for no limit.
        until: last issue time; None for no limit.
        cadence_minutes: expected minutes between issue times; None for the time step of the forecasts.
        draws: number of resamples of days; 0 for no intervals.
        pattern: of the names of frame files in folders.
        z_r: relation of dBZ and mm/h, as that of the forecasts.
        any_interval: whether accumulations over more than 1.5 time steps are used as observations.
        odim_dataset: number of the dataset that is read from ODIM files.
        importer: reads the frames; None detects their format.
        encoded: whether frames are rounded to codes and all fields are compared as positions on the code axis, as by
            ``simcast evaluate``; always for an imported folder. Otherwise thresholds are compared in physical units.
    """

    dataset: str | None = None
    protocols: tuple[str, ...] = PROTOCOLS
    scores: tuple[str, ...] = ()
    missing_members: str = "mask"
    thresholds: tuple[float, ...] | None = None
    baselines: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    cadence_minutes: float | None = None
    draws: int = 1000
    pattern: str = "**/*"
    z_r: ZRRelation | None = None
    any_interval: bool = False
    odim_dataset: int | None = None
    importer: ImporterChoice | None = None
    encoded: bool = False


def score_issued(
    products: Path, radar: Sequence[Path], *, settings: IssuedSettings, out: Path, ranks: Ranks = SINGLE_RANK
) -> dict[str, Any]:
    """Score issued forecasts by series and month, and write the results.

    A series are the forecasts of one model, version, post-processing and form. Scores are sums over pixels and days,
    so that a month is scored from the cached counts of its forecasts.

    Args:
        products: folder of forecasts, searched with its subfolders.
        radar: folders of radar files, or files.
        settings: protocols, thresholds, period and reading.
        out: rank 0 writes ``issued.json``, ``scores.csv`` and ``issues.csv``; all write to ``cache``.
        ranks: the ranks over which forecasts are distributed.

    Returns:
        The content of ``issued.json``; empty on ranks other than 0.

    Raises:
        ConfigError: no forecast or frame, or an invalid setting.
        DataError: the grid of a forecast is not that of the frames, or its unit is not that of the description.
    """
    with hold_directory(out, "a verification of issued forecasts", field="--out", name="issued", ranks=ranks):
        cache = CountCache.open(out / "cache")
        # 1. Forecasts and frames
        with ranks.together():
            found = _find(products, radar, settings, cache) if ranks.is_first else None
        issues, files, skipped, problems, digests = ranks.broadcast(found)
        work = _Work(radar, settings, files)
        # 2. Count
        own: dict[tuple[Any, ...], Series] = {}
        stored = 0
        with ranks.together():
            mine = issues[ranks.rank :: ranks.size]
            for issue in Progress(logger, "verification", len(mine), unit="forecasts").track(mine):
                counts, was_stored = _counts(issue.forecast, work, cache, digests)
                stored += was_stored
                counter = work.counter(issue.forecast)
                key = (counter.code.spec.name, round(counter.code.spacing_km, 3), *issue.forecast.method.values())
                if key not in own:
                    own[key] = Series(issue.forecast.method, counter.code, counter.protocols, issue.forecast)
                own[key].add(issue, counts)
        gathered = ranks.gather_on_first((own, stored))
        if not ranks.is_first:
            return {}
        # 3. Score and write
        result = _result(issues, _join([series for series, _ in gathered]), work, settings)
        result |= {
            "products": str(products),
            "radar": [str(folder) for folder in radar],
            "skipped": skipped,
            "frames": {
                "files": len(files),
                "times": len(work.counter(issues[0].forecast).frames.times),
                "problems": problems,
            },
            "cached": sum(number for _, number in gathered),
        }
        cache.save_index()
        write_text(out / "scores.csv", scores_csv(result))
        write_text(out / "issues.csv", issues_csv(result))
        write_json(out / "issued.json", without_nan(result))
        return result


def _find(products: Path, radar: Sequence[Path], settings: IssuedSettings, cache: CountCache) -> tuple[Any, ...]:
    """Return issues, frame files, skipped forecasts, problems of frames, and hashes of forecasts by path."""
    if not products.is_dir():
        reason = "is a file; give the folder" if products.exists() else "does not exist; give the folder"
        raise ConfigError(f"PRODUCTS {products} {reason} of forecasts, the --out of simcast predict")
    issues, skipped, stamps = _find_issues(products, settings)
    if not issues:
        reasons = f"; for example: {skipped[0]}" if skipped else ""
        raise ConfigError(
            f"{products} contains no forecast of simcast predict with an issue time in the period{reasons}"
        )
    # Settings are checked before files are hashed and frames are opened.
    check = _Work(radar, settings, [])
    for issue in issues:
        check.counter(issue.forecast).check(issue.forecast)
    known = cache.files.get("forecasts", {})
    digests = {}
    for issue in issues:
        path, stamp = str(issue.forecast.path), list(stamps[issue.forecast.path])
        entry = known.get(path)
        digest = entry[1] if isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp else None
        digests[path] = digest if isinstance(digest, str) else content_hash(issue.forecast.path)
    cache.files["forecasts"] = {path: [list(stamps[Path(path)]), digest] for path, digest in digests.items()}
    code = encoding_for(issues[0].forecast, radar, settings)
    if _imported(radar) is not None:
        return issues, [], skipped, [], digests
    excluded = (products.resolve(), cache.folder.resolve().parent)
    files, problems, index = find_frame_files(
        radar, pattern=settings.pattern, excluded=excluded, code=code, known=cache.files.get("frames", {})
    )
    cache.files["frames"] = index
    return issues, files, skipped, problems, digests


def _find_issues(products: Path, settings: IssuedSettings) -> tuple[list[Issue], list[str], dict[Path, Stamp]]:
    stamps: dict[Path, Stamp] = {}
    for pattern in ("**/*.nc", "**/*.zarr"):
        stamps |= list_stamps(products, pattern, products / ".nothing")
    issues: dict[tuple[Any, ...], Issue] = {}
    skipped = []
    for path, stamp in sorted(stamps.items(), key=lambda item: (item[1].changed_ns, item[0])):
        try:
            forecast = read_issued(path)
        except DataError as error:
            skipped.append(str(error))
            continue
        early = settings.since is not None and forecast.issue < settings.since
        late = settings.until is not None and forecast.issue > settings.until
        if early or late:
            continue
        key = (forecast.issue, *forecast.method.values())
        if key in issues:  # the same forecast as netCDF and Zarr, or a later copy
            skipped.append(f"{issues[key].forecast.path} has the issue time and model of {path}, which is newer")
        issues[key] = Issue(forecast, datetime.fromtimestamp(stamp.changed_ns / 1e9, UTC))
    in_order = sorted(issues.values(), key=lambda issue: (issue.forecast.issue, issue.forecast.path))
    return in_order, skipped, stamps


class _Work:
    """Encodings, frames and counters, one for each encoding and cadence of the forecasts."""

    def __init__(self, radar: Sequence[Path], settings: IssuedSettings, files: Sequence[FrameFile]):
        self._radar, self._settings, self._files = radar, settings, files
        self._counters: dict[tuple[Any, ...], IssueCounter] = {}

    def counter(self, forecast: IssuedForecast) -> IssueCounter:
        """Return the counter for a forecast."""
        description = self._settings.dataset or forecast.attributes.get("simcast_data_description", "")
        key = (description, forecast.step_minutes, _key_of(forecast.grid))
        if key not in self._counters:
            code = encoding_for(forecast, self._radar, self._settings)
            imported = _imported(self._radar)
            frames = ArrivedFrames(self._files, code) if imported is None else ImportedFrames(imported, code)
            protocols = protocols_for(code, self._settings)
            levels = _levels(code, self._settings)
            self._counters[key] = IssueCounter(frames, code, protocols, self._settings.baselines, levels)
        return self._counters[key]


def _counts(
    forecast: IssuedForecast, work: _Work, cache: CountCache, digests: dict[str, str]
) -> tuple[IssueCounts | None, bool]:
    """Return the counts of a forecast, None if its file was removed since the listing, and whether they were stored."""
    counter = work.counter(forecast)
    try:
        key = counter.key(forecast, digests[str(forecast.path)])
        return cache.counts(key, lambda: counter.count(forecast))
    except DataError:
        if forecast.path.exists():
            raise
        return None, False  # as by --keep of a watcher


def _join(by_rank: Sequence[dict[tuple[Any, ...], Series]]) -> list[Series]:
    """Return the series of all ranks in the order of their first issue times."""
    joined: dict[tuple[Any, ...], Series] = {}
    for own in by_rank:
        for key, series in own.items():
            if key in joined:
                joined[key].absorb(series)
            else:
                joined[key] = series
    return sorted(joined.values(), key=lambda series: series.issues[0]["issue"])


def _result(
    issues: Sequence[Issue], all_series: Sequence[Series], work: _Work, settings: IssuedSettings
) -> dict[str, Any]:
    cadence = settings.cadence_minutes or min(issue.forecast.step_minutes for issue in issues)
    frames = work.counter(issues[0].forecast).frames
    return {
        "since": None if settings.since is None else settings.since.isoformat(),
        "until": None if settings.until is None else settings.until.isoformat(),
        "first_issue": issues[0].forecast.issue.isoformat(),
        "last_issue": issues[-1].forecast.issue.isoformat(),
        "cadence_minutes": cadence,
        "draws": settings.draws,
        "series": [
            series_result(series, name=name, draws=settings.draws)
            for name, series in zip(_names(all_series), all_series, strict=True)
        ],
        "operation": operation_log(issues, frames, cadence_minutes=cadence, since=settings.since, until=settings.until),
    }


def _names(series: Sequence[Series]) -> list[str]:
    """Return a name for each series: that of the run, with as many further attributes as needed."""
    methods = [dict(one.method) for one in series]
    for one in methods:
        one["weights"] = one["weights"][:8]
        one["version"] = f"version {one['version']}" if one["version"] else ""
    names = [" ".join(filter(None, (one["run"] or one["model"], one["fallback"]))) or "forecast" for one in methods]
    for attribute in ("stage", "field", "weights", "version", "postprocessing", "leads", "sampling"):
        repeated = {name for name in names if names.count(name) > 1}
        names = [
            f"{name}, {one[attribute]}" if name in repeated and one[attribute] else name
            for name, one in zip(names, methods, strict=True)
        ]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def _imported(radar: Sequence[Path]) -> Path | None:
    """Return the imported folder among the sources of frames, None if they are radar files.

    Raises:
        ConfigError: an imported folder is not the only source.
    """
    prepared = [folder for folder in radar if folder.is_dir() and is_prepared(folder)]
    if prepared and len(radar) > 1:
        raise ConfigError(
            f"{prepared[0]} is an imported folder, which must be the only source of frames; got {len(radar)}"
        )
    return prepared[0] if prepared else None


def encoding_for(forecast: IssuedForecast, radar: Sequence[Path], settings: IssuedSettings) -> ModelEncoding:
    """Return the encoding in which a forecast is scored, with the pixel size and cadence of the forecast.

    Raises:
        ConfigError: the description of the data is unknown or cannot be read.
    """
    spec = _description(forecast, radar, settings)
    is_encoded = settings.encoded or _imported(radar) is not None
    return (ModelEncoding if is_encoded else PhysicalValues)(
        spec,
        forecast.step_minutes,
        _spacing_km(forecast.grid, forecast.path),
        settings.z_r,
        any_spacing=is_of_frames(spec),
        any_interval=settings.any_interval,
        dataset=settings.odim_dataset,
        importer=settings.importer,
    )


def _description(forecast: IssuedForecast, radar: Sequence[Path], settings: IssuedSettings) -> DatasetSpec:
    if settings.dataset:
        return read_spec(settings.dataset)
    folders = [*(one if one.is_dir() else one.parent for one in radar), forecast.path.parent]
    own = [folder / _DATASET_FILE for folder in folders if (folder / _DATASET_FILE).is_file()]
    if own:
        return read_spec(str(own[0]))
    name = forecast.attributes.get("simcast_data_description", "")
    if name in built_in_specs():
        return read_spec(name)
    grid = forecast.grid
    of_frames = spec_of_frames(
        forecast.unit, (len(grid.y), len(grid.x)), _spacing_km(grid, forecast.path), step_minutes=forecast.step_minutes
    )
    if name == of_frames.name:  # a baseline without a description
        return of_frames
    raise ConfigError(
        f"{forecast.path} was made for the data description {name!r}, which is not built in; give its YAML file "
        f"with --dataset FILE, or copy it as {_DATASET_FILE} to the folder of RADAR"
    )


def protocols_for(code: ModelEncoding, settings: IssuedSettings) -> list[ScoreProtocol]:
    """Return the protocols of the settings for an encoding, without power spectra.

    Raises:
        ConfigError: an unknown protocol, or invalid thresholds.
    """
    made = protocols_of(
        _scored(code.spec, settings),
        settings.protocols,
        spacing_km=code.spacing_km,
        scores=settings.scores,
        missing_members=settings.missing_members,
        field="--protocol",
    )
    return [replace(protocol, spectrum=False, ssim=False) for protocol in made]


def _levels(code: ModelEncoding, settings: IssuedSettings) -> dict[float, float]:
    """Return the stated thresholds in the unit of the encoding by the positions that protocols have for them."""
    spec = _scored(code.spec, settings)
    stated = replace(code, spec=spec, rate_thresholds=()).thresholds()
    positions = protocol_for("stated", spec.threshold_codes()).thresholds
    return dict(zip(positions, stated, strict=True))


def _scored(spec: DatasetSpec, settings: IssuedSettings) -> DatasetSpec:
    """Return the description with the thresholds of the settings."""
    if settings.thresholds is not None:
        try:
            thresholds = Thresholds(values=settings.thresholds, unit=spec.thresholds.unit)
            spec.codes_of(thresholds.values, unit=thresholds.unit)
        except ValueError as error:
            raise ConfigError(f"--threshold {' '.join(f'{one:g}' for one in settings.thresholds)}: {error}") from error
        spec = spec.model_copy(update={"thresholds": thresholds})
    return spec


def _spacing_km(grid: IssuedGrid, path: Path) -> float:
    if min(len(grid.x), len(grid.y)) < 2:
        raise DataError(f"{path} has {len(grid.y)} x {len(grid.x)} pixels; at least 2 x 2 are needed for a pixel size")
    across = abs(grid.x[-1] - grid.x[0]) / (len(grid.x) - 1)
    down = abs(grid.y[-1] - grid.y[0]) / (len(grid.y) - 1)
    if not grid.is_in_degrees:
        return float(np.sqrt(across * down)) / 1000.0
    middle = np.deg2rad((grid.y[0] + grid.y[-1]) / 2)
    return float(_EARTH_KM_PER_DEGREE * np.sqrt(across * np.cos(middle) * down))


def _key_of(grid: IssuedGrid) -> tuple[Any, ...]:
    return grid.projection, grid.y.shape, grid.x.shape, *map(float, (grid.y[0], grid.y[-1], grid.x[0], grid.x[-1]))
