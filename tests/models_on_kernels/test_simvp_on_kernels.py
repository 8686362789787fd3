"""SimVP on the kernel of group norm, activation and branch sum: training steps, one saved tensor less per branch."""

import pytest

pytest.importorskip("simcast_hpc")

import torch

from simcast_hpc.config import SimVPConfig
from simcast_hpc.models import build_model
from simcast_kernels.dispatch import VARIABLE
from simcast_kernels.group_norm_activation import kernel

CONFIG = SimVPConfig(hidden_spatial=8, hidden_temporal=16, temporal_blocks=2, groups=2, inception_kernels=(3, 5))
NORMS = 2 * 2 + 2 * 2 * 2  # of encoder, decoder and the branches of the translator


def losses(device: str, *, steps: int, frames_out: int) -> list[float]:
    torch.manual_seed(0)
    model = build_model(CONFIG, frames_in=2, frames_out=frames_out).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(steps):
        window = torch.rand(1, 2 + frames_out, 1, 16, 16, generator=generator)
        past, future = window.to(device).split([2, frames_out], dim=1)
        loss = (model(past) - future).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("steps", "frames_out", "tolerance"),
    [(2, 2, 1e-5), (1, 3, 1e-5), pytest.param(200, 2, 1e-3, marks=pytest.mark.slow)],
)
def test_losses_equal_those_of_the_reference(kernel_device, monkeypatch, steps, frames_out, tolerance):
    calls = {"forward": 0, "backward": 0}
    for name in calls:
        original = getattr(kernel, name)

        def counted(*arguments, name=name, original=original):
            calls[name] += 1
            return original(*arguments)

        monkeypatch.setattr(kernel, name, counted)
    on_kernels = losses(kernel_device, steps=steps, frames_out=frames_out)
    # On a CPU the features of a single input channel are channels-first.
    expected = steps * -(-frames_out // 2) * (NORMS - (kernel_device == "cpu"))
    assert calls == {"forward": expected, "backward": expected}
    monkeypatch.setenv(VARIABLE, "reference")
    assert on_kernels == pytest.approx(losses(kernel_device, steps=steps, frames_out=frames_out), rel=tolerance)
    assert calls["forward"] == expected, "the reference runs PyTorch's norm"
