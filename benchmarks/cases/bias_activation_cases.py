"""Cases of ``bias_activation``: feed-forwards of Earthformer and CasFormer, and edges of the tiling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Direction
from simcast_kernels.dispatch import Launch


@dataclass(frozen=True, kw_only=True)
class BiasActivationCase:
    """One input: ``shape`` is ``[..., C]``; ``biased`` and ``summed``: with a bias and a residual."""

    name: str
    shape: tuple[int, ...]
    activation: str = "gelu"
    slope: float = 0.01
    dropout: float = 0.0
    seed: int = 2**40 + 7
    biased: bool = True
    summed: bool = False
    dtype: torch.dtype = torch.bfloat16
    edge: bool = False
    spills_expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Elements of x."""
        return prod(self.shape)

    def bytes_moved(self, direction: Direction) -> int:
        """Return the bytes of one pass: x (and residual) in and result out; gradient (and x) in and gradient out."""
        tensors = 2 + (self.activation != "none") if direction == "backward" else 2 + self.summed
        return tensors * self.numel * self.dtype.itemsize

    def operations(self, direction: Direction) -> int:
        """Return 0: there is no matmul."""
        return 0

    def tensors(self, device: torch.device | str, *, seed: int) -> dict[str, Tensor]:
        """Return random inputs of order 1."""
        generator = torch.Generator(device).manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator).to(self.dtype)

        tensors = {"x": random(*self.shape)}
        if self.biased:
            tensors["bias"] = random(self.shape[-1])
        return tensors | {"residual": random(*self.shape)} if self.summed else tensors

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the op."""
        return {"activation": self.activation, "slope": self.slope, "dropout": self.dropout, "seed": self.seed}


def _case(name: str, *shape: int, **options: Any) -> BiasActivationCase:
    return BiasActivationCase(name=name, shape=shape, **options)


_SUM: dict[str, Any] = {"activation": "none", "summed": True}
_EDGE: dict[str, Any] = {"edge": True, "dtype": torch.float32}
CASES = (
    _case("sevir-hidden", 8, 13, 32, 32, 512, dropout=0.1),
    _case("sevir-output", 8, 13, 32, 32, 128, dropout=0.1, **_SUM),
    _case("sevir-hidden-16", 8, 13, 16, 16, 1024, dropout=0.1),
    _case("sevir-hidden-no-dropout", 8, 13, 32, 32, 512),
    _case("sevir-hidden-fp32", 8, 13, 32, 32, 512, dropout=0.1, dtype=torch.float32),
    _case("100m-hidden", 2, 13, 48, 48, 1792, dropout=0.1),
    _case("casformer", 8, 3072, 4608, activation="gelu_tanh"),
    _case("one-row", 1, 5, dropout=0.25, **_EDGE),
    _case("odd", 3, 7, 37, dropout=0.3, summed=True, **_EDGE),
    _case("odd-bf16", 19, 200, activation="gelu_tanh", edge=True, dropout=0.25),
    _case("two-parts", 2, 67, 24, activation="silu", dropout=0.1, **_EDGE),
    _case("blocks", 70, 260, activation="leaky_relu", slope=0.2, biased=False, **_EDGE),
    _case("sum", 41, 136, dropout=0.2, edge=True, **_SUM),
)


def launches(case: BiasActivationCase) -> dict[Direction, list[Launch]]:
    """Return the launches of a case on ``meta`` tensors."""
    from simcast_kernels.bias_activation import kernel  # imports Triton

    def like_x(present: bool = True) -> Tensor | None:
        return torch.empty(case.shape, dtype=case.dtype, device="meta") if present else None

    x, out, grad = (torch.empty(case.shape, dtype=case.dtype, device="meta") for _ in range(3))
    bias = torch.empty(case.shape[-1], dtype=case.dtype, device="meta") if case.biased else None
    settings = {"activation": case.activation, "slope": case.slope, "dropout": case.dropout, "seed": case.seed}
    forward = kernel.forward_launch(x, bias, like_x(case.summed), **settings, out=out)
    tiling = kernel.tiling_of(x)
    saved = (None, None) if case.activation == "none" else (x, bias)
    backward = kernel.backward_launch(
        grad,
        *saved,
        **settings,
        grad_x=torch.empty_like(x),
        bias_partials=torch.empty(tiling.parts, tiling.channels, device="meta"),
    )
    return {"forward": [forward], "backward": [backward]}
