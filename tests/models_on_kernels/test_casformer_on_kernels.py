"""CasFormer on the kernel of adaptive layer norm: losses of training steps with and without it."""

import pytest

pytest.importorskip("simcast_hpc")

import torch

from simcast_hpc.config import CasFormerConfig
from simcast_hpc.models.casformer import CasFormer
from simcast_kernels.adaln_norm import kernel
from simcast_kernels.dispatch import VARIABLE

CONFIG = CasFormerConfig(frame_width=8, frame_depth=1, frame_heads=2, width=16, depth=1, heads=2)


def losses(device: str, *, steps: int) -> list[float]:
    torch.manual_seed(0)
    model = CasFormer(CONFIG, frames=2, channels=2).to(device)
    for parameter in model.parameters():
        if not parameter.any():  # the gates are initialized to zero, so that each block is the identity
            torch.nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(steps):
        noisy, condition, noise = torch.randn(3, 1, 2, 2, 4, 4, generator=generator).to(device)
        timesteps = torch.randint(0, 1000, (1,), generator=generator).to(device)
        loss = (model(noisy, timesteps, condition) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.kernel
@pytest.mark.parametrize(("steps", "tolerance"), [(3, 1e-5), pytest.param(200, 1e-3, marks=pytest.mark.slow)])
def test_losses_equal_those_of_the_reference(kernel_device, monkeypatch, steps, tolerance):
    """Over 200 steps Adam can turn the rounding of a gradient near 0 into a step of the size of the learning rate."""
    calls = {"forward": 0, "backward": 0}
    for name in calls:
        original = getattr(kernel, name)

        def counted(*arguments, name=name, original=original, **options):
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(kernel, name, counted)
    on_kernels = losses(kernel_device, steps=steps)
    launched = dict(calls)
    assert launched["forward"] == launched["backward"] >= 5 * steps, "two norms per block, and the last one"
    monkeypatch.setenv(VARIABLE, "reference")
    expected = losses(kernel_device, steps=steps)
    drift = [abs(one - other) / other for one, other in zip(on_kernels, expected, strict=True)]
    print(f"relative difference of losses: largest {max(drift):.1e}, last {drift[-1]:.1e}")
    assert calls == launched, "the reference runs PyTorch's norm"
    assert on_kernels == pytest.approx(expected, rel=tolerance)
    assert len(set(on_kernels)) == steps, "training must change the loss"
