"""Cases of ``weighted_mse``: training batches, published variants, and sizes at the edges of the tiling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from benchmarks.cases import Direction
from simcast_kernels.dispatch import Launch

SEVIR = (219.0,)
SEVIR_LEVELS = (16.0, 31.0, 59.0, 74.0, 100.0, 133.0, 160.0, 181.0)
HKO7_BALANCED = (84.0, 118.0, 141.0, 158.0, 185.0)


@dataclass(frozen=True, kw_only=True)
class WeightedMseCase:
    """One input: ``shape`` is ``[B, T, C, H, W]``, ``dtype`` the prediction's, ``target`` the target's."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    target: torch.dtype = torch.uint8
    masked: bool = False
    thresholds: tuple[float, ...] = SEVIR
    weights: tuple[float, ...] = (1.0, 10.0)
    inclusive: bool = False
    code_scale: float = 255.0
    edge: bool = False
    spills_expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Elements of the prediction."""
        return prod(self.shape)

    @property
    def table(self) -> dict:
        """The keyword arguments of the op that are not tensors."""
        return {
            "thresholds": self.thresholds,
            "weights": self.weights,
            "inclusive": self.inclusive,
            "code_scale": self.code_scale,
        }

    def bytes_moved(self, direction: Direction) -> int:
        """Return the minimum bytes of one direction; backward reads the stored gradient and writes the scaled one."""
        if direction == "backward":
            return 2 * self.numel * self.dtype.itemsize
        read = self.dtype.itemsize + self.target.itemsize + self.masked
        return self.numel * (read + (self.dtype.itemsize if direction == "forward" else 0))

    def operations(self, direction: Direction) -> int:
        """Return 0: there is no matmul."""
        return 0

    def tensors(self, device: torch.device | str, *, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return random ``(prediction, target, mask)``: every encoded value occurs in large cases, 7 % is masked."""
        generator = torch.Generator(device).manual_seed(seed)
        codes = torch.randint(0, 256, self.shape, dtype=torch.uint8, device=device, generator=generator)
        target = codes if self.target == torch.uint8 else codes / torch.full((), self.code_scale, device=device)
        prediction = torch.rand(self.shape, device=device, generator=generator).to(self.dtype)
        mask = torch.rand(self.shape, device=device, generator=generator) > 0.07 if self.masked else None
        return prediction, target, mask


CASES = (
    WeightedMseCase(name="sevir-student", shape=(8, 12, 1, 384, 384), masked=True),
    WeightedMseCase(name="sevir-student-unmasked", shape=(8, 12, 1, 384, 384)),
    WeightedMseCase(name="sevir-student-online", shape=(8, 12, 1, 384, 384), target=torch.float32, masked=True),
    WeightedMseCase(name="sevir-student-bf16", shape=(8, 12, 1, 384, 384), dtype=torch.bfloat16, masked=True),
    WeightedMseCase(name="sevir-teacher", shape=(8, 6, 1, 384, 384), masked=True),
    WeightedMseCase(
        name="hko7-balanced",
        shape=(8, 10, 1, 480, 480),
        masked=True,
        thresholds=HKO7_BALANCED,
        weights=(1.0, 1.0, 2.0, 5.0, 10.0, 30.0),
        inclusive=True,
    ),
    WeightedMseCase(name="plain", shape=(8, 12, 1, 384, 384), thresholds=(), weights=(1.0,)),
    WeightedMseCase(name="quickstart", shape=(8, 6, 1, 48, 48), masked=True),
    WeightedMseCase(name="one-pixel", edge=True, shape=(1, 1, 1, 1, 1)),
    WeightedMseCase(name="odd", edge=True, shape=(3, 7, 1, 13, 19), masked=True, target=torch.float32),
    WeightedMseCase(name="one-past-a-program", edge=True, shape=(1, 1, 1, 17, 241), dtype=torch.bfloat16, masked=True),
    WeightedMseCase(
        name="eight-thresholds",
        edge=True,
        shape=(2, 3, 1, 65, 63),
        thresholds=SEVIR_LEVELS,
        weights=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0),
        code_scale=254.0,
    ),
)


def launches(case: WeightedMseCase) -> dict[Direction, list[Launch]]:
    """Return the launches of a case on ``meta`` tensors."""
    from simcast_kernels.weighted_mse import kernel  # imports Triton

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    prediction, gradient = empty(case.dtype, *case.shape), empty(case.dtype, *case.shape)
    target = empty(case.target, *case.shape)
    mask = empty(torch.bool, *case.shape) if case.masked else None
    partials = empty(torch.float32, kernel.partial_count(case.numel))

    def loss(stored: Tensor | None) -> Launch:
        return kernel.loss_launch(prediction, target, mask, partials=partials, gradient=stored, **case.table)

    scaled = kernel.scale_launch(gradient, empty(torch.float32), scaled=empty(case.dtype, *case.shape))
    return {"forward": [loss(gradient)], "backward": [scaled], "inference": [loss(None)]}
