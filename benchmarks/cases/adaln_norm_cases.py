"""Cases of ``adaln_norm``: both stacks of CasFormer, a bandwidth-bound one, and sizes at the edges of the tiling."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.cases import Direction
from simcast_kernels.dispatch import Launch


@dataclass(frozen=True, kw_only=True)
class AdalnNormCase:
    """One input: ``shape`` is ``[N, L, D]``; ``residual``: with a gated branch."""

    name: str
    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.bfloat16
    residual: bool = True
    edge: bool = False
    spills_expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Elements of the stream."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def bytes_moved(self, direction: Direction) -> int:
        """Return the minimum bytes: stream and branch in, modulated and stream out, mean and deviation of each row.

        Backward reads the gradient of the modulated tokens, stream and branch, and writes two gradients; a gradient
        of the stream from later layers is not counted.
        """
        tensors = (5 if self.residual else 3) if direction == "backward" else (4 if self.residual else 2)
        rows = self.shape[0] * self.shape[1] * 8
        return tensors * self.numel * self.dtype.itemsize + rows

    def operations(self, direction: Direction) -> int:
        """Return 0: there is no matmul."""
        return 0

    def tensors(self, device: torch.device | str, *, seed: int) -> dict[str, Tensor]:
        """Return random inputs of order 1; shift, scale and gate are chunks of one projection, as in the model."""
        generator = torch.Generator(device).manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator).to(self.dtype)

        shift, scale, gate = random(self.shape[0], 3 * self.shape[2]).chunk(3, dim=-1)
        tensors = {"x": random(*self.shape), "shift": shift, "scale": scale}
        return tensors | {"branch": random(*self.shape), "gate": gate} if self.residual else tensors


CASES = (
    AdalnNormCase(name="decoder", shape=(8, 576, 1152)),
    AdalnNormCase(name="decoder-fp32", shape=(8, 576, 1152), dtype=torch.float32),
    AdalnNormCase(name="decoder-first", shape=(8, 576, 1152), residual=False),
    AdalnNormCase(name="encoder", shape=(8, 6912, 256)),
    AdalnNormCase(name="encoder-fp32", shape=(8, 6912, 256), dtype=torch.float32),
    AdalnNormCase(name="pixel-size", shape=(8, 12288, 1152)),
    AdalnNormCase(name="pixel-size-fp32", shape=(8, 12288, 1152), dtype=torch.float32),
    AdalnNormCase(name="one-feature", edge=True, shape=(1, 1, 2), dtype=torch.float32),
    AdalnNormCase(name="odd", edge=True, shape=(3, 19, 37), dtype=torch.float32),
    AdalnNormCase(name="odd-first", edge=True, shape=(2, 5, 96), dtype=torch.float32, residual=False),
    AdalnNormCase(name="odd-bf16", edge=True, shape=(2, 33, 100)),
    AdalnNormCase(name="split", edge=True, shape=(2, 9, 1290)),
    AdalnNormCase(name="wide", edge=True, shape=(1, 3, 2305), dtype=torch.float32),
)


def launches(case: AdalnNormCase) -> dict[Direction, list[Launch]]:
    """Return the launches of a case on ``meta`` tensors."""
    from simcast_kernels.adaln_norm import kernel  # imports Triton

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=case.dtype, device="meta")

    x = empty(*case.shape)
    shift, scale, last = empty(case.shape[0], 3 * case.shape[2]).chunk(3, dim=-1)
    branch, gate = (empty(*case.shape), last) if case.residual else (None, None)
    mean, rstd = (torch.empty(case.shape[:2], device="meta") for _ in range(2))
    carried = None if branch is None else torch.empty_like(x)
    forward = kernel.forward_launch(
        x, shift, scale, branch, gate, eps=1e-6, modulated=torch.empty_like(x), carried=carried, mean=mean, rstd=rstd
    )
    sums = torch.empty(3, case.shape[0], kernel.part_count(*case.shape), case.shape[2], device="meta")
    backward = kernel.backward_launch(
        torch.empty_like(x),
        None if carried is None else torch.empty_like(x),
        x if carried is None else carried,
        scale,
        branch,
        gate,
        mean,
        rstd,
        grad_x=torch.empty_like(x),
        grad_branch=None if carried is None else torch.empty_like(x),
        partials=(sums[0], sums[1], None if branch is None else sums[2]),
    )
    return {"forward": [forward], "backward": [backward]}
