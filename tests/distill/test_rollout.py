"""Rollouts compared with the same recursion frame by frame in numpy, and the rounding of stored frames."""

import numpy as np
import pytest
import torch

from simcast_hpc.distill.cut_windows import Frames, to_frames
from simcast_hpc.distill.rollout import roll_out, to_stored

FRAMES_IN, SHORT = 3, 2
WEIGHTS = torch.tensor([[0.5, -0.75, 1.5], [-1.0, 0.25, 1.25]])  # each frame out from three in; leaves [0, 1]
BIAS = torch.tensor([-0.25, 0.125])


class Linear:
    """Each output frame is a weighted sum of the input frames, exact in float32 for inputs in eighths."""

    def __init__(self):
        self.inputs: list[torch.Tensor] = []

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        assert frames.ndim == 5 and frames.shape[1:3] == (FRAMES_IN, 1)
        self.inputs.append(frames)
        return torch.einsum("ot,btchw->bochw", WEIGHTS, frames) + BIAS[None, :, None, None, None]


def _frames(missing: float = 0.0) -> Frames:
    generator = np.random.default_rng(1)
    values = torch.from_numpy(generator.integers(0, 9, (2, FRAMES_IN, 4, 5)) / 8).float()
    valid = torch.from_numpy(generator.random(values.shape) >= missing)
    return Frames(torch.where(valid, values, 0.0), valid)


def _by_hand(frames: Frames, frames_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The recursion on lists of frames, in float64."""
    values = [frames.values[:, t].double().numpy() for t in range(FRAMES_IN)]
    valid = [frames.valid[:, t].numpy() for t in range(FRAMES_IN)]
    while len(values) < FRAMES_IN + frames_out:
        last, seen = values[-FRAMES_IN:], np.logical_and.reduce(valid[-FRAMES_IN:])
        for out in range(SHORT):
            made = sum(float(WEIGHTS[out, t]) * last[t] for t in range(FRAMES_IN)) + float(BIAS[out])
            values.append(np.where(seen, np.clip(made, 0, 1), 0))
            valid.append(seen)
    span = slice(FRAMES_IN, FRAMES_IN + frames_out)
    return np.stack(values[span], axis=1), np.stack(valid[span], axis=1)


@pytest.mark.parametrize("frames_out", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_roll_out_equals_the_recursion(frames_out, missing):
    network, frames = Linear(), _frames(missing)
    got = roll_out(network, frames, frames_out=frames_out)
    values, valid = _by_hand(frames, frames_out)
    assert got.values.shape == got.valid.shape == (2, frames_out, 4, 5)
    assert got.values.dtype == torch.float32
    np.testing.assert_allclose(got.values.numpy(), values, atol=1e-6)
    np.testing.assert_array_equal(got.valid.numpy(), valid)
    assert len(network.inputs) == -(-frames_out // SHORT)


def test_the_output_is_clipped_before_it_is_fed_back():
    network = Linear()
    got = roll_out(network, _frames(), frames_out=6)
    raw = torch.cat([network(frames)[:, :, 0] for frames in list(network.inputs)], dim=1)
    assert (raw < 0).any() and (raw > 1).any(), "the network must leave [0, 1] for this test to mean something"
    assert all(((frames >= 0) & (frames <= 1)).all() for frames in network.inputs)
    assert ((got.values >= 0) & (got.values <= 1)).all()
    assert torch.equal(network.inputs[1][:, :1, 0], _frames().values[:, 2:3])
    assert torch.equal(network.inputs[1][:, 1:, 0], got.values[:, :2])


def test_the_mask_is_the_union_over_the_input_frames():
    frames = Frames(torch.full((1, 3, 1, 3), 0.5), torch.ones(1, 3, 1, 3, dtype=torch.bool))
    frames.valid[0, 0, 0, 0] = False  # not an input of later calls, but its forecast is
    frames.valid[0, 2, 0, 1] = False
    got = roll_out(Linear(), frames, frames_out=6)
    assert got.valid[0, :, 0].tolist() == [[False, False, True]] * 6
    assert (got.values[~got.valid] == 0).all()


def test_roll_out_changes_no_argument_and_records_no_graph():
    frames = _frames(0.3)
    before = [tensor.clone() for tensor in frames]
    weight = torch.nn.Parameter(torch.ones(1))
    got = roll_out(lambda x: Linear()(x) * weight, frames, frames_out=5)
    assert not got.values.requires_grad
    assert all(torch.equal(*pair) for pair in zip(frames, before, strict=True))


def test_a_network_in_bf16_gives_float32_frames():
    got = roll_out(lambda x: Linear()(x).bfloat16(), _frames(), frames_out=4)
    assert got.values.dtype == torch.float32


def test_uint8_frames_are_stored_unchanged():
    codes = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    codes[0, 0, 0] = 255
    assert torch.equal(to_stored(to_frames(codes), "uint8"), codes)


@pytest.mark.parametrize("pseudo_dtype", ["fp16", "uint8"])
def test_storing_rounds_once_and_keeps_the_mask(pseudo_dtype):
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(2, 3, 8, 8, generator=generator) > 0.2
    values = torch.rand(2, 3, 8, 8, generator=generator) * (254 / 255)  # code 254 is the last: see the next test
    frames = Frames(torch.where(valid, values, 0.0), valid)
    stored = to_stored(frames, pseudo_dtype)
    back = to_frames(stored)
    assert stored.dtype == (torch.uint8 if pseudo_dtype == "uint8" else torch.float16)
    assert torch.equal(back.valid, valid)
    bound = 0.5 / 255 + 1e-7 if pseudo_dtype == "uint8" else 2.0**-12
    error = (back.values - frames.values).abs().max()
    assert 0 < error <= bound
    assert torch.equal(to_stored(back, pseudo_dtype).nan_to_num(9.0), stored.nan_to_num(9.0))
    want = (frames.values * 255).round() / 255 if pseudo_dtype == "uint8" else frames.values.half().float()
    torch.testing.assert_close(back.values, torch.where(valid, want, 0.0), rtol=0, atol=1e-7)


def test_a_full_value_never_becomes_the_missing_code():
    frames = Frames(torch.tensor([1.0, 254.6 / 255, 0.0]), torch.tensor([True, True, True]))
    assert to_stored(frames, "uint8").tolist() == [254, 254, 0]
    assert to_frames(to_stored(frames, "uint8")).valid.all()
    assert to_stored(frames, "fp16").isfinite().all()
