"""Warm start from a model with a shorter horizon: copied, repeated and randomly initialized tensors."""

from typing import Any

import pytest
import torch

from simcast_hpc.config import EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.models import build_model, warm_start

EARTHFORMER: dict[str, Any] = {
    "grid": (8, 8),
    "width": 8,
    "heads": 1,
    "stem": StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1)),
}


def earthformer(frames_out: int, *, seed: int, **over: Any):
    torch.manual_seed(seed)
    return build_model(EarthformerConfig(**{**EARTHFORMER, **over}), frames_in=3, frames_out=frames_out)


@pytest.mark.parametrize("long", [4, 5])
def test_earthformer_repeats_positions_of_frames(long):
    short, student = earthformer(2, seed=1, decoder_positions=True), earthformer(long, seed=2, decoder_positions=True)
    initial = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    weights = short.state_dict()
    result = warm_start(student, weights)

    assert result.repeated == ("query.positions.time", "decoder.positions.0.time")
    for name in result.repeated:
        rows = [row % 2 for row in range(long)]
        assert torch.equal(student.state_dict()[name], weights[name][rows])
    # The rows of a bias table over offsets of memory and forecast depend on the horizon.
    assert all("cross_blocks" in name and name.endswith("bias.table") for name in result.random)
    assert len(result.random) == 2
    for name in result.copied:
        assert torch.equal(student.state_dict()[name], weights[name])
    for name in result.random:
        assert torch.equal(student.state_dict()[name], initial[name])
    assert sorted(result.copied + result.repeated + result.random) == sorted(initial)


def test_bf16_teacher_initializes_fp32_student():
    student, weights = earthformer(4, seed=2), earthformer(2, seed=1).bfloat16().state_dict()
    warm_start(student, weights)
    assert {tensor.dtype for tensor in student.state_dict().values()} == {torch.float32}
    assert torch.equal(student.get_parameter("head.weight"), weights["head.weight"].float())


def test_simvp_copies_all_tensors():
    config = SimVPConfig(hidden_spatial=4, hidden_temporal=8, temporal_blocks=2, groups=2)
    first, other = (build_model(config, frames_in=3, frames_out=frames) for frames in (2, 4))
    result = warm_start(other, first.state_dict())
    assert (result.repeated, result.random) == ((), ())
    assert str(result) == f"{len(first.state_dict())} tensors copied, randomly initialized: none"


def test_summary_names_tensors():
    student = earthformer(4, seed=2)
    summary = str(warm_start(student, earthformer(2, seed=1).state_dict()))
    assert "repeated along time: query.positions.time, randomly initialized: decoder.levels.0.cross_bl" in summary
