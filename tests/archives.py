"""Small archives in SEVIR's layout, and configurations of small runs on them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.torch import save_file

from simcast_hpc.config import FORECASTING, TrainConfig, from_mapping, to_yaml
from simcast_hpc.data.archive_windows import ArchiveSource
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.models import build_model
from simcast_hpc.storage.run_directory import RunDirectory, file_hash

FILE = "vil/2018/storms.h5"
COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")


@dataclass(frozen=True)
class Row:
    """A row of a catalog."""

    id: str
    file_index: int | str = 0
    file_name: str = FILE
    img_type: str = "vil"
    time_utc: str = "2018-06-01 12:00:00"
    pct_missing: str = "0.0"


def write_catalog(root: Path, rows: Sequence[Row], *, columns: Sequence[str] = COLUMNS) -> None:
    """Write ``CATALOG.csv`` with the given columns."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "CATALOG.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[getattr(row, column) for column in columns] for row in rows])


def write_file(path: Path, stored: np.ndarray, *, name: str = "vil") -> None:
    """Write an HDF5 file with one dataset, ``[N, H, W, T]`` for a valid archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=stored)


def random_codes(events: int, frames: int, *, size: int = 16, seed: int = 0, missing: float = 0.0) -> np.ndarray:
    """Return random uint8 codes ``[N, T, H, W]`` below 255, with a fraction ``missing`` of pixels 255."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 255, (events, frames, size, size), dtype=np.uint8)
    codes[generator.random(codes.shape) < missing] = 255
    return codes


def make_archive(root: Path, codes: np.ndarray, *, rows: Sequence[Row] | None = None) -> Path:
    """Write an archive for the description ``synthetic``: one file, by default one training event per row of codes."""
    write_file(root / "data" / FILE, np.moveaxis(codes, 1, -1))
    write_catalog(root, rows or [Row(f"E{number:03d}", number) for number in range(len(codes))])
    return root


def open_archive(root: Path, **options: Any) -> ArchiveSource:
    """Open the training windows of an archive of :func:`make_archive`."""
    return ArchiveSource(
        read_spec("synthetic"), root, **({"split": "train", "frames": 5, "window_stride": 2} | options)
    )


def tiny_config(run_dir: Path, **overrides: Any) -> TrainConfig:
    """Return the configuration of a small SimVP: 3 frames in, 4 out, teacher 2, fp32, with ``overrides``."""
    sections: dict[str, Any] = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "stage": "direct",
        "seed": 5,
        "max_steps": 4,
        "data": {"dataset": "synthetic", "window_stride": 2},
        "sequence": {"frames_in": 3, "frames_out": 4, "teacher_frames_out": 2},
        "model": {
            "hidden_spatial": 4,
            "hidden_temporal": 8,
            "temporal_blocks": 2,
            "inception_kernels": [3, 5],
            "groups": 2,
        },
        "batch": {"global_size": 4, "micro_size": 2},
        "engine": {"precision": "fp32"},
        "validation": {"every_steps": 0, "export": "last"},
    }
    if "stage" in overrides and overrides["stage"] not in FORECASTING:
        del sections["model"], sections["validation"]
    return from_mapping(TrainConfig, sections | overrides)


def write_trained(config: TrainConfig) -> Path:
    """Write a finished run with random weights to ``config.run_dir``, and return it."""
    run = RunDirectory(config.run_dir)
    run.weights.parent.mkdir(parents=True)
    run.config.write_text(to_yaml(config), encoding="utf-8")
    network = build_model(config.model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)
    save_file(network.state_dict(), run.weights)
    run.finish(config.science(), steps=config.max_steps, weights=file_hash(run.weights))
    return config.run_dir
