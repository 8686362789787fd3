"""Extrapolation (Lagrangian persistence) with pysteps: optical flow of the last frames, semi-Lagrangian advection.

The baseline ``extrapolation`` needs no pysteps; see :mod:`simcast_hpc.baselines.extrapolation`.

Optical flow: Lucas-Kanade feature tracking, interpolated with inverse distances (Bouguet 2001; pysteps
``dense_lucaskanade``), or DARTS, a least-squares fit of the advection equation in Fourier space (Ruzanski,
Chandrasekar and Wang 2011). Advection: backward semi-Lagrangian (Germann and Zawadzki 2002; pysteps
``semilagrangian``), with constant motion and without growth or decay.
"""

import contextlib
import importlib
import importlib.metadata
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simcast_hpc.data.encoding import MISSING_CODE

from .baseline_windows import WindowBaseline
from .intensity import PhysicalEncoding, encoding_hash

_INSTALL = "pip install -c constraints.txt -e '.[verify]'  (or: pip install pysteps opencv-python-headless)"
# The defaults of pysteps are for domains of several hundred pixels; on a small grid they average all motion vectors.
_SMALL_GRID = 128
_SMALL_GRID_SETTINGS: dict[str, Any] = {
    "fd_kwargs": {"min_distance": 3, "block_size": 5},
    "lk_kwargs": {"winsize": (15, 15), "nr_levels": 2},
    "decl_scale": 4,
}


class PystepsExtrapolation(WindowBaseline):
    """Lucas-Kanade or DARTS optical flow and semi-Lagrangian advection.

    The optical flow is computed on the codes, which are roughly logarithmic in the rain rate. The field is advected in
    linear physical units (mm/h, kg/m2; dBZ as Z), because interpolation averages, and then encoded. Inflow from
    outside the domain and pixels that are missing in the last frame are forecast as 0 (no echo), so that the same
    pixels are scored as for a model; this costs some skill at the inflow boundary. If no feature can be tracked, the
    motion is 0 and the forecast is persistence.

    Args:
        encoding: encoding of the pixel values, usually ``DatasetSpec.encoding``.
        motion_frames: number of last frames for the optical flow, at least 2; DARTS uses all frames, at least 5.
        method: ``lucas-kanade`` or ``darts``.
        cache: folder in which forecasts are cached.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the message contains the install command.
        ValueError: ``motion_frames`` is below 2.
    """

    min_frames = 2

    def __init__(
        self,
        encoding: PhysicalEncoding,
        *,
        motion_frames: int = 3,
        method: Literal["lucas-kanade", "darts"] = "lucas-kanade",
        cache: Path | None = None,
    ):
        super().__init__(cache=cache)
        if motion_frames < 2:
            raise ValueError(f"motion_frames={motion_frames} must be at least 2 (3 is usual)")
        self.name = "pysteps-lk" if method == "lucas-kanade" else method
        self.min_frames = 2 if method == "lucas-kanade" else 5
        self.encoding, self.motion_frames, self.method = encoding, motion_frames, method
        self._track, self._advect = _pysteps_methods("LK" if method == "lucas-kanade" else "DARTS")

    def settings(self) -> dict[str, Any]:
        """Return the settings on which the forecast depends."""
        return {
            "encoding": encoding_hash(self.encoding),
            "motion_frames": self.motion_frames,
            "pysteps": importlib.metadata.version("pysteps"),
            "version": 1,
        }

    def forecast_window(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        """Return the forecast ``[frames_out, H, W]`` of the frames ``[T, H, W]``, uint8."""
        field = self._to_linear(window[-1])
        velocity = self.motion(window if self.method == "darts" else window[-self.motion_frames :])
        # "constant" would set the edge row to 0 at a hundredth of a pixel of inflow; this mode blends over one pixel.
        advected = self._advect(field, velocity, frames_out, outval=0.0, map_coordinates_mode="grid-constant")
        return np.minimum(self._from_linear(np.maximum(advected, 0.0)), MISSING_CODE - 1)

    def motion(self, codes: np.ndarray) -> np.ndarray:
        """Return the motion ``[2, H, W]`` (x, y) in pixels per frame of codes ``[T, H, W]``; 0 if undetermined."""
        no_motion = np.zeros((2, *codes.shape[1:]))
        image = np.where(codes == MISSING_CODE, np.nan, codes.astype(np.float64))
        echoes = np.nan_to_num(image).reshape(len(codes), -1).max(axis=1)
        if not echoes.all():
            return no_motion
        if self.method == "darts":
            # DARTS needs fewer waves than half the pixels and half the frames, and no missing pixels.
            max_waves = (min(codes.shape[1:]) - 1) // 2 - 2
            waves = {"N_x": min(50, max_waves), "N_y": min(50, max_waves), "N_t": min(4, (len(codes) - 1) // 2)}
            velocity = self._track(np.nan_to_num(image), verbose=False, **waves)
        else:
            settings = _SMALL_GRID_SETTINGS if max(codes.shape[1:]) <= _SMALL_GRID else {}
            velocity = self._track(image, **settings)
        return velocity if np.isfinite(velocity).all() else no_motion

    def _to_linear(self, codes: np.ndarray) -> np.ndarray:
        values = np.asarray(self.encoding.decode(codes), dtype=np.float64)
        linear = 10.0 ** (values / 10.0) if self.encoding.unit == "dBZ" else values
        return np.where((codes == MISSING_CODE) | ~np.isfinite(linear), 0.0, linear)

    def _from_linear(self, linear: np.ndarray) -> np.ndarray:
        if self.encoding.unit == "dBZ":
            # 1e-10 is far below the first code of any radar and avoids log10(0).
            linear = 10.0 * np.log10(np.maximum(linear, 1e-10))
        return self.encoding.encode(linear)


def _pysteps_methods(motion_method: str) -> tuple[Any, Any]:
    try:
        # pysteps prints the path of its configuration file on import.
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module("cv2")
            motion = importlib.import_module("pysteps.motion")
            extrapolation = importlib.import_module("pysteps.extrapolation")
    except ImportError as error:
        raise ImportError(f"the baselines of pysteps need pysteps and OpenCV ({error}); {_INSTALL}") from error
    return motion.get_method(motion_method), extrapolation.get_method("semilagrangian")
