"""Earthformer on the kernels: golden outputs, single blocks, training steps."""

from collections.abc import Callable

import pytest

pytest.importorskip("simcast_hpc")

import torch
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig, GlobalVectorConfig, NoStem
from simcast_hpc.models import build_model
from simcast_hpc.models.earthformer.blocks import CrossAttentionBlock, SelfAttentionBlock
from simcast_hpc.models.published_weights import load_public
from simcast_kernels.cuboid_attention import kernel as attention_kernel
from simcast_kernels.dispatch import VARIABLE
from simcast_kernels.layer_norm_linear import kernel as projection_kernel
from tests.models.stem_slopes import GoldenBackward
from tests.models.test_earthformer_golden import CASES, TOLERANCE, channels_second, error, part, read_golden

# Kernels and references add in different orders, like different numbers of ranks: the same relative bound.
SAME_LOSSES = 1e-5
# Over 200 steps the weights diverge: Adam can turn the rounding of a gradient near 0 into a step of the size of the
# learning rate. A wrong kernel differs by far more at once.
AFTER_MANY = 1e-3


@pytest.fixture
def launched(monkeypatch) -> dict[str, int]:
    """Count the calls of each kernel, to detect a silent fallback to the reference."""
    counts = {"attention": 0, "projection": 0}
    for name, module in (("attention", attention_kernel), ("projection", projection_kernel)):
        for direction in ("forward", "backward"):
            monkeypatch.setattr(module, direction, counting(getattr(module, direction), counts, name))
    return counts


def counting(run: Callable, counts: dict[str, int], name: str) -> Callable:
    def counted(*arguments, **more):
        counts[name] += 1
        return run(*arguments, **more)

    return counted


def golden_model(case: str) -> tuple[nn.Module, dict[str, Tensor]]:
    config, golden, _ = read_golden(case)
    return load_public("earthformer", config, part(golden, "state/")).eval(), golden


def assert_equals_golden(case: str, device: str) -> None:
    model, golden = golden_model(case)
    frames, target = (channels_second(golden[name]).to(device) for name in ("input", "target"))
    expected = channels_second(golden["input_grad"]).to(device)
    passes = GoldenBackward(model.to(device), frames, target)
    output, loss, gradient = passes.match(expected, tolerance=TOLERANCE)
    assert error(output, channels_second(golden["output"]).to(device)) < TOLERANCE
    assert error(loss, golden["loss"].to(device)) < TOLERANCE
    assert error(gradient, expected) < TOLERANCE


@pytest.mark.kernel
def test_model_equals_its_golden(kernel_device, launched):
    assert_equals_golden("no_global_axial", kernel_device)
    assert launched["attention"] and launched["projection"]


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_models_equal_their_goldens_on_a_gpu(case, kernel_device):
    assert_equals_golden(case, kernel_device)


@pytest.mark.kernel
@pytest.mark.parametrize("case", [case for case in CASES if case != "no_global_axial"])
@pytest.mark.parametrize("kind", [SelfAttentionBlock, CrossAttentionBlock], ids=["encoder", "decoder"])
def test_block_of_a_golden_model_equals_its_reference(case, kind, kernel_device, launched, monkeypatch):
    """Return the coarsest block with golden weights, and its input for the golden input."""
    model, golden = golden_model(case)
    model = model.to(kernel_device)
    block = [module for module in model.modules() if isinstance(module, kind)]
    block = (
        block[-1] if kind is CrossAttentionBlock else [m for m in model.encoder.modules() if isinstance(m, kind)][-1]
    )
    caught: list[tuple] = []
    hook = block.register_forward_hook(lambda m, inputs, more, out: caught.append((inputs, more)), with_kwargs=True)
    monkeypatch.setenv(VARIABLE, "reference")
    with torch.no_grad():
        model(channels_second(golden["input"]).to(kernel_device))
    hook.remove()
    (inputs, more), *_ = caught

    def run() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        leaves = [x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
        outputs = block(*leaves, **more)
        outputs = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None]
        torch.cat(
            [(x * torch.arange(x.numel(), device=x.device).view(x.shape).cos()).flatten() for x in outputs]
        ).sum().backward()
        found = {f"output {i}": x.detach() for i, x in enumerate(outputs)}
        found |= {f"input {i}": x.grad for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.grad is not None}
        return found | {name: p.grad for name, p in block.named_parameters() if p.grad is not None}

    want = run()
    assert not any(launched.values())
    monkeypatch.setenv(VARIABLE, "triton")
    got = run()
    assert launched["attention"] and launched["projection"]
    assert got.keys() == want.keys()
    unequal = {name: error(got[name], want[name]) for name in want if error(got[name], want[name]) >= TOLERANCE}
    assert not unequal


@pytest.mark.kernel
@pytest.mark.parametrize("steps", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_losses_are_equal_with_and_without_kernels(steps, kernel_device, launched, monkeypatch):
    config = EarthformerConfig(
        grid=(2, 2),
        width=16,
        heads=1,
        stem=NoStem(),
        encoder_depth=(1,),
        decoder_depth=(1,),
        decoder_first_self_attention=True,
        global_vectors=GlobalVectorConfig(count=2),
        attention_dropout=0.0,
        projection_dropout=0.0,
        feed_forward_dropout=0.0,
    )
    generator = torch.Generator().manual_seed(5)
    frames = torch.rand(steps, 1, 4, 1, 2, 2, generator=generator).to(kernel_device)
    losses: dict[str, list[float]] = {}
    for implementation in ("reference", "triton"):
        monkeypatch.setenv(VARIABLE, implementation)
        torch.manual_seed(6)
        model = build_model(config, frames_in=2, frames_out=2).to(kernel_device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses[implementation] = []
        for step in frames:
            past, future = step.split(2, dim=1)
            loss = (model(past) - future).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[implementation].append(loss.item())
    assert launched["attention"] and launched["projection"]
    assert losses["triton"] == pytest.approx(losses["reference"], rel=SAME_LOSSES if steps == 10 else AFTER_MANY)
    assert losses["triton"] != pytest.approx([losses["triton"][0]] * steps, rel=1e-2), "the steps must change something"
