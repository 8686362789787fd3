"""Optical flow of radar frames: multi-scale Lucas-Kanade with Gaussian windows, batched and masked.

Every pair of successive frames is warped half a step toward its middle with the current motion, and a linear
least-squares fit of the remaining difference in a Gaussian window gives the increment (Lucas and Kanade 1981, with
image pyramids as by Bouguet 2001). All pairs share one motion field. Motion is fitted from coarse to fine images on a
grid of cells a few times smaller than the window, so that wide windows are cheap. Where a window contains little
gradient, the motion tends to that of its surroundings, and far from all echoes to the mean motion of the field.

All loops have fixed numbers of iterations: the result depends on the pixel values only through arithmetic, which
``torch.export``, ONNX and CUDA graphs can record.

The motion of a sample is bitwise identical alone and in any batch: every operation is elementwise, or sums its terms in
an order that does not depend on the batch. Convolutions, matmuls and reductions such as ``mean`` choose their order by
the shape of the batch, and the least-squares fit amplifies the difference. Programs that are captured on a GPU use
convolutions: their motion differs in the last bits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import in_fp32

# Last pairs of frames to which the motion is fitted.
_MAX_PAIRS = 3
# Shorter side of the coarsest image in pixels, at least.
_COARSEST = 12
# Standard deviation of the window, as fraction of the shorter side, and its minimum in pixels.
_WINDOW_FRACTION = 1 / 12
_MIN_WINDOW = 2.0
# Standard deviation in pixels of the smoothing before gradients are computed; more removes small cells.
_SMOOTHING = 0.6
_ITERATIONS = 4
# Regularization toward the motion of the surroundings, as fraction of the mean squared gradient of the field; the
# standard deviation of their window in those of the window; and the weight of the mean motion in them.
_REGULARIZATION = 0.2
_SURROUNDINGS = 2.0
_MEAN_WEIGHT = 0.1
# Largest increment of an iteration in pixels of its pyramid level, and largest motion as fraction of the shorter side.
_MAX_INCREMENT = 2.0
_MAX_MOTION_FRACTION = 1 / 4
_EPSILON = 1e-8


def estimate_motion(frames: Tensor, valid: Tensor | None = None, *, side: int | None = None) -> Tensor:
    """Return the motion ``[B, 2, H, W]`` (y, x) of the last frames in pixels per frame, float32.

    The motion has no gradient with respect to the frames. It is bounded by a quarter of the shorter side per frame,
    and 0 for a single frame and for frames without echoes.

    Args:
        frames: ``[B, T, H, W]`` in [0, 1], oldest first; the last four frames are used.
        valid: bool ``[B, T, H, W]``, False where a pixel is missing; missing pixels do not influence the motion.
        side: pixels to which window and largest motion are proportional, instead of the shorter side of the frames: for
            a domain, the shorter side of its tiles.

    Raises:
        TypeError: ``frames`` is not floating, or ``valid`` is not bool.
        ValueError: ``frames`` does not have four axes or has no frame, or ``valid`` has another shape.
    """
    check_frames(frames, valid)
    batch, steps, height, width = frames.shape
    if steps == 1:
        return frames.new_zeros((batch, 2, height, width), dtype=torch.float32)
    frames = frames[:, -_MAX_PAIRS - 1 :].detach().float()
    weight = torch.ones_like(frames)
    if valid is not None:
        valid = valid[:, -_MAX_PAIRS - 1 :]
        frames, weight = frames.where(valid, 0.0), valid.float()
    with in_fp32(frames):
        return _coarse_to_fine(frames, weight, side or min(height, width))


def check_frames(frames: Tensor, valid: Tensor | None) -> None:
    """Check that ``frames`` is floating, ``[B, T, H, W]`` with T > 0, and ``valid`` None or of the same shape.

    Raises:
        TypeError: ``frames`` is not floating, or ``valid`` is not bool.
        ValueError: a wrong shape.
    """
    if frames.dim() != 4 or not frames.shape[1]:
        raise ValueError(f"frames must have shape [B, T, H, W] with T of at least 1, got {tuple(frames.shape)}")
    if not frames.is_floating_point():
        raise TypeError(f"frames have dtype {frames.dtype}; divide uint8 values by 255")
    if valid is not None and valid.dtype != torch.bool:
        raise TypeError(f"valid has dtype {valid.dtype}; give bool, False where a pixel is missing")
    if valid is not None and valid.shape != frames.shape:
        raise ValueError(f"valid must have the shape of frames, {tuple(frames.shape)}, got {tuple(valid.shape)}")


def sample_at(field: Tensor, displacement: Tensor, *, outside: str = "zeros") -> Tensor:
    """Interpolate a field linearly at displaced pixels: ``[N, C, H, W]``, ``[N, 2, H, W]`` -> ``[N, C, H, W]``.

    Args:
        field: values at the pixels.
        displacement: (y, x) in pixels from each pixel to the place where the field is interpolated.
        outside: value outside the grid: ``zeros``, blended in over one pixel, or ``border``, the nearest pixel.
    """
    height, width = field.shape[-2:]
    y = torch.arange(height, dtype=field.dtype, device=field.device)[:, None] + displacement[:, 0]
    x = torch.arange(width, dtype=field.dtype, device=field.device) + displacement[:, 1]
    # grid_sample takes x before y, with -1 and 1 at the outer edges of the first and last pixel.
    places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(field, places, mode="bilinear", padding_mode=outside, align_corners=False)


def _coarse_to_fine(frames: Tensor, weight: Tensor, side: int) -> Tensor:
    """Return the motion ``[B, 2, H, W]`` of frames ``[B, P + 1, H, W]`` with weights 0 (missing) or 1."""
    height, width = frames.shape[-2:]
    window = max(side * _WINDOW_FRACTION, _MIN_WINDOW)
    levels = max(side // _COARSEST, 1).bit_length() - 1
    smallest_cell = 2 ** (max(int(window / 2), 1).bit_length() - 1)

    # 1. Image pyramid, padded with missing pixels to a multiple of the coarsest pixel and to two pixels
    padding = (0, max(-width % 2**levels, 2 - width), 0, max(-height % 2**levels, 2 - height))
    weight = F.pad(weight, padding)
    images = [(F.pad(frames, padding) * weight, weight)]
    for _ in range(levels):
        image, covered = images[-1]
        images.append((F.avg_pool2d(image, 2), F.avg_pool2d(covered, 2)))

    # 2. Mean motion at the coarsest level, local motion at all levels
    limit = side * _MAX_MOTION_FRACTION
    padded_height, padded_width = weight.shape[-2:]
    motion = frames.new_zeros((frames.shape[0], 2, 1, 1))
    for level in range(levels, -1, -1):
        image, weight = images[level]
        smooth = _smooth(image, _SMOOTHING) / _smooth(weight, _SMOOTHING).clamp(min=_EPSILON)
        cell = max(smallest_cell, 2**level)
        motion = _resize(motion, (padded_height // cell, padded_width // cell))
        passes = [None] * _ITERATIONS if level == levels else []
        for sigma in passes + [window / cell] * _ITERATIONS:
            motion = motion + _increment(smooth, weight, motion, 2**level, sigma)
            motion = motion.clamp(-limit, limit)
    return _resize(motion, (padded_height, padded_width))[..., :height, :width]


def _increment(smooth: Tensor, weight: Tensor, motion: Tensor, pixel: int, sigma: float | None) -> Tensor:
    """Return the least-squares increment ``[B, 2, h, w]`` of the motion on the grid of cells, in full-size pixels.

    Args:
        smooth: frames ``[B, P + 1, H, W]`` of a pyramid level.
        weight: weights of its pixels.
        motion: ``[B, 2, h, w]`` in full-size pixels.
        pixel: pixel size of the level in full-size pixels.
        sigma: standard deviation of the window in cells; None for the whole field.
    """
    batch, steps, height, width = smooth.shape
    pairs = steps - 1
    cell = height // motion.shape[-2]

    # 1. Warp both frames of a pair to the middle
    half = _resize(motion / pixel, (height, width)) / 2
    half = half.repeat_interleave(pairs, dim=0)
    stacked = torch.stack([smooth, weight], dim=2)
    earlier = sample_at(stacked[:, :-1].reshape(-1, 2, height, width), -half, outside="border")
    later = sample_at(stacked[:, 1:].reshape(-1, 2, height, width), half, outside="border")
    middle = (earlier[:, 0] + later[:, 0]) / 2
    difference = later[:, 0] - earlier[:, 0]
    dy = F.pad((middle[:, 2:] - middle[:, :-2]) / 2, (0, 0, 1, 1))
    dx = F.pad((middle[:, :, 2:] - middle[:, :, :-2]) / 2, (1, 1))

    # 2. Normal equations, summed over pairs and windows
    terms = torch.stack([dy * dy, dy * dx, dx * dx, dy * difference, dx * difference], dim=1)
    terms = terms * (earlier[:, 1] * later[:, 1])[:, None]
    of_pairs = terms.reshape(batch, pairs, 5, height, width).unbind(dim=1)
    terms = F.avg_pool2d(sum(of_pairs[1:], of_pairs[0]) / pairs, cell)
    mean = _mean_of_field(terms)
    terms = mean if sigma is None else _smooth(terms, sigma)
    yy, yx, xx, yt, xt = terms.unbind(dim=1)

    # 3. Solve with regularization toward the motion of the surroundings
    scale = (mean[:, 0] + mean[:, 2]) + _EPSILON
    if sigma is None:
        strength = 1e-3 * scale
        apart = torch.zeros_like(motion)
    else:
        strength = _REGULARIZATION * scale
        gradient = (yy + xx)[:, None]
        apart = motion / pixel
        apart = apart - _surroundings(apart, gradient, sigma)
    yt, xt = yt + strength * apart[:, 0], xt + strength * apart[:, 1]
    yy, xx = yy + strength, xx + strength
    determinant = yy * xx - yx * yx
    increment = torch.stack([yx * xt - xx * yt, yx * yt - yy * xt], dim=1) / determinant[:, None]
    return increment.clamp(-_MAX_INCREMENT, _MAX_INCREMENT) * pixel


def _surroundings(motion: Tensor, gradient: Tensor, sigma: float) -> Tensor:
    """Return the mean motion in a wider window, weighted by the gradient; far from echoes that of the whole field."""
    weight = gradient + _EPSILON
    weighted = torch.cat([motion * weight, weight], dim=1)
    total = _mean_of_field(weighted)
    smooth = _smooth(weighted, _SURROUNDINGS * sigma)
    # floor * mean motion = _MEAN_WEIGHT * total * (weighted sum / total)
    floor = _MEAN_WEIGHT * total
    return (smooth[:, :-1] + floor[:, :-1]) / (smooth[:, -1:] + floor[:, -1:])


def _mean_of_field(field: Tensor) -> Tensor:
    """Return the means ``[B, C, 1, 1]`` of ``[B, C, h, w]``, rows first; pooling adds pixels in a fixed order."""
    height, width = field.shape[-2:]
    return F.avg_pool2d(F.avg_pool2d(field, (1, width)), (height, 1))


def _resize(motion: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate ``[B, 2, h, w]`` linearly to another grid of the same domain."""
    return F.interpolate(motion, size=size, mode="bilinear", align_corners=False)


def _smooth(field: Tensor, sigma: float) -> Tensor:
    """Smooth ``[B, C, H, W]`` with a Gaussian, with zeros outside the grid."""
    radius = int(3 * sigma + 0.5)
    if field.device.type == "cpu":
        kernel = [math.exp(-(distance**2) / (2 * sigma**2)) for distance in range(radius + 1)]
        weights = [value / (kernel[0] + 2 * sum(kernel[1:])) for value in kernel]
        return _sum_of_shifts(_sum_of_shifts(field, weights, dim=-2), weights, dim=-1)
    distances = torch.arange(-radius, radius + 1, dtype=field.dtype, device=field.device)
    gaussian = torch.exp(-(distances**2) / (2 * sigma**2))
    gaussian = gaussian / gaussian.sum()
    if torch.compiler.is_compiling():  # on a GPU: few operations, whose last bits depend on the batch
        flat = F.conv2d(field.reshape(-1, 1, *field.shape[-2:]), gaussian.view(1, 1, -1, 1), padding=(radius, 0))
        return F.conv2d(flat, gaussian.view(1, 1, 1, -1), padding=(0, radius)).reshape(field.shape)
    return _sum_in_windows(_sum_in_windows(field, gaussian, dim=-2), gaussian, dim=-1)


def _sum_of_shifts(field: Tensor, weights: list[float], dim: int) -> Tensor:
    """Return the sums of neighbors along an axis, -2 or -1, by their weights at the distances 0, 1, ... pixels."""
    radius, length = len(weights) - 1, field.shape[dim]
    padded = _pad_axis(field, radius, dim)
    total = field * weights[0]
    for distance in range(1, radius + 1):
        pair = padded.narrow(dim, radius - distance, length) + padded.narrow(dim, radius + distance, length)
        # Not add_(alpha=...), which may round differently in its vectorized part and in the remainder.
        total.add_(pair.mul_(weights[distance]))
    return total


def _sum_in_windows(field: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Return the sums of neighbors along an axis with fewer, larger operations, which take less time on a GPU."""
    taps, (batch, channels, height, width) = len(kernel), field.shape
    padded = _pad_axis(field, taps // 2, dim)
    if dim == -2:
        windows = padded.unfold(-2, taps, 1).movedim(-1, -2) * kernel[:, None]
        means = F.avg_pool2d(windows.reshape(batch * channels, 1, height * taps, width), (taps, 1))
    else:
        windows = padded.unfold(-1, taps, 1) * kernel
        means = F.avg_pool2d(windows.reshape(batch * channels, 1, height, width * taps), (1, taps))
    return taps * means.view(field.shape)


def _pad_axis(field: Tensor, radius: int, dim: int) -> Tensor:
    return F.pad(field, (0, 0, radius, radius) if dim == -2 else (radius, radius))
