"""Watch a folder and forecast from each new frame; late, missing and damaged files are reported and do not block.

The work to do is derived from the two folders at every scan, not from memory: an issue time is served while it is at
most ``late_minutes`` older than the newest frame and its forecast is absent or was computed from other files. So a
restart continues after a kill, a late frame creates or updates forecasts, and a replaced file is read again.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from simcast_hpc.config import ConfigError, DataError, SimcastError
from simcast_hpc.config.text_files import printable
from simcast_hpc.monitoring.stop_request import StopRequest
from simcast_hpc.radar.frame_encoding import EncodedFrame
from simcast_hpc.radar.reader_process import ReadingStopped
from simcast_hpc.storage.atomic_files import sweep

from .choose_frames import FrameSet, require_one_grid_and_unit
from .forecast_fields import ForecastMethod
from .forecast_files import SIGNATURE, Publisher
from .watch_health import duration, iso, write_health
from .watch_metrics import WatchStatistics, write_prometheus
from .watched_files import FUTURE_TOLERANCE, Retry, WatchedFiles, current_time

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_T = TypeVar("_T")


class _Failure(NamedTuple):
    """A forecast that could not be made, from the inputs ``signature``; tried again when ``retry`` is due or never."""

    signature: str
    problem: str
    retry: Retry | None


@dataclass(frozen=True)
class WatchSettings:
    """Settings of a watcher.

    Attributes:
        every_seconds: interval between scans.
        late_minutes: how much older than the newest frame an issue time may be and still be served.
        keep: number of newest issue times whose files are kept; None keeps all.
        pattern: of file names.
        stale_steps: the feed is stale if the newest frame is older than this number of time steps.
        prometheus: text file with the status for Prometheus; None for none.
    """

    every_seconds: float = 10.0
    late_minutes: float = 120.0
    keep: int | None = None
    pattern: str = "*"
    stale_steps: float = 3.0
    prometheus: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is not finite.
        """
        numbers = {"--every": self.every_seconds, "--late": self.late_minutes, "--stale": self.stale_steps}
        for option, value in numbers.items():
            if not math.isfinite(value):
                raise ConfigError(f"{option} {value} must be a finite number")


class FolderWatcher:
    """Watcher of one folder; see the module."""

    def __init__(
        self,
        predictor: ForecastMethod,
        publisher: Publisher,
        folder: Path,
        settings: WatchSettings,
        *,
        check_lock: Callable[[], None] = lambda: None,
    ):
        """Create the output folder and remove temporary files of a killed watcher.

        Args:
            predictor: of the forecasts.
            publisher: writes them.
            folder: of radar files.
            settings: of the watcher.
            check_lock: raises an error if another process may write to the output folder.

        Raises:
            OSError: the folder cannot be created.
        """
        self.predictor, self.publisher, self.settings = predictor, publisher, settings
        self._check_lock = check_lock
        self._failed: dict[datetime, _Failure] = {}
        self._gaps: dict[datetime, str] = {}
        self._health: dict[str, Any] = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "watched": str(folder),
            "started": iso(current_time()),
            "last_forecast": None,
            "lag_seconds": None,
        }
        self._statistics = WatchStatistics(time.time())
        self._started, self._is_stale = current_time(), False
        publisher.folder.mkdir(parents=True, exist_ok=True)
        sweep(publisher.folder)
        self.files = WatchedFiles(
            folder, predictor.code, pattern=settings.pattern, settled_seconds=settings.every_seconds,
            excluded=publisher.folder,
        )  # fmt: skip

    def run(self, stop: StopRequest) -> None:
        """Scan until a signal or a file ``STOP`` requests the end; a forecast in progress is finished first.

        A scan that fails unexpectedly is logged, and the next one is made.

        Raises:
            SimcastError: another process may write to the output folder.
        """
        while not stop():
            self._check_lock()
            try:
                with contextlib.suppress(ReadingStopped):
                    self.scan(stop)
            except Exception as error:  # a watcher that ends makes no forecasts at all
                self._check_lock()
                logger.exception("a scan failed")
                self._write_health("failing", reason=f"{type(error).__name__}: {error}")
            until = time.monotonic() + self.settings.every_seconds
            while time.monotonic() < until and not stop():
                time.sleep(_POLL_SECONDS)
        self._write_health("stopped", reason=stop.cause)
        logger.info("stopped: %s", stop.cause)

    def scan(self, stop: Callable[[], object] = lambda: False) -> int:
        """Scan once: inspect new files, make missing forecasts, remove old ones. Return the number of forecasts."""
        self.files.update(stop)
        count, repeat = 0, True
        while repeat and not stop():
            repeat = False
            # 1. Frames on disk, and the issue times to serve
            now = current_time()
            files = self.files.by_time(now)
            gaps: dict[datetime, str] = {}
            served = self._served_times(files, now)
            self._failed = {issue: failure for issue, failure in self._failed.items() if issue in served}
            # 2. Forecasts that are absent or were computed from other files
            for issue in served:
                if stop():
                    break
                if self._is_beyond_kept(issue, now):
                    continue
                try:
                    chosen = self.predictor.inputs(list(files), issue)
                except DataError as gap:
                    if self.predictor.wanted.times(issue)[0] >= min(files):  # earlier: the radar has only started
                        gaps[issue] = str(gap)
                    continue
                outcome = self._serve(chosen, files)
                count += outcome == "made"
                if outcome == "file":  # a file proved damaged, so the choice of frames changes
                    repeat = True
                    break
            if not stop():  # an interrupted scan has not seen all issue times
                self._gaps = gaps
        self._prune()
        self._write_health("watching")
        return count

    def _served_times(self, files: dict[datetime, Path], now: datetime) -> list[datetime]:
        """Return the issue times to serve, newest first, one for each name of a forecast file.

        Those whose file failed are last. A frame ahead of the clock does not make the others late.
        """
        if not files:
            return []
        try:
            oldest = min(max(files), now) - timedelta(minutes=self.settings.late_minutes)
        except OverflowError:
            oldest = min(files)
        served = {one.replace(second=0, microsecond=0): one for one in sorted(files) if one >= oldest}
        newest_first = sorted(served.values(), reverse=True)
        return sorted(newest_first, key=lambda issue: self.files.has_failed(files[issue]))  # these may take long again

    def _is_beyond_kept(self, issue: datetime, now: datetime) -> bool:
        """Return whether there are forecasts of ``keep`` later issue times."""
        if self.settings.keep is None:
            return False
        return sum(issue < one for one in self._published(now)) >= self.settings.keep

    def _published(self, now: datetime) -> list[datetime]:
        """Return the issue times that have files, ascending, without those that a wrong clock left in the future."""
        return [issue for issue in self.publisher.issues() if issue <= now + FUTURE_TOLERANCE]

    def _serve(self, chosen: FrameSet, files: dict[datetime, Path]) -> str:
        """Make one forecast; return ``made``, ``current``, ``file`` if an input file proved damaged, or ``failed``."""
        issue, moments = chosen.issue, chosen.existing
        # 1. Inputs
        contents = self._of_files(self.files.content, moments, files)
        if contents is None:
            return "file"
        signature = self._signature(chosen, contents)
        if self._is_current(issue, signature):
            return "current"
        frames = self._of_files(self.files.frame, moments, files)
        if frames is None:
            return "file"
        # 2. Forecast
        self._check_lock()
        try:
            forecast = self.predictor.predict(self._of_one_grid(frames, issue), issue)
            provenance = {**forecast.provenance, SIGNATURE: signature}
            paths = self.publisher.publish(replace(forecast, provenance=provenance))
        except Exception as error:
            self._fail(issue, signature, error)
            return "failed"
        self._failed.pop(issue, None)
        self._report(issue, paths, files[moments[-1]], fallback=forecast.fallback)
        return "made"

    def _of_files(
        self, read: Callable[[Path, datetime], _T], moments: list[datetime], files: dict[datetime, Path]
    ) -> dict[datetime, _T] | None:
        """Return what ``read`` returns for each time; None if a file proved damaged, which is then set aside."""
        contents = {}
        for moment in moments:
            try:
                contents[moment] = read(files[moment], moment)
            except Exception as error:  # whatever a reader raises is an error of its file
                self.files.set_aside(files[moment], error)
                return None
        return contents

    def _of_one_grid(self, frames: dict[datetime, EncodedFrame], issue: datetime) -> dict[datetime, EncodedFrame]:
        """Return the frames on the grid of the last one; the others count as missing.

        Raises:
            DataError: too many are missing.
        """
        last, kept, difference = frames[max(frames)], {}, ""
        for moment, frame in frames.items():
            try:
                require_one_grid_and_unit([last, frame])
                kept[moment] = frame
            except DataError as error:
                difference = str(error)
        if difference:
            try:
                self.predictor.inputs(list(kept), issue)
            except DataError as gap:
                raise DataError(f"{difference}; {gap}") from gap
            logger.warning("the forecast of %s interpolates frames, because %s", iso(issue), difference)
        return kept

    def _signature(self, chosen: FrameSet, contents: dict[datetime, str]) -> str:
        """Return a hash of everything that determines a forecast: times and content of the frames, and settings."""
        inputs = [None if moment is None else [moment.isoformat(), contents[moment]] for moment in chosen.frames]
        inputs += [[moment.isoformat(), contents[moment]] for _, moment in chosen.earlier]
        products = [self.publisher.identity] if self.publisher.identity else []
        return hashlib.sha256(json.dumps([inputs, self.predictor.identity, *products]).encode()).hexdigest()[:32]

    def _is_current(self, issue: datetime, signature: str) -> bool:
        failed = self._failed.get(issue)
        if failed is not None and failed.signature == signature:
            return failed.retry is None or not failed.retry.is_due
        is_current = self.publisher.signature(issue) == signature
        if is_current:
            self._failed.pop(issue, None)
        return is_current

    def _fail(self, issue: datetime, signature: str, error: Exception) -> None:
        """Record why there is no forecast: an input does not fit, an output cannot be written, or anything else."""
        previous = self._failed.get(issue)
        if isinstance(error, SimcastError):
            failure = _Failure(signature, str(error), None)
        elif isinstance(error, OSError):  # such as a full disk: retried at the next scan
            failure = _Failure("", f"cannot be written: {error}", None)
        else:
            retry = Retry.after(previous.retry if previous else None)
            failure = _Failure(signature, f"{type(error).__name__}: {error}", retry)
        self._failed[issue] = failure
        self._statistics.count_failure()
        if previous is None or previous.problem != failure.problem:
            logger.warning("no forecast for %s: %s", iso(issue), failure.problem)

    def _report(self, issue: datetime, paths: dict[str, Path], newest_input: Path, *, fallback: str) -> None:
        arrived, published = self.files.arrived(newest_input), time.time()
        self._statistics.count_forecast(iso(issue), arrived=arrived, published=published, fallback=fallback)
        newest = self._health["last_forecast"]
        if newest is None or newest["issue"] <= iso(issue):
            names = [path.name for path in paths.values()]
            self._health["last_forecast"] = {"issue": iso(issue), "files": names, "fallback": bool(fallback)}
            self._health["lag_seconds"] = round(published - arrived, 3)
        logger.info("forecast of %s: %s", iso(issue), ", ".join(path.name for path in paths.values()))
        self._write_health("watching")

    def _prune(self) -> None:
        if self.settings.keep is None:
            return
        for issue in self._published(current_time())[: -self.settings.keep]:
            try:
                self.publisher.remove(issue)
            except OSError as error:
                logger.warning("the forecast of %s cannot be removed: %s", iso(issue), error)

    def _write_health(self, state: str, *, reason: str = "") -> None:
        now = current_time()
        files = self.files.by_time(now)
        newest = max(files, default=None)
        if state == "watching" and (stale := self._staleness(newest, now)):
            state, reason = "stale", stale
        if state in ("watching", "stale") and (state == "stale") != self._is_stale:  # not at the end, or of a failure
            self._is_stale = state == "stale"
            logger.warning("%s", f"the feed is stale: {reason}" if self._is_stale else "the feed is no longer stale")
        issues = {**self._gaps, **{issue: failure.problem for issue, failure in self._failed.items()}}
        health = write_health(
            self.publisher.folder,
            {
                **self._health,
                **self.predictor.about,  # changes if a model is loaded later
                **self._statistics.health(),
                "state": state,
                "why": printable(reason),
                "frames": len(files),
                "last_frame": None if newest is None else iso(newest),
                "last_frame_age_seconds": None if newest is None else round((now - newest).total_seconds(), 1),
            },
            files=self.files.problems(),
            waiting=self.files.waiting(now),
            issues=sorted(issues.items(), reverse=True),
        )
        if self.settings.prometheus is not None:
            write_prometheus(self.settings.prometheus, health)

    def _staleness(self, newest: datetime | None, now: datetime) -> str:
        """Return why the feed is stale, or an empty text."""
        limit = self.settings.stale_steps * self.predictor.wanted.step_minutes
        minutes = (now - (newest or self._started)).total_seconds() / 60
        if minutes <= limit:
            return ""
        age = duration(minutes)
        what = f"the newest frame is {age} old" if newest else f"no frame for {age}"
        return f"{what}, more than {self.settings.stale_steps:g} time steps"
