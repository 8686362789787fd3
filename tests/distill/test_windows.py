"""Pixel values to floats and masks, and the frames of a training window."""

import numpy as np
import pytest
import torch

from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.data.sample_order import random_integer
from simcast_hpc.distill.cut_windows import Frames, cut, starts, to_frames, window_of_codes, window_of_frames


def _codes(*shape: int, missing: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 255, shape, dtype=torch.uint8, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < missing, 255, codes)


def test_codes_become_floats_by_rounded_division():
    codes = torch.arange(256, dtype=torch.uint8)
    got = code_to_unit(codes)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), (np.arange(256, dtype=np.float64) / 255).astype(np.float32))
    assert got[219] >= np.float32(219 / 255)
    multiplied = codes.float() * torch.tensor(1 / 255)
    assert (multiplied != got).any(), "multiplication by the reciprocal rounds differently"


def test_missing_codes_become_zero_and_a_mask():
    codes = _codes(2, 3, 4, 4)
    values, valid = to_frames(codes)
    assert values.dtype == torch.float32 and valid.dtype == torch.bool
    assert torch.equal(valid, codes != 255)
    assert (values[~valid] == 0).all() and not valid.all()
    assert torch.equal(values[valid], code_to_unit(codes)[valid])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nan_becomes_zero_and_a_mask(dtype):
    stored = torch.tensor([[0.25, torch.nan], [1.0, 0.0]], dtype=dtype)
    values, valid = to_frames(stored)
    assert values.dtype == torch.float32
    assert values.tolist() == [[0.25, 0.0], [1.0, 0.0]] and valid.tolist() == [[True, False], [True, True]]


def test_cut_takes_each_sample_from_its_own_frame():
    frames = torch.arange(3 * 7).reshape(3, 7, 1, 1)
    got = cut(frames, torch.tensor([0, 3, 1]), 4)
    assert got[:, :, 0, 0].tolist() == [[0, 1, 2, 3], [10, 11, 12, 13], [15, 16, 17, 18]]


def test_starts_are_drawn_from_counters():
    got = starts([4, 5, 900], seed=3, purpose="teacher-start", choices=5, device=torch.device("cpu"))
    assert got.dtype == torch.int64
    assert got.tolist() == [random_integer(place, seed=3, purpose="teacher-start", choices=5) for place in (4, 5, 900)]


def test_a_window_of_codes_has_float_inputs_and_code_targets():
    codes = _codes(3, 9, 4, 6)
    first = torch.tensor([0, 4, 2])
    sample = window_of_codes(codes, first, frames_in=3, frames_out=2)
    assert sample.inputs.shape == (3, 3, 1, 4, 6) and sample.target.shape == sample.valid.shape == (3, 2, 1, 4, 6)
    assert sample.target.dtype == torch.uint8
    for b, start in enumerate(first.tolist()):
        seen = codes[b, start : start + 3]
        assert torch.equal(sample.inputs[b, :, 0], torch.where(seen == 255, 0.0, code_to_unit(seen)))
        assert torch.equal(sample.target[b, :, 0], codes[b, start + 3 : start + 5])
    assert torch.equal(sample.valid, sample.target != 255)


def test_a_window_of_frames_cuts_values_and_mask_alike():
    frames = to_frames(_codes(2, 8, 4, 4))
    sample = window_of_frames(frames, torch.tensor([1, 3]), frames_in=3, frames_out=2)
    assert sample.target.dtype == torch.float32
    for b, start in enumerate((1, 3)):
        assert torch.equal(sample.inputs[b, :, 0], frames.values[b, start : start + 3])
        assert torch.equal(sample.target[b, :, 0], frames.values[b, start + 3 : start + 5])
        assert torch.equal(sample.valid[b, :, 0], frames.valid[b, start + 3 : start + 5])


def test_both_windows_agree_on_real_frames():
    codes, first = _codes(4, 9, 4, 4), torch.tensor([0, 1, 2, 3])
    one = window_of_codes(codes, first, frames_in=3, frames_out=3)
    other = window_of_frames(Frames(*to_frames(codes)), first, frames_in=3, frames_out=3)
    assert torch.equal(one.inputs, other.inputs) and torch.equal(one.valid, other.valid)
    assert torch.equal(code_to_unit(one.target)[one.valid], other.target[other.valid])
