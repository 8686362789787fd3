"""Log-normal texture of rain: several wavelengths with different lifetimes, advected by the flow of each pixel."""

import numpy as np

from .wind import BOX, Flow

_LATTICE = 128
_POINTS_PER_WAVE = 8
_WAVELENGTHS = (24.0, 12.0, 6.0, 3.0, 1.5, 0.75, 0.375)
_AMPLITUDES = (0.42, 0.32, 0.21, 0.11, 0.09, 0.07, 0.06)
_LIFETIMES = (36.0, 26.0, 16.0, 10.0, 7.0, 5.0, 4.0)


class Texture:
    """Gaussian texture of several wavelengths, each the sum of two overlapping generations, advected by the flow.

    The weight of a generation is the sine of its age, that of the other one the cosine, so that the variance is
    constant. Each generation starts undeformed, which limits the deformation by the flow.
    """

    def __init__(self, random: np.random.Generator, size: int, frames: int):
        self.scale = size / BOX
        kept = [number for number, wave in enumerate(_WAVELENGTHS) if number < 3 or wave * self.scale >= 3]
        pixel = ((np.arange(size) + 0.5) / self.scale).astype(np.float32)
        self.rows, self.columns = np.meshgrid(pixel, pixel, indexing="ij")
        lattices, phases, origins = [], [], []
        for number in kept:
            lattices.append(_corners(_band_pass(random)))
            phases.append(random.uniform(0, 1))
            generations = int(frames / _LIFETIMES[number]) + 3
            origins.append(random.uniform(0, _LATTICE, (2, generations, 2)).astype(np.float32))
        self.lattices, self.origins = lattices, origins
        self.phases, self.lives = np.array(phases), np.array(_LIFETIMES)[kept]
        self.moved = np.zeros((size, size, len(kept), 2, 2), np.float32)

    def _ages(self, time: int) -> np.ndarray:
        """Return the ages of the two generations per wavelength in lifetimes, ``[wavelengths, 2]``."""
        return (time / self.lives + self.phases)[:, None] + np.array([0.0, 0.5])

    def advect(self, flow: Flow, time: int) -> None:
        """Advect the texture from frame ``time - 1`` to ``time`` by the flow of each pixel."""
        v, u = flow.at(self.rows, self.columns, time - 0.5)
        v, u = flow.at(self.rows - v / 2, self.columns - u / 2, time - 0.5)
        y, x = (self.rows - v) * self.scale - 0.5, (self.columns - u) * self.scale - 0.5
        sources = _interpolate(self.moved.reshape(*v.shape, -1), y, x).reshape(self.moved.shape)
        self.moved = sources - np.stack([v, u], axis=-1)[:, :, None, None]
        self.moved[:, :, np.floor(self._ages(time)) > np.floor(self._ages(time - 1))] = 0

    def at(self, time: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum of the two longest wavelengths and the sum of the others, each ``[H, W]``."""
        coarse, fine = np.zeros_like(self.rows), np.zeros_like(self.rows)
        for number, ages in enumerate(self._ages(time)):
            weights = (_AMPLITUDES[number] * np.sin(np.pi * (ages % 1))).astype(np.float32)
            start = self.origins[number][[0, 1], ages.astype(int)][:, :, None, None]
            step = _WAVELENGTHS[number] / _POINTS_PER_WAVE
            y = (self.rows + self.moved[..., number, :, 0].transpose(2, 0, 1)) / step + start[:, 0]
            x = (self.columns + self.moved[..., number, :, 1].transpose(2, 0, 1)) / step + start[:, 1]
            generations = _interpolate_periodic(self.lattices[number], y, x) * weights[:, None, None]
            total = coarse if number < 2 else fine
            total += generations[0] + generations[1]
        return coarse, fine


def _band_pass(random: np.random.Generator) -> np.ndarray:
    """Return a periodic, isotropic Gaussian field around one wavelength, with variance 1."""
    wave = np.hypot(np.fft.fftfreq(_LATTICE)[:, None], np.fft.rfftfreq(_LATTICE)) * _POINTS_PER_WAVE
    ring = np.exp(-(np.log(np.maximum(wave, 1e-6)) ** 2) / (2 * 0.35**2))
    field = np.fft.irfft2(np.fft.rfft2(random.standard_normal((_LATTICE, _LATTICE))) * ring, s=(_LATTICE, _LATTICE))
    return (field / field.std()).astype(np.float32)


def _interpolate(fields: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate ``fields [H, W, N]`` bilinearly at positions in pixels, clipped to the border: ``[H, W, N]``."""
    height, width, count = fields.shape
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = np.minimum(np.floor(y), height - 2), np.minimum(np.floor(x), width - 2)
    down, right = (y - top)[..., None], (x - left)[..., None]
    flat, corner = fields.reshape(-1, count), (top * width + left).astype(np.int32)
    upper = flat.take(corner, axis=0) * (1 - right) + flat.take(corner + 1, axis=0) * right
    lower = flat.take(corner + width, axis=0) * (1 - right) + flat.take(corner + width + 1, axis=0) * right
    return upper + (lower - upper) * down


def _corners(lattice: np.ndarray) -> np.ndarray:
    """Pack each lattice point with its three neighbors, so that an interpolation needs one gather."""
    right = np.roll(lattice, -1, axis=1)
    return np.stack([lattice, right, np.roll(lattice, -1, axis=0), np.roll(right, -1, axis=0)], axis=-1)


def _interpolate_periodic(corners: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate ``corners [L, L, 4]`` bilinearly at positions in lattice points, periodically."""
    top, left = np.floor(y), np.floor(x)
    down, right = y - top, x - left
    index = (top.astype(np.int32) & _LATTICE - 1) * _LATTICE + (left.astype(np.int32) & _LATTICE - 1)
    four = corners.reshape(-1, 4).take(index, axis=0)
    upper = four[..., 0] + (four[..., 1] - four[..., 0]) * right
    lower = four[..., 2] + (four[..., 3] - four[..., 2]) * right
    return upper + (lower - upper) * down
