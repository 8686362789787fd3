"""Extrapolation: the last frame advected along the motion of the last frames, by pysteps.

Motion: Lucas-Kanade feature tracking, made dense by inverse distances (Bouguet 2001; pysteps ``dense_lucaskanade``).
Advection: backward semi-Lagrangian (Germann and Zawadzki 2002; pysteps ``semilagrangian``), with the motion constant
in time and nothing growing or decaying.
"""

import contextlib
import importlib
import io
from typing import Any, Protocol

import numpy as np
import torch

from simcast_hpc.data.encoding import MISSING_CODE

from .frames import as_codes, checked_frames

_INSTALL = 'pip install "simcast-hpc[verify]"  (or: pip install pysteps opencv-python-headless)'
# pysteps' defaults suit radar domains of several hundred pixels. On a small grid they average all vectors into one.
_SMALL_GRID = 128
_SMALL_GRID_SETTINGS: dict[str, Any] = {
    "fd_kwargs": {"min_distance": 3, "block_size": 5},
    "lk_kwargs": {"winsize": (15, 15), "nr_levels": 2},
    "decl_scale": 4,
}


class PhysicalCode(Protocol):
    """What extrapolation asks of a data set's encoding (``DatasetSpec.encoding``)."""

    @property
    def unit(self) -> str:
        """Physical unit of the values, such as ``mm/h``, ``kg/m2`` or ``dBZ``."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return values in ``unit``; NaN where a uint8 code is missing."""
        ...

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Return uint8 codes of values in ``unit``, clipped to the codes that there are."""
        ...


class Extrapolation:
    """Lucas-Kanade motion and semi-Lagrangian advection.

    Motion is found on the codes, which rise with the logarithm of the rain as a tracker wants them. The field is
    advected in linear physical units (mm/h, kg/m2; dBZ as Z), because interpolation averages, and coded again: the
    forecast holds whole codes. What flows in over the edge, and pixels missing in the last frame, are forecast as
    0, no echo, so that the same pixels are scored as for a model; this costs extrapolation some skill at the inflow
    edge. Where no feature can be tracked the motion is 0 and the forecast is persistence.

    Args:
        encoding: between code and physical value, usually ``DatasetSpec.encoding``.
        motion_frames: how many of the last frames give the motion, 2 or more.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the message has the line that installs them.
        ValueError: ``motion_frames`` is below 2.
    """

    name = "extrapolation"

    def __init__(self, encoding: PhysicalCode, *, motion_frames: int = 3):
        if motion_frames < 2:
            raise ValueError(f"motion_frames={motion_frames}: motion needs at least 2 frames, 3 is usual")
        self.encoding, self.motion_frames = encoding, motion_frames
        self._lucas_kanade, self._advect = _pysteps_methods()

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` in [0, 1], whole codes / 255, on the frames' device.

        Args:
            frames: ``[B, T, H, W]``, T of 2 or more, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.

        Raises:
            ValueError: not ``[B, T, H, W]``, one frame only, or no frame to forecast.
            TypeError: frames are neither uint8 nor floating.
        """
        frames = checked_frames(frames, frames_out, at_least=2)
        codes = as_codes(frames[:, -self.motion_frames :])
        forecast = np.stack([self._extrapolate(window, frames_out) for window in codes])
        # Correctly rounded on the host, as code_to_unit does it, then moved.
        return torch.from_numpy(forecast.astype(np.float32) / np.float32(255.0)).to(frames.device)

    def _extrapolate(self, codes: np.ndarray, frames_out: int) -> np.ndarray:
        """Return codes ``[frames_out, H, W]`` after the frames ``[T, H, W]``."""
        field = self._to_linear(codes[-1])
        velocity = self.motion(codes)
        # "constant" would blank the whole edge row at a hundredth of a pixel of inflow; this blends over one pixel.
        advected = self._advect(field, velocity, frames_out, outval=0.0, map_coordinates_mode="grid-constant")
        return np.minimum(self._from_linear(np.maximum(advected, 0.0)), MISSING_CODE - 1)

    def motion(self, codes: np.ndarray) -> np.ndarray:
        """Return the motion ``[2, H, W]`` (x, y) in pixels a frame of codes ``[T, H, W]``; 0 if none is found."""
        still = np.zeros((2, *codes.shape[1:]))
        image = np.where(codes == MISSING_CODE, np.nan, codes.astype(np.float64))
        echoes = np.nan_to_num(image).reshape(len(codes), -1).max(axis=1)
        if not echoes.all():
            return still
        settings = _SMALL_GRID_SETTINGS if max(codes.shape[1:]) <= _SMALL_GRID else {}
        velocity = self._lucas_kanade(image, **settings)
        return velocity if np.isfinite(velocity).all() else still

    def _to_linear(self, codes: np.ndarray) -> np.ndarray:
        values = np.asarray(self.encoding.decode(codes), dtype=np.float64)
        linear = 10.0 ** (values / 10.0) if self.encoding.unit == "dBZ" else values
        return np.where((codes == MISSING_CODE) | ~np.isfinite(linear), 0.0, linear)

    def _from_linear(self, linear: np.ndarray) -> np.ndarray:
        if self.encoding.unit == "dBZ":
            # Far below every radar's first code; the logarithm of 0 is none.
            linear = 10.0 * np.log10(np.maximum(linear, 1e-10))
        return self.encoding.encode(linear)


def _pysteps_methods() -> tuple[Any, Any]:
    try:
        # pysteps prints the place of its configuration file on import.
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module("cv2")
            motion = importlib.import_module("pysteps.motion")
            extrapolation = importlib.import_module("pysteps.extrapolation")
    except ImportError as error:
        raise ImportError(f"the extrapolation baseline needs pysteps and OpenCV ({error}); {_INSTALL}") from error
    return motion.get_method("LK"), extrapolation.get_method("semilagrangian")
