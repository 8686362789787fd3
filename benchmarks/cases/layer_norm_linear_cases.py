"""Cases of ``layer_norm_linear``: layers of Earthformer at SEVIR size, and sizes at the edges of the tiling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from benchmarks.cases import Direction
from simcast_kernels.dispatch import Launch
from simcast_kernels.layer_norm_linear.reference import Inputs

EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class LayerNormLinearCase:
    """One input: ``shape`` is ``[..., D]`` of x, ``features`` the output width of each layer.

    ``misaligned``: the layers start 8 bytes after a multiple of 16, as in a flat buffer of parameters.
    """

    name: str
    shape: tuple[int, ...]
    features: tuple[int, ...]
    biased: bool = False
    misaligned: bool = False
    dtype: torch.dtype = torch.bfloat16
    edge: bool = False
    spills_expected: Mapping[str, str] = field(default_factory=dict)

    def bytes_moved(self, direction: Direction) -> int:
        """Return the minimum bytes: forward reads inputs, writes results; backward also writes all input gradients."""
        width, item = self.shape[-1], self.dtype.itemsize
        layers = (width + self.biased) * sum(self.features)
        x, norm, results = prod(self.shape), 2 * width, prod(self.shape[:-1]) * sum(self.features)
        return item * ((2 if direction == "backward" else 1) * (x + norm + layers) + results)

    def operations(self, direction: Direction) -> int:
        """Return the FLOPs of the layers or of the gradient of x; weight gradients are separate PyTorch matmuls."""
        return 2 * prod(self.shape) * sum(self.features)

    def tensors(self, device: torch.device | str, *, seed: int) -> Inputs:
        """Return random inputs whose results are of order 1; the rows of x have mean and spread."""
        generator = torch.Generator(device).manual_seed(seed)
        width = self.shape[-1]

        def random(*shape: int, spread: float, mean: float = 0.0) -> Tensor:
            return (torch.randn(shape, device=device, generator=generator) * spread + mean).to(self.dtype)

        x = random(*self.shape, spread=2.0, mean=0.5)
        weights = [self.placed(random(f, width, spread=width**-0.5)) for f in self.features]
        biases = [random(f, spread=0.5) for f in self.features] if self.biased else []
        return Inputs(x, random(width, spread=0.2, mean=1.0), random(width, spread=0.2), weights, biases)

    def placed(self, weight: Tensor) -> Tensor:
        """Return a weight where it is in memory: with ``misaligned`` a copy 8 bytes after a multiple of 16."""
        if not self.misaligned:
            return weight
        skipped = 8 // weight.element_size()
        flat = weight.new_empty(skipped + weight.numel())[skipped:]
        return flat.view(weight.shape).copy_(weight)


CASES = (
    LayerNormLinearCase(name="sevir-attention", shape=(8, 13, 32, 32, 128), features=(384, 128, 128, 128)),
    LayerNormLinearCase(
        name="sevir-attention-misaligned", shape=(8, 13, 32, 32, 128), features=(384, 128, 128, 128), misaligned=True
    ),
    LayerNormLinearCase(name="sevir-feed-forward", shape=(8, 13, 32, 32, 128), features=(512,), biased=True),
    LayerNormLinearCase(name="sevir-attention-no-vectors", shape=(8, 12, 32, 32, 128), features=(384,)),
    LayerNormLinearCase(name="sevir-cross-query", shape=(8, 12, 32, 32, 128), features=(128,)),
    LayerNormLinearCase(name="sevir-top-attention", shape=(8, 13, 16, 16, 256), features=(768, 256, 256, 256)),
    LayerNormLinearCase(name="sevir-top-feed-forward", shape=(8, 13, 16, 16, 256), features=(1024,), biased=True),
    LayerNormLinearCase(name="gated-feed-forward", shape=(8, 13, 32, 32, 128), features=(512, 512), biased=True),
    LayerNormLinearCase(name="wide-feed-forward", shape=(2, 12, 48, 48, 512), features=(2048,), biased=True),
    LayerNormLinearCase(name="widest-attention", shape=(2, 12, 24, 24, 1024), features=(3072,)),
    LayerNormLinearCase(name="100m-attention", shape=(4, 13, 32, 32, 448), features=(1344, 448, 448, 448)),
    LayerNormLinearCase(name="100m-feed-forward", shape=(4, 13, 32, 32, 448), features=(1792,), biased=True),
    LayerNormLinearCase(name="1b-attention", shape=(2, 13, 32, 32, 768), features=(2304, 768, 768, 768)),
    LayerNormLinearCase(
        name="sevir-attention-fp32", shape=(8, 13, 32, 32, 128), features=(384, 128, 128, 128), dtype=torch.float32
    ),
    LayerNormLinearCase(
        name="tiny", edge=True, shape=(2, 3, 5, 24), features=(40, 7), biased=True, dtype=torch.float32
    ),
    LayerNormLinearCase(name="one-row", edge=True, shape=(1, 16), features=(16,), dtype=torch.float32),
    LayerNormLinearCase(name="odd", edge=True, shape=(67, 130), features=(33, 65, 1)),
)  # fmt: skip


def launches(case: LayerNormLinearCase) -> dict[Direction, list[Launch]]:
    """Return the launches of a case on ``meta`` tensors."""
    from simcast_kernels.layer_norm_linear import kernel  # imports Triton

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=case.dtype, device="meta")

    width, rows = case.shape[-1], prod(case.shape[:-1])
    weights = [case.placed(empty(f, width)) for f in case.features]
    biases = [empty(f) for f in case.features] if case.biased else []
    inputs = kernel.prepared(Inputs(empty(*case.shape), empty(width), empty(width), weights, biases))
    results = [empty(rows, f) for f in case.features]
    d_x, normed, partials = kernel.buffers(inputs)
    return {
        "forward": [kernel.forward_launch(inputs, EPS, outs=results)],
        "backward": [kernel.backward_launch(inputs, results, EPS, d_x=d_x, normed=normed, partials=partials)],
    }
