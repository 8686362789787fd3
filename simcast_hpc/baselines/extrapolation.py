"""Extrapolation: the last frame advected along the motion of the last frames, by pysteps.

Motion: Lucas-Kanade feature tracking, made dense by inverse distances (Bouguet 2001; pysteps ``dense_lucaskanade``), or
DARTS, a least-squares fit of the advection equation in Fourier space (Ruzanski, Chandrasekar and Wang 2011).
Advection: backward semi-Lagrangian (Germann and Zawadzki 2002; pysteps ``semilagrangian``), with the motion constant
in time and nothing growing or decaying.
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
from .intensity import PhysicalEncoding, identity

_INSTALL = "pip install -c constraints.txt -e '.[verify]'  (or: pip install pysteps opencv-python-headless)"
# pysteps' defaults suit radar domains of several hundred pixels. On a small grid they average all vectors into one.
_SMALL_GRID = 128
_SMALL_GRID_SETTINGS: dict[str, Any] = {
    "fd_kwargs": {"min_distance": 3, "block_size": 5},
    "lk_kwargs": {"winsize": (15, 15), "nr_levels": 2},
    "decl_scale": 4,
}


class Extrapolation(WindowBaseline):
    """Lucas-Kanade or DARTS motion and semi-Lagrangian advection.

    Motion is found on the codes, which rise with the logarithm of the rain as a tracker wants them. The field is
    advected in linear physical units (mm/h, kg/m2; dBZ as Z), because interpolation averages, and coded again: the
    forecast holds whole codes. What flows in over the edge, and pixels missing in the last frame, are forecast as
    0, no echo, so that the same pixels are scored as for a model; this costs extrapolation some skill at the inflow
    edge. Where no feature can be tracked the motion is 0 and the forecast is persistence.

    Args:
        encoding: between code and physical value, usually ``DatasetSpec.encoding``.
        motion_frames: how many of the last frames give the motion, 2 or more; DARTS takes all, 5 or more.
        method: ``lucas-kanade`` or ``darts``.
        cache: folder in which forecasts are kept.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the message has the line that installs them.
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
            raise ValueError(f"motion_frames={motion_frames}: motion needs at least 2 frames, 3 is usual")
        self.name = "extrapolation" if method == "lucas-kanade" else method
        self.min_frames = 2 if method == "lucas-kanade" else 5
        self.encoding, self.motion_frames, self.method = encoding, motion_frames, method
        self._track, self._advect = _pysteps_methods("LK" if method == "lucas-kanade" else "DARTS")

    def settings(self) -> dict[str, Any]:
        """Return what decides the forecast besides the frames."""
        return {
            "encoding": identity(self.encoding),
            "motion_frames": self.motion_frames,
            "pysteps": importlib.metadata.version("pysteps"),
            "version": 1,
        }

    def codes(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        """Return codes ``[frames_out, H, W]`` after the frames ``[T, H, W]``."""
        field = self._to_linear(window[-1])
        velocity = self.motion(window if self.method == "darts" else window[-self.motion_frames :])
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
        if self.method == "darts":
            # It takes fewer waves than half the pixels and half the frames, and no missing ones.
            most = (min(codes.shape[1:]) - 1) // 2 - 2
            waves = {"N_x": min(50, most), "N_y": min(50, most), "N_t": min(4, (len(codes) - 1) // 2)}
            velocity = self._track(np.nan_to_num(image), verbose=False, **waves)
        else:
            settings = _SMALL_GRID_SETTINGS if max(codes.shape[1:]) <= _SMALL_GRID else {}
            velocity = self._track(image, **settings)
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


def _pysteps_methods(motion_method: str) -> tuple[Any, Any]:
    try:
        # pysteps prints the place of its configuration file on import.
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module("cv2")
            motion = importlib.import_module("pysteps.motion")
            extrapolation = importlib.import_module("pysteps.extrapolation")
    except ImportError as error:
        raise ImportError(f"the extrapolation baseline needs pysteps and OpenCV ({error}); {_INSTALL}") from error
    return motion.get_method(motion_method), extrapolation.get_method("semilagrangian")
