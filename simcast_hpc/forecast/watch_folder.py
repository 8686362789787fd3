"""Watching a folder: each new frame gives a forecast; what is late, missing or damaged is named, never in the way.

What has to be done is read from the two folders at every look, not remembered: an issue time is served while it lies
at most ``late`` before the newest frame and its forecast is absent or was made from other files. So a restart goes on
where a kill ended, a frame that comes late gives or redoes forecasts, and a damaged file that is replaced counts again.
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

from .forecast_files import SIGNATURE, Publisher
from .frame_sequence import FrameSet
from .predict_files import Predictor

logger = logging.getLogger(__name__)
HEALTH = "health.json"
_NAP_SECONDS = 0.1
_AHEAD = timedelta(hours=1)
_UNFINISHED = (".partial", ".part", ".tmp", ".filepart")


class Stamp(NamedTuple):
    """What tells that a file changed."""

    size: int
    changed_ns: int


@dataclass(frozen=True)
class Known:
    """A file that was looked into: its times, or what is wrong with it."""

    stamp: Stamp
    times: tuple[datetime, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class WatchSettings:
    """How a folder is watched.

    ``every_seconds`` between looks; ``late_minutes`` how far an issue time may lie before the newest frame and still be
    served; ``keep`` the newest so many issue times, None for all; ``pattern`` of file names.
    """

    every_seconds: float = 10.0
    late_minutes: float = 120.0
    keep: int | None = None
    pattern: str = "*"


class Watch:
    """One watcher of one folder; see the module."""

    def __init__(self, predictor: Predictor, publisher: Publisher, folder: Path, settings: WatchSettings):
        """Make the output folder, and remove what a killed watcher left half-written there.

        Raises:
            OSError: the folder cannot be made.
        """
        self.predictor, self.publisher, self.folder, self.settings = predictor, publisher, folder, settings
        self._seen: dict[Path, Stamp] = {}
        self._known: dict[Path, Known] = {}
        self._coded: dict[tuple[Path, Stamp], list[EncodedFrame]] = {}
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

    def run(self, asked: StopRequest) -> None:
        """Look until a signal or a file ``STOP`` asks to leave; a forecast that is being made is finished first."""
        while not asked():
            self.look(asked)
            until = time.monotonic() + self.settings.every_seconds
            while time.monotonic() < until and not asked():
                time.sleep(_NAP_SECONDS)
        self._write_health("stopped", why=asked.cause)
        logger.info("stopped: %s", asked.cause)

    def look(self, asked: StopRequest | None = None) -> int:
        """Look once: read what is new, make what is missing, remove what is old. Return how many were made."""
        self._take_in()
        made, again = 0, True
        while again and not (asked and asked()):
            again = False
            held = self._held()
            gaps: dict[datetime, str] = {}
            served = self._served(held)
            self._failed = {issue: said for issue, said in self._failed.items() if issue in served}
            for issue in served:
                if asked and asked():
                    break
                try:
                    chosen = self.predictor.inputs(list(held), issue)
                except DataError as gap:
                    if self.predictor.wanted.times(issue)[0] >= min(held):  # else the radar has just begun
                        gaps[issue] = str(gap)
                    continue
                signature = self._signature(chosen, held)
                if self._stands(issue, signature):
                    continue
                outcome = self._make(chosen, held, signature)
                made += outcome == "made"
                if outcome == "file":  # a file proved damaged, so that other frames serve now
                    again = True
                    break
            if not (asked and asked()):  # a look that was broken off has not seen all
                self._gaps = gaps
        self._prune()
        self._write_health("watching")
        return made

    def _take_in(self) -> None:
        """Look into files that are new or changed and no longer grow."""
        now_ns, listing = time.time_ns(), _listing(self.folder, self.settings.pattern)
        grown_ns = int(self.settings.every_seconds * 1e9)
        for path, stamp in listing.items():
            known = self._known.get(path)
            if known is not None and known.stamp == stamp:
                continue
            if self._seen.get(path) == stamp or now_ns - stamp.changed_ns > grown_ns:
                self._known[path] = self._looked_into(path, stamp)
        self._known = {path: known for path, known in self._known.items() if path in listing}
        self._seen = listing

    def _looked_into(self, path: Path, stamp: Stamp) -> Known:
        try:
            times = tuple(frame_times(path))
        except DataError as error:
            return self._set_aside(path, stamp, str(error))
        early = [moment for moment in times if moment > datetime.now(UTC) + _AHEAD]
        if early:
            return self._set_aside(path, stamp, f"{path} is of {early[0]:%Y-%m-%d %H:%M} UTC, in the future")
        return Known(stamp, times)

    def _set_aside(self, path: Path, stamp: Stamp, problem: str) -> Known:
        logger.warning("set aside until it changes: %s", problem)
        return Known(stamp, problem=problem)

    def _held(self) -> dict[datetime, Path]:
        """Return the file of every time; of two files of one time the newer."""
        held: dict[datetime, Path] = {}
        for path, known in sorted(self._known.items(), key=lambda item: item[1].stamp.changed_ns):
            held.update(dict.fromkeys(known.times, path))
        return held

    def _served(self, held: dict[datetime, Path]) -> list[datetime]:
        """Return the issue times that are served now, the newest first."""
        if not held:
            return []
        oldest = max(held) - timedelta(minutes=self.settings.late_minutes)
        served = sorted((moment for moment in held if moment >= oldest), reverse=True)
        return served[: self.settings.keep]

    def _signature(self, chosen: FrameSet, held: dict[datetime, Path]) -> str:
        """Return a hash of what decides a forecast: the input files, the weights, and how they are used."""
        files = [None if moment is None else [held[moment].name, *self._known[held[moment]].stamp]
                 for moment in chosen.frames]  # fmt: skip
        return hashlib.sha256(json.dumps([files, self.predictor.identity]).encode()).hexdigest()[:32]

    def _stands(self, issue: datetime, signature: str) -> bool:
        failed = self._failed.get(issue)
        return (failed is not None and failed[0] == signature) or self.publisher.signature(issue) == signature

    def _make(self, chosen: FrameSet, held: dict[datetime, Path], signature: str) -> str:
        """Make and write one forecast: ``made``, or ``file`` where a file proved damaged, or ``failed``."""
        issue = chosen.issue
        frames: dict[datetime, EncodedFrame] = {}
        for moment in filter(None, chosen.frames):
            path = held[moment]
            try:
                frames[moment] = self._frame(path, moment)
            except DataError as error:
                self._known[path] = self._set_aside(path, self._known[path].stamp, str(error))
                return "file"
        try:
            forecast = self.predictor.predict(frames, issue)
            said = {**forecast.provenance, SIGNATURE: signature}
            paths = self.publisher.publish(replace(forecast, provenance=said))
        except SimcastError as error:
            self._failed[issue] = (signature, str(error))
            logger.warning("no forecast for %s: %s", _text(issue), error)
            return "failed"
        except OSError as error:  # a full disk, say: tried again at the next look
            self._failed[issue] = ("", f"cannot be written: {error}")
            logger.warning("the forecast for %s cannot be written: %s", _text(issue), error)
            return "failed"
        self._failed.pop(issue, None)
        self._tell(issue, paths, held)
        return "made"

    def _frame(self, path: Path, moment: datetime) -> EncodedFrame:
        key = (path, self._known[path].stamp)
        if key not in self._coded:
            code = self.predictor.code
            self._coded[key] = [encode_frame(frame, code) for frame in read_frames(path, prefer=code.unit)]
            for old in list(self._coded)[: -2 * self.predictor.wanted.frames_in]:
                del self._coded[old]
        for frame in self._coded[key]:
            if frame.time == moment:
                return frame
        raise DataError(f"{path} no longer holds a frame of {_text(moment)}")

    def _tell(self, issue: datetime, paths: dict[str, Path], held: dict[datetime, Path]) -> None:
        arrived = self._known[held[issue]].stamp.changed_ns / 1e9 if issue in held else time.time()
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

    def _write_health(self, state: str, *, why: str = "") -> None:
        held = self._held()
        problems = [{"file": path.name, "problem": known.problem}
                    for path, known in sorted(self._known.items()) if known.problem]  # fmt: skip
        problems += [{"issue": _text(issue), "problem": said} for issue, said in sorted(self._gaps.items())]
        problems += [{"issue": _text(issue), "problem": said} for issue, (_, said) in sorted(self._failed.items())]
        said = {
            **self._health,
            "state": state,
            "why": why,
            "updated": _now(),
            "frames": len(held),
            "last_frame": _text(max(held)) if held else None,
            "problems": problems,
        }
        try:
            write_json(self.publisher.folder / HEALTH, said)
        except OSError as error:
            logger.warning("%s cannot be written: %s", HEALTH, error)


def _listing(folder: Path, pattern: str) -> dict[Path, Stamp]:
    """Return the files that are there, but for hidden ones and those that say they are not finished."""
    found = {}
    for path in folder.glob(pattern):
        if path.name.startswith(".") or path.suffix in _UNFINISHED:
            continue
        try:
            status = path.stat()
        except OSError:  # removed between listing and looking
            continue
        if path.is_file():
            found[path] = Stamp(status.st_size, status.st_mtime_ns)
    return found


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _now() -> str:
    return _text(datetime.now(UTC))
