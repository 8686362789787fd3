"""Descriptions of radar frames that belong to no data set: encoding and thresholds by unit, cadence by times.

A forecast without a model needs no encoding of training data: frames stay unrounded, in their own unit and pixels.
"""

import itertools
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import DatasetSpec, PixelGrid, SingleSplit, Thresholds, read_spec
from simcast_hpc.data.encoding import Decibel, Encoding, Linear, SevirVil

from .frame_encoding import ModelEncoding
from .radar_frame import RadarGrid, Unit

_NAMES = {"dBZ": "frames-dbz", "mm/h": "frames-rain-rate", "kg/m^2": "frames-vil"}
_QUANTITIES = {"dBZ": "reflectivity", "mm/h": "rain rate", "kg/m^2": "vertically integrated liquid"}
_ENCODINGS: dict[str, Encoding] = {
    "dBZ": Linear(unit="dBZ", gain=0.5, offset=-32.0, zero_is_no_echo=True),
    "mm/h": Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, first_code=1, floor=0.1),
    "kg/m^2": SevirVil(),
}
_THRESHOLDS = {
    "dBZ": (20.0, 30.0, 35.0, 40.0, 45.0),
    "mm/h": (0.5, 2.0, 5.0, 10.0, 30.0),
    "kg/m^2": (0.5, 3.0, 6.0, 12.0, 32.0),
}
# A cadence is a multiple of half a minute if it is within 5 % of one: radars scan with some seconds of jitter.
_CADENCE_MINUTES, _CADENCE_TOLERANCE = 0.5, 0.05


def infer_step_minutes(times: Iterable[datetime]) -> float:
    """Return the cadence of frames: the median difference of successive times, rounded to half a minute if near.

    Raises:
        ConfigError: there are fewer than two times.
    """
    ordered = sorted(set(times))
    steps = [(later - earlier).total_seconds() / 60 for earlier, later in itertools.pairwise(ordered)]
    if not steps:
        raise ConfigError(
            f"the time step cannot be inferred from {len(ordered)} frames; give --step MINUTES, for example --step 5"
        )
    median = float(np.median(steps))
    near = _CADENCE_MINUTES * round(median / _CADENCE_MINUTES)
    return near if near and abs(near - median) <= _CADENCE_TOLERANCE * median else median


def spec_of_frames(unit: Unit, shape: tuple[int, int], spacing_km: float, *, step_minutes: float) -> DatasetSpec:
    """Return the description of frames of this unit, shape (height, width) and pixel size in km."""
    return DatasetSpec(
        name=_NAMES[unit],
        title=f"Radar frames in {unit}",
        quantity=_QUANTITIES[unit],
        encoding=_ENCODINGS[unit],
        image_type="frames",
        folder=".",
        step_minutes=step_minutes,
        frames_per_event=None,
        grid=PixelGrid(height=shape[0], width=shape[1], spacing_km=spacing_km),
        thresholds=Thresholds(values=_THRESHOLDS[unit], unit=unit),
        splits=SingleSplit(kind="single", split="test"),
        license="not given",
        citation="not given",
        source="radar files",
    )


def is_of_frames(spec: DatasetSpec) -> bool:
    """Return whether a description belongs to no data set, but is that of :func:`spec_of_frames`."""
    return spec.name in _NAMES.values()


def encoding_of_frames(unit: Unit, grid: RadarGrid, *, step_minutes: float, **reading: Any) -> ModelEncoding:
    """Return an encoding that keeps frames in their unit, with their pixels, unrounded.

    Args:
        unit: of the frames.
        grid: of the frames.
        step_minutes: cadence of the forecast.
        reading: fields of :class:`ModelEncoding`.
    """
    spec = spec_of_frames(unit, (grid.height, grid.width), grid.spacing_km, step_minutes=step_minutes)
    return ModelEncoding(spec, step_minutes, grid.spacing_km, **{**reading, "any_spacing": True, "rounded": False})


def encoding_of_description(name_or_path: str, *, step_minutes: float | None = None, **reading: Any) -> ModelEncoding:
    """Return the encoding of a data set description: unit, codes, pixel spacing, and its step without ``step_minutes``.

    Raises:
        ConfigError: the description cannot be read, or its unit is not that of a forecast.
    """
    spec = read_spec(name_or_path)
    code = ModelEncoding(spec, step_minutes or spec.step_minutes, spec.grid.spacing_km, **reading)
    assert code.unit  # raises an error for other units
    return code
