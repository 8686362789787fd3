"""Feed-forwards of Earthformer and CasFormer on bias_activation: values, gradients, dropout by seed, random numbers."""

import pytest

pytest.importorskip("simcast_hpc")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig, NoStem
from simcast_hpc.models import build_model
from simcast_hpc.models.casformer import FeedForward as CasFormerFeedForward
from simcast_hpc.models.earthformer.blocks import FeedForward
from simcast_hpc.models.earthformer.earthformer import Earthformer
from simcast_kernels.bias_activation import kernel
from simcast_kernels.bias_activation.reference import keep_mask
from simcast_kernels.dispatch import VARIABLE


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Directions of the launched kernels, to detect a silent fallback to PyTorch."""
    found: list[str] = []

    def noted(name: str):
        run = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *arguments: found.append(name) or run(*arguments))

    noted("forward")
    noted("backward")
    return found


def results(layer: nn.Module, x: Tensor, **more: int) -> dict[str, Tensor]:
    """Return the output and all gradients for random weights of the sum of the output."""
    leaf = x.detach().clone().requires_grad_()
    layer.zero_grad()
    out = layer(leaf, **more)
    (out * torch.arange(out.numel(), device=x.device).view(out.shape).cos()).sum().backward()
    assert leaf.grad is not None
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(layer.named_parameters()).keys()
    return {"out": out.detach(), "x": leaf.grad, **gradients}


def config(**changes) -> EarthformerConfig:
    return EarthformerConfig(grid=(2, 2), width=16, heads=1, stem=NoStem(), **changes)


def layers() -> dict[str, nn.Module]:
    made = {
        activation: FeedForward(config(activation=activation), width=16) for activation in ("gelu", "leaky", "silu")
    }
    return {**made, "casformer": CasFormerFeedForward(16, 40)}


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["gelu", "leaky", "silu", "casformer"])
def test_equals_pytorch_without_dropout(name, kernel_device, launched, monkeypatch):
    torch.manual_seed(1)
    layer = layers()[name].to(kernel_device).eval()
    x = torch.randn(3, 5, 16, device=kernel_device)
    got = results(layer, x)
    assert launched == ["forward", "backward"]
    monkeypatch.setenv(VARIABLE, "reference")
    want = results(layer, x)
    assert len(launched) == 2 and got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(
            got[key], want[key], rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.kernel
def test_dropout_is_a_function_of_the_seed(kernel_device, launched, monkeypatch):
    torch.manual_seed(2)
    layer = FeedForward(config(feed_forward_dropout=0.25), width=16).to(kernel_device).train()
    layer.seed_offset = 10
    x = torch.randn(3, 5, 16, device=kernel_device)
    got = results(layer, x, seed=2**20)
    assert launched == ["forward", "forward", "backward", "backward"]

    def dropped(x: Tensor, seed: int) -> Tensor:
        return x * keep_mask(x.shape, dropout=0.25, seed=seed, device=x.device) / 0.75

    def expected(x: Tensor, **_: int) -> Tensor:
        hidden = dropped(F.gelu(layer.widen(layer.norm(x))), 2**20 + 10)
        return x + dropped(layer.narrow(hidden), 2**20 + 11)

    monkeypatch.setattr(layer, "forward", expected)  # the masks of the two seeds
    want = results(layer, x)
    monkeypatch.undo()
    monkeypatch.setenv(VARIABLE, "triton")
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-5, atol=1e-5)
    assert not torch.equal(layer(x, seed=2**20), layer(x, seed=2**21))


def test_kernel_calls_have_different_seeds():
    model = build_model(config(encoder_depth=(1,), decoder_depth=(1,)), frames_in=2, frames_out=2)
    seeds: list[int] = []
    for module in model.modules():
        offset = getattr(module, "seed_offset", None)
        if isinstance(offset, int):
            seeds += [offset, offset + 1] if isinstance(module, FeedForward) else [offset]
    assert len(seeds) > 4 and len(set(seeds)) == len(seeds) and max(seeds) < 2**16


def test_a_pass_on_a_cpu_draws_no_seed_for_feed_forwards(monkeypatch):
    """Random numbers on a CPU do not depend on the kernel; where it runs, every pass has its own mask."""
    model = build_model(
        config(encoder_depth=(1,), decoder_depth=(1,), attention_dropout=0.0, feed_forward_dropout=0.1),
        frames_in=2, frames_out=2,
    ).train()  # fmt: skip
    frames = torch.zeros(1, 2, 1, 2, 2)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert isinstance(model, Earthformer) and not model._uses_seeds(frames)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(VARIABLE, "triton")
    assert model._uses_seeds(frames)
