"""Watched folders of the tests: frames of a storm, delivery by renames, and watchers of a small model."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.predictor import Predictor
from simcast_hpc.forecast.watch_folder import FolderWatcher, WatchSettings
from simcast_hpc.forecast.watch_health import HEALTH
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import encoding_of_run
from tests.radar.radar_files import moment, storm, write_cf

FRAMES_IN = 3


def write_frame(path: Path, number: int, field: np.ndarray | None = None) -> Path:
    """Write a field in dBZ, minus infinity where there is no echo, as the frame of a number."""
    field = storm(number) if field is None else field
    stored = np.nan_to_num(field[None], nan=np.nan, neginf=-32.0).astype(np.float32)
    return write_cf(path, stored, [moment(number)], name="equivalent_reflectivity_factor", units="dBZ", undetect=-32.0)


def deliver(path: Path, folder: Path) -> None:
    """Copy a frame into the watched folder by a rename, as transfer programs do."""
    partial = folder / f".{path.name}"
    shutil.copyfile(path, partial)
    partial.rename(folder / path.name)


def issues_of(out: Path) -> set[datetime]:
    return set(Publisher(out, ("nc",)).issues())


def health(out: Path) -> dict[str, Any]:
    return json.loads((out / HEALTH).read_text(encoding="utf-8"))


def make_watcher(model: Path, folder: Path, out: Path, *, bridge: int = 0, **settings: Any) -> FolderWatcher:
    trained = load_trained(model)
    code = encoding_of_run(trained.config.data)
    predictor = Predictor(trained, code, FrameRequest(FRAMES_IN, code.step_minutes, bridge), (32, 32), 8)
    return FolderWatcher(predictor, Publisher(out, ("nc",)), folder, WatchSettings(every_seconds=0.0, **settings))
