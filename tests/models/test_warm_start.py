"""Beginning from a model with a shorter horizon: what is copied, what is repeated in time, what stays as drawn."""

from typing import Any

import pytest
import torch

from simcast_hpc.config import EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.models import build_model, start_from

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
def test_an_earthformer_of_a_longer_horizon_repeats_the_positions_of_its_frames(long):
    short, student = earthformer(2, seed=1, decoder_positions=True), earthformer(long, seed=2, decoder_positions=True)
    drawn = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    known = short.state_dict()
    started = start_from(student, known)

    assert started.repeated == ("query.positions.time", "decoder.positions.0.time")
    for name in started.repeated:
        rows = [row % 2 for row in range(long)]
        assert torch.equal(student.state_dict()[name], known[name][rows])
    # A table over offsets of memory and forecast has other rows for another horizon.
    assert all("cross_blocks" in name and name.endswith("bias.table") for name in started.fresh)
    assert len(started.fresh) == 2
    for name in started.copied:
        assert torch.equal(student.state_dict()[name], known[name])
    for name in started.fresh:
        assert torch.equal(student.state_dict()[name], drawn[name])
    assert sorted(started.copied + started.repeated + started.fresh) == sorted(drawn)


def test_a_bf16_teacher_starts_an_fp32_student():
    student, known = earthformer(4, seed=2), earthformer(2, seed=1).bfloat16().state_dict()
    start_from(student, known)
    assert {tensor.dtype for tensor in student.state_dict().values()} == {torch.float32}
    assert torch.equal(student.get_parameter("head.weight"), known["head.weight"].float())


def test_simvp_of_any_horizon_is_copied_whole():
    config = SimVPConfig(hidden_spatial=4, hidden_temporal=8, temporal_blocks=2, groups=2)
    first, other = (build_model(config, frames_in=3, frames_out=frames) for frames in (2, 4))
    started = start_from(other, first.state_dict())
    assert (started.repeated, started.fresh) == ((), ())
    assert str(started) == f"{len(first.state_dict())} tensors copied, none as drawn"


def test_what_happened_is_said_by_name():
    student = earthformer(4, seed=2)
    told = str(start_from(student, earthformer(2, seed=1).state_dict()))
    assert "repeated in time: query.positions.time, as drawn: decoder.levels.0.cross_blocks.0" in told
