"""A small radar of its own: description, frames as ODIM files, the same frames as an archive, issued forecasts."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import yaml

from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec
from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.forecast.cf_dataset import as_dataset
from simcast_hpc.forecast.forecast_files import stem_of, write_netcdf
from simcast_hpc.forecast.predictor import Forecast
from simcast_hpc.radar.frame_encoding import ModelEncoding
from simcast_hpc.radar.radar_frame import RadarGrid
from tests.archives import Row, write_catalog, write_file
from tests.radar.radar_files import LAEA, moment, write_odim

SIZE, FRAMES, FRAMES_IN, FRAMES_OUT = 32, 12, 3, 4
RAIN = {"kind": "decibel", "unit": "mm/h", "offset_db": -10.0, "step_db": 0.15, "first_code": 1, "floor": 0.1}
DBZ = {"kind": "linear", "unit": "dBZ", "gain": 0.5, "offset": -32.0, "zero_is_no_echo": True}
GRID = RadarGrid(LAEA, 2_640_000.0, -944_000.0, 1000.0, 1000.0, SIZE, SIZE)


def write_description(path: Path, *, encoding: dict | None = None, thresholds: tuple[float, ...] = (0.5, 2, 8)) -> Path:
    """Write the description of a radar, by default of rain rates with thresholds between two pixel values."""
    encoding = encoding or RAIN
    fields = {
        "name": "mine", "title": "my radar", "quantity": "rain rate", "encoding": encoding, "image_type": "rr",
        "folder": ".", "step_minutes": 5.0, "frames_per_event": FRAMES, "license": "CC BY 4.0",
        "grid": {"height": SIZE, "width": SIZE, "spacing_km": 1.0}, "citation": "none", "source": "test",
        "thresholds": {"values": list(thresholds), "unit": encoding["unit"]},
        "splits": {"kind": "single", "split": "test"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def storm_codes(frames: int = FRAMES, *, seed: int = 0) -> np.ndarray:
    """Return codes ``[T, H, W]`` of a moving storm, with a corner that no radar sees."""
    generator = np.random.default_rng(seed)
    row, column = np.mgrid[:SIZE, :SIZE]
    texture = generator.normal(0, 12, (SIZE, SIZE))
    codes = np.empty((frames, SIZE, SIZE), np.uint8)
    for number in range(frames):
        distance = np.hypot(row - 16 + 0.4 * number, column - 8 - 1.3 * number)
        field = 190 - 9 * distance + np.roll(texture, number, 1)
        codes[number] = np.where(field < 6, 0, field).clip(0, 230)
    codes[:, :3, :5] = 255
    return codes


def write_frames(folder: Path, codes: np.ndarray, spec: DatasetSpec, *, first: int = 0) -> list[Path]:
    """Write codes ``[T, H, W]`` as ODIM composites five minutes apart."""
    folder.mkdir(parents=True, exist_ok=True)
    quantity = "DBZH" if spec.encoding.unit == "dBZ" else "RATE"
    paths = []
    for number, frame in enumerate(codes, start=first):
        values = spec.encoding.decode(frame).astype(np.float64)
        path = folder / f"radar{number:03d}.h5"
        paths.append(write_odim(path, values, moment(number), quantity=quantity))
    return paths


def write_event(root: Path, codes: np.ndarray) -> Path:
    """Write the same codes as an archive of one event."""
    write_file(root / "frames.h5", np.moveaxis(codes[None], 1, -1), name="rr")
    rows = [Row("E0", 0, "frames.h5", "rr", f"{moment(0):%Y-%m-%d %H:%M:%S}")]
    write_catalog(root, rows)
    return root


def issue(
    folder: Path,
    spec: DatasetSpec,
    unit: np.ndarray,
    time: datetime,
    *,
    ensemble: bool = False,
    keep_members: bool = True,
    grid: RadarGrid = GRID,
    **provenance: str,
) -> Path:
    """Write a forecast of [0, 1] fields ``[M, T, H, W]`` as ``simcast predict`` does; without members only products."""
    code = ModelEncoding(spec, spec.step_minutes, spec.grid.spacing_km)
    linear = code.linear_of_forecast(unit.astype(np.float32))
    values = np.maximum(code.from_linear(linear), np.float32(code.no_echo_value()))
    thresholds = code.thresholds()
    mean = probability = None
    if ensemble:
        mean = np.maximum(code.from_linear(linear.mean(0)), np.float32(code.no_echo_value()))
        levels = code.to_linear(np.array(thresholds))
        probability = np.stack([(linear >= level).mean(0, dtype=np.float64) for level in levels]).astype(np.float32)
    forecast = Forecast(
        time, spec.step_minutes, grid, code.unit, code.no_echo_value(), values[0, 0], thresholds,
        values if keep_members else None, mean, probability,
        {"simcast_run": "mine", "simcast_data_description": spec.name, "simcast_version": "1", **provenance},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem_of(time)}.nc"
    write_netcdf(as_dataset(forecast), path)
    return path


def unit_of(codes: np.ndarray) -> np.ndarray:
    """Return codes as the [0, 1] field that models see."""
    import torch

    return code_to_unit(torch.from_numpy(codes)).numpy()


def spec_of(path: Path) -> DatasetSpec:
    return read_spec(str(path))


def issue_times(frames: int = FRAMES) -> list[tuple[int, datetime]]:
    """Return the number of the last input frame and the issue time of every window of an event."""
    numbers = range(FRAMES_IN - 1, frames - FRAMES_OUT)
    return [(number, moment(0) + timedelta(minutes=5 * number)) for number in numbers]
