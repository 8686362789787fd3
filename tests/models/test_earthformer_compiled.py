"""Earthformer blocks compile as one graph, forward and backward, with equal results."""

import pytest
import torch
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig, GlobalVectorConfig
from simcast_hpc.models.earthformer.blocks import CrossAttentionBlock, SelfAttentionBlock

CONFIG = EarthformerConfig(
    grid=(6, 5),
    width=16,
    heads=2,
    stem={"kind": "none"},
    global_vectors=GlobalVectorConfig(count=3),
    encoder_pattern="video_swin_2x4",
    cross_pattern="cross_2x2_lg",
    projection_dropout=0.0,
    feed_forward_dropout=0.0,
)


def encoder_block() -> nn.Module:
    tokens = (3, 6, 5)
    return SelfAttentionBlock(
        CONFIG,
        level=0,
        pattern="video_swin_2x4",
        pattern_tokens=tokens,
        tokens=tokens,
        feed_forward_between=True,
        global_vectors=True,
    )


def decoder_block() -> nn.Module:
    return CrossAttentionBlock(CONFIG, level=0, pattern="cross_2x2_lg", memory=(3, 6, 5), frames_out=2)


def step(block: nn.Module, inputs: list[Tensor], function) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    block.zero_grad()
    outputs = function(*leaves) if isinstance(block, SelfAttentionBlock) else [function(*leaves, None)]
    sum(x.square().sum() for x in outputs).backward()
    gradients = [p.grad.clone() for p in block.parameters() if p.grad is not None]
    return [x.detach() for x in outputs] + [x.grad for x in leaves] + gradients


def compiled_equals_eager(make, device: str, backend: str) -> None:
    torch.manual_seed(1)
    block = make().to(device).train()
    for module in block.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # torch's dropout differs per call; that of the attention is counter-based
    context = torch.randn(1, 3, 16) if make is encoder_block else torch.randn(1, 3, 6, 5, 16)
    inputs = [torch.randn(1, 3 if make is encoder_block else 2, 6, 5, 16).to(device), context.to(device)]

    def function(*tensors):
        return block(*tensors, seed=7)

    eager = step(block, inputs, function)
    compiled = step(block, inputs, torch.compile(function, fullgraph=True, backend=backend))
    torch._dynamo.reset()
    assert len(eager) > 12
    for got, want in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [encoder_block, decoder_block])
def test_block_compiles_as_one_graph(make):
    compiled_equals_eager(make, "cpu", "aot_eager")


@pytest.mark.gpu
@pytest.mark.parametrize("make", [encoder_block, decoder_block])
def test_block_compiles_as_one_graph_with_inductor(make):
    if not torch.cuda.is_available():
        pytest.skip("requires a CUDA device")
    compiled_equals_eager(make, "cuda", "inductor")
