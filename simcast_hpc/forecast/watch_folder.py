"""Watch a folder and forecast from each new frame; late, missing and damaged files are reported and do not block.

The work to do is derived from the two folders at every scan, not from memory: an issue time is served while it is at
most ``late_minutes`` older than the newest frame and its forecast is absent or was computed from other files. So a
restart continues after a kill, a late frame creates or updates forecasts, and a replaced file is read again.
"""

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from simcast_hpc.config import DataError, SimcastError
from simcast_hpc.monitoring.stop_request import StopRequest
from simcast_hpc.radar.frame_encoding import EncodedFrame, encode_frame
from simcast_hpc.radar.read_frame import frame_times, read_frames
from simcast_hpc.storage.atomic_files import sweep, write_json

from .choose_frames import FrameSet
from .forecast_files import SIGNATURE, Publisher
from .predictor import Predictor

logger = logging.getLogger(__name__)
HEALTH = "health.json"
_POLL_SECONDS = 0.1
_FUTURE_TOLERANCE = timedelta(hours=1)
_UNFINISHED = (".partial", ".part", ".tmp", ".filepart")


class Stamp(NamedTuple):
    """Size and modification time, by which a changed file is recognized."""

    size: int
    changed_ns: int


@dataclass(frozen=True)
class InspectedFile:
    """A file that was inspected: the times of its frames, or why it cannot be used."""

    stamp: Stamp
    times: tuple[datetime, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class WatchSettings:
    """Settings of a watcher.

    Attributes:
        every_seconds: interval between scans.
        late_minutes: how much older than the newest frame an issue time may be and still be served.
        keep: number of newest issue times whose files are kept; None keeps all.
        pattern: of file names.
    """

    every_seconds: float = 10.0
    late_minutes: float = 120.0
    keep: int | None = None
    pattern: str = "*"


class FolderWatcher:
    """Watcher of one folder; see the module."""

    def __init__(self, predictor: Predictor, publisher: Publisher, folder: Path, settings: WatchSettings):
        """Create the output folder and remove temporary files of a killed watcher.

        Raises:
            OSError: the folder cannot be created.
        """
        self.predictor, self.publisher, self.folder, self.settings = predictor, publisher, folder, settings
        self._seen: dict[Path, Stamp] = {}
        self._known: dict[Path, InspectedFile] = {}
        self._encoded: dict[tuple[Path, Stamp], list[EncodedFrame]] = {}
        self._failed: dict[datetime, tuple[str, str]] = {}
        self._gaps: dict[datetime, str] = {}
        self._health: dict[str, Any] = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "run": str(predictor.model.config.run_dir),
            "weights": predictor.model.weights_hash,
            "watched": str(folder),
            "started": _now(),
            "made": 0,
            "last_forecast": None,
            "lag_seconds": None,
        }
        publisher.folder.mkdir(parents=True, exist_ok=True)
        sweep(publisher.folder)

    def run(self, stop: StopRequest) -> None:
        """Scan until a signal or a file ``STOP`` requests the end; a forecast in progress is finished first."""
        while not stop():
            self.scan(stop)
            until = time.monotonic() + self.settings.every_seconds
            while time.monotonic() < until and not stop():
                time.sleep(_POLL_SECONDS)
        self._write_health("stopped", reason=stop.cause)
        logger.info("stopped: %s", stop.cause)

    def scan(self, stop: StopRequest | None = None) -> int:
        """Scan once: inspect new files, make missing forecasts, remove old ones. Return the number of forecasts."""
        self._inspect_new_files()
        count, repeat = 0, True
        while repeat and not (stop and stop()):
            repeat = False
            # 1. Frames on disk, and the issue times to serve
            files = self._files_by_time()
            gaps: dict[datetime, str] = {}
            served = self._served_times(files)
            self._failed = {issue: failure for issue, failure in self._failed.items() if issue in served}
            # 2. Forecasts that are absent or were computed from other files
            for issue in served:
                if stop and stop():
                    break
                try:
                    chosen = self.predictor.inputs(list(files), issue)
                except DataError as gap:
                    if self.predictor.wanted.times(issue)[0] >= min(files):  # earlier: the radar has only started
                        gaps[issue] = str(gap)
                    continue
                signature = self._signature(chosen, files)
                if self._is_current(issue, signature):
                    continue
                outcome = self._make(chosen, files, signature)
                count += outcome == "made"
                if outcome == "file":  # a file proved damaged, so the choice of frames changes
                    repeat = True
                    break
            if not (stop and stop()):  # an interrupted scan has not seen all issue times
                self._gaps = gaps
        self._prune()
        self._write_health("watching")
        return count

    def _inspect_new_files(self) -> None:
        """Inspect files that are new or changed and no longer grow."""
        now_ns, listing = time.time_ns(), _listing(self.folder, self.settings.pattern)
        grown_ns = int(self.settings.every_seconds * 1e9)
        for path, stamp in listing.items():
            known = self._known.get(path)
            if known is not None and known.stamp == stamp:
                continue
            if self._seen.get(path) == stamp or now_ns - stamp.changed_ns > grown_ns:
                self._known[path] = self._inspect(path, stamp)
        self._known = {path: known for path, known in self._known.items() if path in listing}
        self._seen = listing

    def _inspect(self, path: Path, stamp: Stamp) -> InspectedFile:
        try:
            choice = self.predictor.code.choice
            times = tuple(frame_times(path, prefer=choice.unit, dataset=choice.dataset))
        except DataError as error:
            return self._ignore(path, stamp, str(error))
        early = [moment for moment in times if moment > datetime.now(UTC) + _FUTURE_TOLERANCE]
        if early:
            return self._ignore(
                path, stamp, f"{path} has the time {early[0]:%Y-%m-%d %H:%M} UTC, which is in the future"
            )
        return InspectedFile(stamp, times)

    def _ignore(self, path: Path, stamp: Stamp, problem: str) -> InspectedFile:
        logger.warning("ignored until it changes: %s", problem)
        return InspectedFile(stamp, problem=problem)

    def _files_by_time(self) -> dict[datetime, Path]:
        """Return the file of every time; of two files with the same time the newer."""
        files: dict[datetime, Path] = {}
        for path, known in sorted(self._known.items(), key=lambda item: item[1].stamp.changed_ns):
            files.update(dict.fromkeys(known.times, path))
        return files

    def _served_times(self, files: dict[datetime, Path]) -> list[datetime]:
        """Return the issue times to serve, newest first."""
        if not files:
            return []
        oldest = max(files) - timedelta(minutes=self.settings.late_minutes)
        served = sorted((moment for moment in files if moment >= oldest), reverse=True)
        return served[: self.settings.keep]

    def _signature(self, chosen: FrameSet, files: dict[datetime, Path]) -> str:
        """Return a hash of everything that determines a forecast: input files, weights and settings."""
        inputs = [None if moment is None else [files[moment].name, *self._known[files[moment]].stamp]
                  for moment in chosen.frames]  # fmt: skip
        return hashlib.sha256(json.dumps([inputs, self.predictor.identity]).encode()).hexdigest()[:32]

    def _is_current(self, issue: datetime, signature: str) -> bool:
        failed = self._failed.get(issue)
        return (failed is not None and failed[0] == signature) or self.publisher.signature(issue) == signature

    def _make(self, chosen: FrameSet, files: dict[datetime, Path], signature: str) -> str:
        """Compute and write one forecast; return ``made``, ``file`` if an input file proved damaged, or ``failed``."""
        issue = chosen.issue
        frames: dict[datetime, EncodedFrame] = {}
        for moment in filter(None, chosen.frames):
            path = files[moment]
            try:
                frames[moment] = self._frame(path, moment)
            except DataError as error:
                self._known[path] = self._ignore(path, self._known[path].stamp, str(error))
                return "file"
        try:
            forecast = self.predictor.predict(frames, issue)
            provenance = {**forecast.provenance, SIGNATURE: signature}
            paths = self.publisher.publish(replace(forecast, provenance=provenance))
        except SimcastError as error:
            self._failed[issue] = (signature, str(error))
            logger.warning("no forecast for %s: %s", _text(issue), error)
            return "failed"
        except OSError as error:  # such as a full disk: retried at the next scan
            self._failed[issue] = ("", f"cannot be written: {error}")
            logger.warning("the forecast for %s cannot be written: %s", _text(issue), error)
            return "failed"
        self._failed.pop(issue, None)
        self._report(issue, paths, files)
        return "made"

    def _frame(self, path: Path, moment: datetime) -> EncodedFrame:
        key = (path, self._known[path].stamp)
        if key not in self._encoded:
            code = self.predictor.code
            frames = read_frames(path, prefer=code.unit, dataset=code.dataset)
            self._encoded[key] = [encode_frame(frame, code) for frame in frames]
            for old in list(self._encoded)[: -2 * self.predictor.wanted.frames_in]:
                del self._encoded[old]
        for frame in self._encoded[key]:
            if frame.time == moment:
                return frame
        raise DataError(f"{path} no longer contains a frame of {_text(moment)}")

    def _report(self, issue: datetime, paths: dict[str, Path], files: dict[datetime, Path]) -> None:
        arrived = self._known[files[issue]].stamp.changed_ns / 1e9 if issue in files else time.time()
        self._health["made"] += 1
        newest = self._health["last_forecast"]
        if newest is None or newest["issue"] <= _text(issue):
            self._health["last_forecast"] = {"issue": _text(issue), "files": [path.name for path in paths.values()]}
            self._health["lag_seconds"] = round(time.time() - arrived, 3)
        logger.info("forecast of %s: %s", _text(issue), ", ".join(path.name for path in paths.values()))
        self._write_health("watching")

    def _prune(self) -> None:
        if self.settings.keep is None:
            return
        for issue in self.publisher.issues()[: -self.settings.keep]:
            self.publisher.remove(issue)

    def _write_health(self, state: str, *, reason: str = "") -> None:
        files = self._files_by_time()
        problems = [{"file": path.name, "problem": known.problem}
                    for path, known in sorted(self._known.items()) if known.problem]  # fmt: skip
        problems += [{"issue": _text(issue), "problem": gap} for issue, gap in sorted(self._gaps.items())]
        problems += [
            {"issue": _text(issue), "problem": failure} for issue, (_, failure) in sorted(self._failed.items())
        ]
        health = {
            **self._health,
            "state": state,
            "why": reason,
            "updated": _now(),
            "frames": len(files),
            "last_frame": _text(max(files)) if files else None,
            "problems": problems,
        }
        try:
            write_json(self.publisher.folder / HEALTH, health)
        except OSError as error:
            logger.warning("%s cannot be written: %s", HEALTH, error)


def _listing(folder: Path, pattern: str) -> dict[Path, Stamp]:
    """Return the files of a folder except hidden ones and those with the suffix of an unfinished transfer."""
    listing = {}
    for path in folder.glob(pattern):
        if path.name.startswith(".") or path.suffix in _UNFINISHED:
            continue
        try:
            status = path.stat()
        except OSError:  # removed since the listing
            continue
        if path.is_file():
            listing[path] = Stamp(status.st_size, status.st_mtime_ns)
    return listing


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _now() -> str:
    return _text(datetime.now(UTC))
