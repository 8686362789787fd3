"""Optical flow: known translations and rotations, missing pixels, symmetries, batches, captured programs."""

import math
from contextlib import contextmanager

import pytest
import torch

from simcast_hpc.models.optical_flow import _sum_in_windows, _sum_of_shifts, estimate_motion, sample_at


def blobs(height, width, path, *, frames=4, number=40, seed=0):
    """Return ``[1, T, H, W]`` of Gaussian cells whose centers follow ``path(y, x, t)``, some from outside the grid."""
    generator = torch.Generator().manual_seed(seed)
    side = min(height, width)
    sizes = torch.tensor([height, width], dtype=torch.float64)
    y0, x0 = ((torch.rand(number, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3) * sizes).T
    spread = (torch.rand(number, generator=generator, dtype=torch.float64) * 0.05 + 0.03) * side
    spread = spread.clamp(min=1.5)
    peak = torch.rand(number, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    field = torch.zeros(frames, height, width, dtype=torch.float64)
    for frame in range(frames):
        for row, column, size, height_of in zip(*path(y0, x0, frame), spread, peak, strict=True):
            field[frame] += height_of * torch.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * size**2))
    return field.clamp(max=1.0).float()[None]


def translated(dy, dx):
    return lambda y, x, t: (y + dy * t, x + dx * t)


@pytest.mark.parametrize(
    ("shape", "shift", "tolerance"),
    [
        ((24, 24), (0.5, 1.2), 0.15),
        ((24, 24), (0.0, -0.3), 0.05),
        ((96, 96), (1.3, -2.4), 0.1),
        ((96, 96), (0.25, 0.1), 0.02),
        ((96, 96), (8.0, 0.0), 0.25),
        ((96, 96), (-6.0, 6.0), 0.25),
        ((70, 131), (-2.5, 3.5), 0.15),
        ((257, 200), (9.0, -14.0), 0.4),
    ],
)
def test_finds_a_translation(shape, shift, tolerance):
    motion = estimate_motion(blobs(*shape, translated(*shift)))
    assert motion.shape == (1, 2, *shape) and motion.dtype == torch.float32
    error = (motion - torch.tensor(shift)[None, :, None, None]).abs()
    assert error.mean() < tolerance
    assert error.amax() < 0.2 * math.hypot(*shift) + 0.15


def test_finds_a_rotation():
    speed, centre = 0.03, 63.5

    def rotated(y, x, t):
        sin, cos = math.sin(speed * t), math.cos(speed * t)
        y, x = y - centre, x - centre
        return centre + cos * y + sin * x, centre - sin * y + cos * x

    motion = estimate_motion(blobs(128, 128, rotated, number=90))[0]
    position = torch.arange(128.0) - centre
    expected = speed * torch.stack([position.expand(128, 128), -position[:, None].expand(128, 128)])
    inner = (..., slice(24, -24), slice(24, -24))
    assert (motion - expected)[inner].abs().mean() < 0.3 * expected[inner].abs().mean()
    correlation = torch.corrcoef(torch.stack([motion[inner].flatten(), expected[inner].flatten()]))[0, 1]
    assert correlation > 0.95


def test_frames_without_echo_and_single_frames_have_no_motion():
    assert not estimate_motion(torch.zeros(2, 4, 17, 23)).any()
    assert not estimate_motion(torch.rand(2, 1, 16, 16)).any()
    assert estimate_motion(torch.full((1, 3, 20, 20), 0.4)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (6, 1)])
def test_grids_of_one_row_or_column(shape):
    frames = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    motion = estimate_motion(frames)
    assert motion.shape == (2, 2, *shape) and motion.abs().max() <= 1 / 4


def test_missing_pixels_may_be_nan():
    frames = blobs(20, 24, translated(0.5, 1.0))
    valid = torch.rand(frames.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = estimate_motion(frames.where(valid, 0.0), valid)
    torch.testing.assert_close(estimate_motion(frames.where(valid, torch.nan), valid), expected, rtol=0, atol=0)


def test_motion_is_bounded():
    noise = torch.rand(1, 4, 40, 24, generator=torch.Generator().manual_seed(1))
    motion = estimate_motion(noise)
    assert torch.isfinite(motion).all() and motion.abs().max() <= 24 / 4


@pytest.mark.parametrize("shape", [(8, 8), (9, 31), (64, 8)])
def test_small_and_odd_grids(shape):
    motion = estimate_motion(blobs(*shape, translated(0.3, -0.4), frames=2, number=12))
    assert motion.shape == (1, 2, *shape) and torch.isfinite(motion).all()
    assert motion[0, 0].mean() == pytest.approx(0.3, abs=0.15)
    assert motion[0, 1].mean() == pytest.approx(-0.4, abs=0.15)


def test_edge_of_coverage_is_no_gradient():
    # Missing pixels are 0: if they were read as no echo, the resting edge would slow the motion down.
    frames = blobs(64, 64, translated(1.0, -1.5), seed=3).clamp(min=0.2)
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    valid = (y**2 + x**2 < 26**2).expand(frames.shape)
    expected = torch.tensor([1.0, -1.5])[None, :, None, None]
    covered = frames.where(valid, 0.0)
    error = (estimate_motion(covered, valid) - expected).abs().mean()
    assert error < 0.15
    assert (estimate_motion(covered) - expected).abs().mean() > 3 * error


def test_missing_pixels_do_not_matter():
    frames = blobs(48, 48, translated(1.0, 0.5), seed=4)
    valid = torch.rand(frames.shape, generator=torch.Generator().manual_seed(0)) > 0.1
    first = estimate_motion(frames.where(valid, 0.0), valid)
    assert torch.equal(estimate_motion(frames.where(valid, 0.9), valid), first)
    assert (first - estimate_motion(frames)).abs().mean() < 0.1
    never = torch.zeros_like(valid)
    assert not estimate_motion(frames, never).any()


@pytest.mark.parametrize("shape", [(64, 64), (30, 42)])
def test_a_batch_equals_its_samples_to_the_bit(shape):
    # With convolutions the motion of 16 samples on 64 x 64 pixels differed from that of single samples.
    seeds = range(16)
    frames = torch.cat([
        blobs(*shape, translated(1.0 - seed / 8, 0.1 * seed), seed=seed, number=6, frames=2) for seed in seeds
    ])  # fmt: skip
    valid = torch.ones_like(frames, dtype=torch.bool)
    valid[3, :, :9], valid[5, 1:, :, 4:20] = False, False
    together = estimate_motion(frames, valid)
    for row in (0, 3, 5, 15):
        part = slice(row, row + 1)
        assert torch.equal(estimate_motion(frames[part], valid[part]), together[part])
    with limited_threads(2):
        assert torch.equal(estimate_motion(frames.flip(0)[:5], valid.flip(0)[:5]), together.flip(0)[:5])


@pytest.mark.parametrize("dim", [-2, -1])
def test_both_forms_of_the_smoothing_agree(dim):
    """The form for accelerators, which add up windows, computed on the CPU."""
    weights = [0.4, 0.2, 0.07, 0.03]
    kernel = torch.tensor([*weights[:0:-1], *weights])
    field = torch.rand(3, 2, 11, 17, generator=torch.Generator().manual_seed(0))
    expected = _sum_of_shifts(field.double(), weights, dim)
    for sums in (_sum_of_shifts(field, weights, dim), _sum_in_windows(field, kernel, dim)):
        torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=1e-6)
    alone = _sum_in_windows(field[1:2], kernel, dim)
    assert torch.equal(alone, _sum_in_windows(field, kernel, dim)[1:2])


@contextmanager
def limited_threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("symmetry", ["transpose", "flip"])
def test_motion_follows_the_symmetries_of_the_grid(symmetry):
    frames = blobs(48, 32, translated(1.0, -0.7), seed=5)
    motion = estimate_motion(frames)
    if symmetry == "transpose":
        other = estimate_motion(frames.mT.contiguous()).mT.flip(1)
    else:
        other = estimate_motion(frames.flip(-1)).flip(-1) * torch.tensor([1.0, -1.0])[None, :, None, None]
    torch.testing.assert_close(other, motion, rtol=0, atol=1e-3)


def test_only_the_last_four_frames_count():
    frames = blobs(32, 32, translated(0.5, 0.5), frames=6)
    torch.testing.assert_close(estimate_motion(frames), estimate_motion(frames[:, 2:]), rtol=0, atol=0)


def test_has_no_gradient_and_ignores_autocast():
    frames = blobs(24, 24, translated(0.5, 0.5)).requires_grad_()
    motion = estimate_motion(frames)
    assert not motion.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(estimate_motion(frames), motion)
    with pytest.raises(ValueError, match=r"frames must have shape \[B, T, H, W\]"):
        estimate_motion(frames[0])
    with pytest.raises(ValueError, match="valid must have the shape of frames"):
        estimate_motion(frames, torch.ones(1, 24, 24, dtype=torch.bool))


def test_samples_at_displaced_pixels():
    field = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert torch.equal(sample_at(field, torch.zeros(1, 2, 4, 5)).round(decimals=4), field)
    down = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 4, 5)
    torch.testing.assert_close(sample_at(field, down)[0, 0, :3], field[0, 0, 1:])
    assert not sample_at(field, down)[0, 0, 3].any()
    torch.testing.assert_close(sample_at(field, down, outside="border")[0, 0, 3], field[0, 0, 3])
