"""The input frames of one forecast as one array, with missing pixels interpolated in time, and their provenance."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from simcast_hpc.config.text_files import printable
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding

from .choose_frames import FrameSet, interpolate, pixel_gaps, require_one_grid_and_unit
from .forecast_fields import Forecast, ObservedFrames

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class InputFrames:
    """The input frames of one forecast.

    Attributes:
        chosen: nominal times, and the time of each frame or None.
        frames: the frames that exist, ascending in time, on one grid and in one unit.
        codes: encoded values ``[T, H, W]``: uint8 (255 missing), or float32 in [0, 1] (NaN missing).
        bridged: number of pixels of each frame that were interpolated in time.
        code: encoding of the frames.
        earlier: nominal times and frames before the inputs, ascending, which only accumulations use.
    """

    chosen: FrameSet
    frames: list[EncodedFrame]
    codes: np.ndarray
    bridged: list[int]
    code: ModelEncoding
    earlier: tuple[tuple[datetime, EncodedFrame], ...] = ()

    @cached_property
    def missing(self) -> np.ndarray:
        """Missing pixels, bool ``[T, H, W]``."""
        return is_missing(self.codes)

    def observed(self) -> np.ndarray:
        """Return the last frame in the unit of the encoding, float32 ``[H, W]``, NaN where missing."""
        return self._decode(self.codes[-1])

    def observed_frames(self) -> ObservedFrames:
        """Return all frames for accumulations."""
        before = [frame for _, frame in self.earlier]
        are_means = all(one.interval_minutes is not None for one in (*before, *self.frames))
        codes = np.concatenate([np.stack([one.codes for one in before]), self.codes]) if before else self.codes
        times = (*(time for time, _ in self.earlier), *self.chosen.times)
        return ObservedFrames(codes, times, self._decode, are_means, self.chosen.history)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        physical = self.code.to_linear(self.code.physical(codes))
        self.code.make_physical(physical[None])
        return physical

    def provenance(self) -> dict[str, str]:
        """Return the files, the missing frames and the interpolated pixels, as text by attribute name."""
        sources: list[dict[str, Any]] = [
            {"time": f"{one.time:%Y-%m-%dT%H:%M:%SZ}", "file": printable(one.path.name)} for one in self.frames
        ]
        for source, one in zip(sources, self.frames, strict=True):
            source |= {} if one.interval_minutes is None else {"accumulation_minutes": one.interval_minutes}
            source |= {key: printable(str(one.metadata[key])) for key in ("quantity", "group") if key in one.metadata}
        bridged_times = ", ".join(f"{time:%Y-%m-%dT%H:%MZ}" for time in self.chosen.missing)
        bridged_pixels = [
            {"time": f"{time:%Y-%m-%dT%H:%MZ}", "pixels": count}
            for time, count in zip(self.chosen.times, self.bridged, strict=True)
            if count and time not in self.chosen.missing
        ]
        before = [
            {"time": f"{one.time:%Y-%m-%dT%H:%M:%SZ}", "file": printable(one.path.name)} for _, one in self.earlier
        ]
        return {
            **({"simcast_earlier_frames": json.dumps(before)} if before else {}),
            "simcast_inputs": json.dumps(sources),
            "simcast_bridged": bridged_times or "none",
            "simcast_bridged_pixels": json.dumps(bridged_pixels) if bridged_pixels else "none",
        }

    def forecast(
        self,
        step_minutes: float,
        values: np.ndarray | None,
        mean: np.ndarray | None,
        probability: np.ndarray | None,
        provenance: Mapping[str, str],
    ) -> Forecast:
        """Return the forecast with these fields, on the map and in the unit of the frames.

        Args:
            step_minutes: minutes between two lead times.
            values: float32 ``[M, T', H, W]`` in the unit of the frames, or None without members.
            mean: ensemble mean ``[T', H, W]``, or None.
            probability: probability of each threshold ``[K, T', H, W]`` in [0, 1], or None.
            provenance: text by attribute name, to which that of the frames is added.
        """
        return Forecast(
            self.chosen.issue,
            step_minutes,
            self.frames[0].grid,
            self.code.unit,
            self.code.no_echo_value(),
            self.observed(),
            self.code.thresholds(),
            values,
            mean,
            probability,
            {**provenance, **self.provenance()},
            inputs=self.observed_frames(),
            z_r=self.code.rate_relation,
        )


def stack_frames(
    frames: Mapping[datetime, EncodedFrame], chosen: FrameSet, code: ModelEncoding, *, bridge: int
) -> InputFrames:
    """Return the chosen frames as one array; pixels missing in at most ``bridge`` successive frames are interpolated.

    Earlier frames for accumulations are used up to the first one that differs in grid or unit.

    Raises:
        DataError: the inputs differ in grid or unit.
    """
    existing = [frames[time] for time in chosen.frames if time is not None]
    require_one_grid_and_unit(existing)
    absent = np.full_like(existing[0].codes, MISSING_CODE if existing[0].codes.dtype == np.uint8 else np.nan)
    codes = np.stack([absent if time is None else frames[time].codes for time in chosen.frames])
    earlier: list[tuple[datetime, EncodedFrame]] = []
    for time, moment in reversed(chosen.earlier):
        frame = frames[moment]
        if frame.unit != existing[0].unit or frame.grid.difference(existing[0].grid):
            logger.warning("accumulations begin after %s, which has another grid or unit", frame.path)
            break
        earlier.append((time, frame))
    return InputFrames(
        chosen, existing, codes, _bridge_pixels(codes, chosen, code, bridge), code, tuple(reversed(earlier))
    )


def is_missing(codes: np.ndarray) -> np.ndarray:
    """Return the missing pixels of encoded values, bool: 255 in uint8, NaN in floats."""
    return codes == MISSING_CODE if codes.dtype == np.uint8 else np.isnan(codes)


def _bridge_pixels(codes: np.ndarray, chosen: FrameSet, code: ModelEncoding, bridge: int) -> list[int]:
    """Interpolate missing pixels of codes ``[T, H, W]`` in time, in linear units, in place.

    Returns:
        The number of interpolated pixels of each frame.
    """
    bridged = [0] * len(codes)
    for before, after, pixels in pixel_gaps(is_missing(codes), bridge):
        earlier, later = (code.to_linear(code.physical(codes[k][pixels])) for k in (before, after))
        for between in range(before + 1, after):
            linear = interpolate(earlier, later, chosen.times[before : after + 1], between - before)
            codes[between][pixels] = code.encode(code.from_linear(linear))
            bridged[between] += int(pixels.sum())
    return bridged
