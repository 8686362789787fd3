"""Advection: SciPy as the reference, exact shifts, inflow, gradients, captured programs, meta device."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from simcast_hpc.models.advection import advect, extrapolate
from tests.models.test_optical_flow import blobs, translated


class Extrapolation(nn.Module):
    """Extrapolation of frames in which NaN is missing."""

    def forward(self, frames):
        return extrapolate(torch.nan_to_num(frames), 3, ~torch.isnan(frames))


def constant_motion(dy, dx, shape, dtype=torch.float64):
    return torch.tensor([dy, dx], dtype=dtype)[None, :, None, None].expand(1, 2, *shape)


def test_whole_pixels_are_shifted_exactly():
    field = torch.rand(1, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forecast = advect(field, constant_motion(1, -2, (9, 12)), 3)
    for step in range(1, 4):
        expected = torch.zeros(9, 12, dtype=torch.float64)
        expected[step:, : -2 * step] = field[0, :-step, 2 * step :]
        torch.testing.assert_close(forecast[0, step - 1], expected, rtol=0, atol=1e-12)


def test_equals_trajectories_of_scipy():
    # Backward trajectories with the midpoint rule in a field of motion that varies, computed with SciPy in float64.
    generator = torch.Generator().manual_seed(1)
    field = torch.rand(1, 20, 26, generator=generator, dtype=torch.float64)
    coarse = torch.randn(1, 2, 4, 5, generator=generator, dtype=torch.float64)
    motion = nn.functional.interpolate(coarse, size=(20, 26), mode="bilinear", align_corners=True)
    places = np.mgrid[:20, :26].astype(float)
    position = places.copy()
    v = motion[0].numpy()
    forecast = advect(field, motion, 4)[0].numpy()
    for step in range(4):
        start = np.stack([map_coordinates(one, position, order=1, mode="nearest") for one in v])
        middle = np.stack([map_coordinates(one, position - start / 2, order=1, mode="nearest") for one in v])
        position = position - middle
        intensity = map_coordinates(np.exp(5 * field[0].numpy()) - 1, position, order=1, mode="grid-constant", cval=0)
        np.testing.assert_allclose(forecast[step], np.log(intensity + 1) / 5, rtol=0, atol=1e-9)


def test_interpolation_stays_within_the_range_of_the_field():
    field = torch.tensor([0.0, 0.6, 1.0]).repeat(1, 12, 4)
    forecast = advect(field, constant_motion(0.37, 0.41, (12, 12)), 2)
    assert forecast.min() >= 0 and forecast.max() <= 1 + 1e-6
    # Halfway between 0 and v: ln((exp(5 v) + 1) / 2) / 5.
    half = advect(torch.tensor([[[0.0, 0.8]]]).repeat(1, 2, 1), constant_motion(0, 0.5, (2, 2)), 1)
    assert half[0, 0, 0, 1].item() == pytest.approx(np.log((np.exp(4.0) + 1) / 2) / 5, abs=1e-6)


def test_inflow_and_missing_pixels_are_zero():
    frames = blobs(40, 40, translated(0.0, 2.0)).clamp(min=0.3)
    valid = torch.ones_like(frames, dtype=torch.bool)
    valid[:, :, 30:, 30:] = False
    forecast = extrapolate(frames.where(valid, 0.5), 4, valid)
    assert (forecast[0, 3, 5:25, :4] == 0).all()
    assert (forecast[0, 0, :28, 4:28] >= 0.25).all()
    # The hole moves with the field and is filled from the left.
    assert (forecast[0, 3, 33:38, 34:] == 0).sum() > 0 and forecast[0, 3, 33:38, 31].min() > 0.2
    assert torch.equal(forecast, extrapolate(frames.where(valid, float("nan")), 4, valid))


@pytest.mark.parametrize(("shape", "shift"), [((96, 96), (1.6, -2.3)), ((60, 110), (4.0, 3.0))])
def test_forecasts_a_translated_field(shape, shift):
    fields = blobs(*shape, translated(*shift), frames=10)
    forecast = extrapolate(fields[:, :4], 6)
    inner = (..., slice(28, -28), slice(28, -28)) if min(shape) > 80 else (..., slice(24, -6), slice(24, -24))
    error = (forecast - fields[:, 4:])[inner]
    still = (fields[:, 3:4] - fields[:, 4:])[inner]
    assert error.square().mean() < 0.02 * still.square().mean()


def test_without_motion_is_persistence():
    frames = blobs(33, 21, translated(0, 0)).repeat(2, 1, 1, 1)
    torch.testing.assert_close(extrapolate(frames, 3), frames[:, -1:].expand(-1, 3, -1, -1), rtol=0, atol=5e-4)
    one = extrapolate(frames[:, -1:], 2)
    torch.testing.assert_close(one, frames[:, -1:].expand(-1, 2, -1, -1), rtol=0, atol=1e-5)
    assert not extrapolate(torch.zeros(1, 3, 16, 16), 2).any()


def test_gradient_of_the_field_equals_finite_differences():
    generator = torch.Generator().manual_seed(2)
    field = torch.rand(2, 6, 7, generator=generator, dtype=torch.float64).requires_grad_()
    motion = torch.randn(2, 2, 6, 7, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda field: advect(field, motion, 2), field)


def test_gradient_of_an_extrapolation_reaches_only_the_last_frame():
    frames = blobs(24, 24, translated(1, 0.5)).requires_grad_()
    extrapolate(frames, 2).sum().backward()
    assert frames.grad is not None
    assert not frames.grad[:, :-1].any() and frames.grad[:, -1].abs().sum() > 100


def test_a_batch_equals_its_samples_and_needs_no_double_precision():
    frames = torch.cat([blobs(25, 31, translated(1, -1), seed=seed, number=9) for seed in range(9)])
    together = extrapolate(frames, 3)
    assert torch.equal(together, torch.cat([extrapolate(one[None], 3) for one in frames]))
    assert torch.equal(extrapolate(frames, 5)[:, :3], together), "the number of lead times does not matter"
    assert torch.equal(extrapolate(frames.double(), 3), together) and together.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extrapolate(frames, 3), together)


def test_values_outside_the_unit_interval_are_clamped():
    frames = blobs(24, 24, translated(0.5, 0)) * 1.2 - 0.1
    frames[:, -1, 0, 0] = -50.0
    forecast = extrapolate(frames.requires_grad_(), 2)
    assert forecast.min() >= 0 and forecast.max() <= 1
    forecast.sum().backward()
    assert torch.isfinite(frames.grad).all()


def test_captured_program_equals_the_function():
    frames = torch.cat([blobs(22, 27, translated(1, -1), seed=seed) for seed in (3, 4)])
    frames[:, :, :5, :8] = float("nan")
    model = Extrapolation()
    program = torch.export.export(model, (frames,))
    for one in (frames, frames.flip(0) * 0.7):  # no value of the example is in the program
        torch.testing.assert_close(program.module()(one), model(one), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_onnx_equals_the_function(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from simcast_hpc.export.onnx_export import write_onnx

    frames = blobs(24, 26, translated(1, -1))
    frames[:, :, :5, :8] = float("nan")
    model = Extrapolation()
    program = torch.export.export(model, (frames,))
    assert write_onnx(program, model, [frames, frames * 0.5], tmp_path / "flow.onnx") < 1e-4


def test_shapes_on_the_meta_device_and_invalid_arguments():
    frames = torch.zeros(2, 4, 30, 50, device="meta")
    assert extrapolate(frames, 7, torch.ones_like(frames, dtype=torch.bool)).shape == (2, 7, 30, 50)
    with pytest.raises(ValueError, match="frames_out=0 must be at least 1"):
        extrapolate(torch.zeros(1, 2, 8, 8), 0)
    with pytest.raises(ValueError, match=r"frames must have shape \[B, T, H, W\] .*, got \(8, 8\)"):
        extrapolate(torch.zeros(8, 8), 1)
    with pytest.raises(ValueError, match=r"with T of at least 1, got \(1, 0, 8, 8\)"):
        extrapolate(torch.zeros(1, 0, 8, 8), 1)
    with pytest.raises(TypeError, match=r"dtype torch\.uint8; divide uint8 values by 255"):
        extrapolate(torch.zeros(1, 2, 8, 8, dtype=torch.uint8), 1)
    with pytest.raises(TypeError, match=r"valid has dtype torch\.float32; give bool"):
        extrapolate(torch.zeros(1, 2, 8, 8), 1, torch.ones(1, 2, 8, 8))
