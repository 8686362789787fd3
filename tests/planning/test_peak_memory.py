"""The peak of a training step: by hand, the same without memory as with it, and what the allocator of torch says."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import profile

from simcast_hpc.config import EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.planning.flops import forecaster, kept_bytes
from simcast_hpc.planning.peak_memory import peak_bytes

TINY_STEM = StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
TINY_EARTHFORMER = EarthformerConfig(grid=(16, 16), width=8, heads=1, stem=TINY_STEM)
TINY_SIMVP = SimVPConfig(hidden_spatial=8, hidden_temporal=16, temporal_blocks=2, groups=2)


class _Squares(nn.Module):
    def forward(self, x):
        return (x * x).exp()


def test_by_hand():
    """Of 1,000 fp32 numbers, four bytes each."""
    x = torch.empty(1000, requires_grad=True)
    found = peak_bytes(_Squares(), x)
    # At the end of forward: the input, exp (kept), zeros, the difference (kept), its square, and the scalar losses.
    # Backward holds the first two and the difference, the gradient that comes in, and at most three on its way out.
    assert 5 * 4000 < found < 7 * 4000 + 64


@pytest.mark.parametrize("config", [TINY_SIMVP, TINY_EARTHFORMER], ids=["simvp", "earthformer"])
def test_without_memory_as_with_it(config):
    subject = forecaster(config, frames_in=4, frames_out=3, grid=(16, 16), dtype=torch.float32)
    meta = peak_bytes(subject.on_meta(None, torch.float32), *subject.inputs(2))
    real = peak_bytes(subject.made(None).train(), torch.zeros(2, 4, 1, 16, 16))
    assert meta == pytest.approx(real, rel=0.25), (
        "the bodies of operators on a CPU differ in what they need for moments"
    )
    assert meta >= kept_bytes(subject.on_meta(None, torch.float32), *subject.inputs(2))


def test_computed_again_less_is_held():
    subject = forecaster(TINY_EARTHFORMER, frames_in=4, frames_out=3, grid=(16, 16), dtype=torch.float32)
    kept, again = (peak_bytes(subject.on_meta(way, torch.float32), *subject.inputs(8)) for way in ((), (0, 1)))
    assert again < kept


def test_the_allocator_says_the_same(tmp_path: Path):
    """The profiler's running total of torch's own CPU allocator, an independent count, over the same step."""
    subject = forecaster(TINY_SIMVP, frames_in=4, frames_out=3, grid=(32, 32), dtype=torch.float32)
    model, frames = subject.made(None).train(), torch.zeros(2, 4, 1, 32, 32)

    def step() -> None:
        output = model(frames)
        (output - torch.zeros_like(output)).square().mean().backward()

    step()
    model.zero_grad(set_to_none=True)
    hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in model.parameters()]
    with profile(profile_memory=True) as seen:
        step()
    for hook in hooks:
        hook.remove()
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    most = max(accumulate(int(event["args"]["Bytes"]) for event in memory))
    counted = peak_bytes(model, frames) - frames.untyped_storage().nbytes()
    assert counted == pytest.approx(most, rel=0.15), "workspaces of convolutions are the allocator's alone"
