"""Peak memory of a training step: by hand, on the meta device against a real one, and against torch's allocator."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import profile

from simcast_hpc.config import EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.planning.flops import forecaster, saved_bytes
from simcast_hpc.planning.peak_memory import peak_bytes

TINY_STEM = StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
TINY_EARTHFORMER = EarthformerConfig(grid=(16, 16), width=8, heads=1, stem=TINY_STEM)
TINY_SIMVP = SimVPConfig(hidden_spatial=8, hidden_temporal=16, temporal_blocks=2, groups=2)


class _Squares(nn.Module):
    def forward(self, x):
        return (x * x).exp()


def test_peak_by_hand():
    """1000 fp32 numbers of four bytes each."""
    x = torch.empty(1000, requires_grad=True)
    peak = peak_bytes(_Squares(), x)
    # End of forward: the input, exp (saved), zeros, the difference (saved), its square and the scalar losses. Backward:
    # the first two, the difference, the incoming gradient and at most three temporaries.
    assert 5 * 4000 < peak < 7 * 4000 + 64


@pytest.mark.parametrize("config", [TINY_SIMVP, TINY_EARTHFORMER], ids=["simvp", "earthformer"])
def test_meta_device_equals_real_device(config):
    network = forecaster(config, frames_in=4, frames_out=3, grid=(16, 16), dtype=torch.float32)
    meta = peak_bytes(network.on_meta(None, torch.float32), *network.inputs(2))
    real = peak_bytes(network.build(None).train(), torch.zeros(2, 4, 1, 16, 16))
    assert meta == pytest.approx(real, rel=0.25), "operators on a CPU use other temporaries"
    assert meta >= saved_bytes(network.on_meta(None, torch.float32), *network.inputs(2))


def test_checkpointing_reduces_peak():
    network = forecaster(TINY_EARTHFORMER, frames_in=4, frames_out=3, grid=(16, 16), dtype=torch.float32)
    without, checkpointed = (
        peak_bytes(network.on_meta(levels, torch.float32), *network.inputs(8)) for levels in ((), (0, 1))
    )
    assert checkpointed < without


def test_peak_equals_allocator_peak(tmp_path: Path):
    """Compared with the running total of torch's CPU allocator in a profile of the same step."""
    network = forecaster(TINY_SIMVP, frames_in=4, frames_out=3, grid=(32, 32), dtype=torch.float32)
    model, frames = network.build(None).train(), torch.zeros(2, 4, 1, 32, 32)

    def step() -> None:
        output = model(frames)
        (output - torch.zeros_like(output)).square().mean().backward()

    step()
    model.zero_grad(set_to_none=True)
    hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in model.parameters()]
    with profile(profile_memory=True) as trace:
        step()
    for hook in hooks:
        hook.remove()
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    allocated = max(accumulate(int(event["args"]["Bytes"]) for event in memory))
    counted = peak_bytes(model, frames) - frames.untyped_storage().nbytes()
    assert counted == pytest.approx(allocated, rel=0.15), "only the allocator counts workspaces of convolutions"
