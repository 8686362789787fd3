"""Cases of ``cuboid_attention``: layers of Earthformer at SEVIR size and larger, and small ones for edge cases."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from benchmarks.cases import Direction
from simcast_kernels.cuboid_attention import cuboid_attention, cuboid_cross_attention
from simcast_kernels.cuboid_attention.geometry import Inputs, Options, Triple, make_grid, make_problem
from simcast_kernels.cuboid_attention.reference import cuboid_attention_reference, cuboid_cross_attention_reference
from simcast_kernels.dispatch import Launch

LOCAL = ("l", "l", "l")
SM_80 = {"sm_80": "64 x 64 scores plus global vectors need too many registers"}
FP32 = dict.fromkeys(("sm_80", "sm_90", "sm_100"), "float32 matmuls use no matrix unit; training is in bfloat16")


@dataclass(frozen=True, kw_only=True)
class CuboidAttentionCase:
    """One input: ``shape`` is ``[B, T, H, W, D]`` of the result; ``memory_frames`` above 0 means cross-attention.

    ``shared_query``: the query also attends to the global vectors, as in the official implementation without
    ``separate_global_qkv``.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    heads: int
    cuboid: Triple
    strategy: tuple[str, str, str] = LOCAL
    shift: Triple = (0, 0, 0)
    padding: str = "ignore"
    biased: bool = True
    global_vectors: int = 0
    shared_query: bool = False
    memory_frames: int = 0
    dropout: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    edge: bool = False
    spills_expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict:
        """The keyword arguments of the op that are not tensors."""
        return {
            "heads": self.heads,
            "cuboid": self.cuboid,
            "strategy": self.strategy,
            "shift": self.shift,
            "padding": self.padding,
            "dropout": self.dropout,
            "seed": 2**61 + 11,  # 64 bits, as in training
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor argument by its name in ``Inputs``; the first are positional."""
        batch, _, h, w, width = self.shape
        cross = self.memory_frames > 0
        shapes: dict[str, tuple[int, ...]] = {"query": (*self.shape[:4], width if cross else 3 * width)}
        if cross:
            shapes["memory"] = (batch, self.memory_frames, h, w, 2 * width)
        if self.biased:
            main = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            problem = make_problem(Inputs(**main), Options(**self.options))
            shapes["bias"] = (self.heads, problem.query.tokens, problem.memory.tokens)
        if self.global_vectors:
            if not self.shared_query:
                shapes["global_query"] = self.shape
            shapes["global_key"] = shapes["global_value"] = (batch, self.global_vectors, width)
        return shapes

    def bytes_moved(self, direction: Direction) -> int:
        """Return the minimum bytes: forward reads inputs, writes the result; backward also writes all gradients."""
        item = self.dtype.itemsize
        inputs = sum(prod(shape) * (4 if name == "bias" else item) for name, shape in self.shapes.items())
        result = prod(self.shape) * item
        return 2 * inputs + result if direction == "backward" else inputs + result

    def operations(self, direction: Direction) -> int:
        """Return the FLOPs of two matmuls of each token with its cuboid and the global vectors; five in backward.

        Backward recomputes the weights and computes four gradients.
        """
        _, t, h, w, width = self.shape
        tokens = (self.memory_frames or t, h, w)
        grid = make_grid(tokens, cuboid=self.cuboid, strategy=self.strategy, shift=self.shift)
        forward = 4 * prod(self.shape[:4]) * (grid.tokens + self.global_vectors) * width
        return forward * 5 // 2 if direction == "backward" else forward

    def tensors(self, device: torch.device | str, *, seed: int) -> dict[str, Tensor]:
        """Return random inputs by name, of order 1; the bias is float32, like a parameter."""
        generator = torch.Generator(device).manual_seed(seed)
        return {
            name: torch.randn(shape, device=device, generator=generator).to(
                torch.float32 if name == "bias" else self.dtype
            )
            for name, shape in self.shapes.items()
        }

    def attention(self, tensors: dict[str, Tensor], *, reference: bool = False) -> Tensor:
        """Return the result of the op, or of its reference, for tensors named as in :meth:`tensors`."""
        rest = dict(tensors)
        main = [rest.pop(name) for name in ("query", "memory") if name in rest]
        if reference:
            function = cuboid_cross_attention_reference if self.memory_frames else cuboid_attention_reference
        else:
            function = cuboid_cross_attention if self.memory_frames else cuboid_attention
        return function(*main, **rest, **self.options)


def _axial(name: str, shape: tuple[int, int, int, int, int], axis: int, **more) -> CuboidAttentionCase:
    cuboid = [1, 1, 1]
    cuboid[axis] = shape[1 + axis]
    t, h, w = cuboid
    return CuboidAttentionCase(name=name, shape=shape, cuboid=(t, h, w), **{"heads": shape[-1] // 32, **more})


SEVIR, TOP = (8, 13, 32, 32, 128), (8, 13, 16, 16, 256)
TRAINED: dict = {"global_vectors": 8, "dropout": 0.1, "padding": "zeros"}  # the model's defaults
CASES = (
    _axial("sevir-axial-t", SEVIR, 0, global_vectors=8),
    _axial("sevir-axial-h", SEVIR, 1, global_vectors=8),
    _axial("sevir-axial-w", SEVIR, 2, global_vectors=8),
    _axial("sevir-axial-t-plain", SEVIR, 0),
    _axial("sevir-axial-h-plain", SEVIR, 1),
    _axial("sevir-axial-t-dropout", SEVIR, 0, global_vectors=8, dropout=0.1),
    _axial("sevir-axial-h-dropout", SEVIR, 1, **TRAINED),
    _axial("sevir-axial-w-dropout", SEVIR, 2, **TRAINED),
    _axial("sevir-top-t", TOP, 0, global_vectors=8),
    _axial("sevir-top-h", TOP, 1, global_vectors=8),
    _axial("sevir-axial-t-fp32", SEVIR, 0, global_vectors=8, dtype=torch.float32, spills_expected=FP32),
    _axial("sevir-axial-h-fp32", SEVIR, 1, global_vectors=8, dtype=torch.float32, spills_expected=FP32),
    CuboidAttentionCase(
        name="sevir-cross-1x1", shape=(8, 12, 16, 16, 256), heads=8, cuboid=(13, 1, 1), memory_frames=13
    ),
    CuboidAttentionCase(
        name="sevir-cross-1x1-dropout", shape=(8, 12, 16, 16, 256), heads=8, cuboid=(13, 1, 1), memory_frames=13,
        dropout=0.1, padding="zeros",
    ),
    CuboidAttentionCase(
        name="video-swin-2x4", shape=SEVIR, heads=4, cuboid=(2, 4, 4), shift=(1, 2, 2), global_vectors=8
    ),
    CuboidAttentionCase(
        name="video-swin-2x4-dropout", shape=SEVIR, heads=4, cuboid=(2, 4, 4), shift=(1, 2, 2), **TRAINED
    ),
    _axial("100m-axial-h-dropout", (4, 13, 32, 32, 448), 1, **TRAINED),
    _axial("100m-top-h-dropout", (4, 13, 16, 16, 896), 1, heads=14, **TRAINED),
    _axial("1b-axial-t-dropout", (2, 13, 32, 32, 768), 0, **TRAINED),
    _axial("1b-top-t-dropout", (2, 13, 16, 16, 1536), 0, heads=24, **TRAINED),
    CuboidAttentionCase(
        name="dilated-4x4", shape=SEVIR, heads=4, cuboid=(1, 4, 4), strategy=("l", "d", "d"), global_vectors=8
    ),
    CuboidAttentionCase(
        name="spatial-8x8-shared", shape=SEVIR, heads=4, cuboid=(1, 8, 8), global_vectors=8, shared_query=True,
        spills_expected=SM_80,
    ),
    _axial("large-axial-h", (8, 13, 64, 64, 128), 1, global_vectors=8, spills_expected=SM_80),
    _axial("larger-axial-h", (8, 13, 96, 96, 128), 1, global_vectors=8),
    _axial("wide-axial-t", (8, 12, 96, 96, 512), 0, global_vectors=8),
    CuboidAttentionCase(
        name="video-swin-2x8", shape=(8, 13, 32, 32, 128), heads=4, cuboid=(2, 8, 8), shift=(1, 4, 4),
        global_vectors=8,
    ),
    CuboidAttentionCase(
        name="video-swin-2x8-dropout", shape=SEVIR, heads=4, cuboid=(2, 8, 8), shift=(1, 4, 4), **TRAINED
    ),
    CuboidAttentionCase(
        name="cross-4x4", shape=(8, 12, 16, 16, 256), heads=8, cuboid=(13, 4, 4), shift=(0, 2, 2), memory_frames=13,
    ),
    CuboidAttentionCase(
        name="tiny", edge=True, shape=(2, 3, 5, 6, 16), heads=2, cuboid=(2, 3, 4), strategy=("l", "d", "l"),
        shift=(1, 0, 2), padding="zeros", global_vectors=3, dtype=torch.float32,
    ),
    CuboidAttentionCase(
        name="tiny-cross", edge=True, shape=(1, 2, 4, 5, 24), heads=3, cuboid=(9, 2, 2), shift=(0, 1, 1),
        memory_frames=3, dtype=torch.float32,
    ),
)  # fmt: skip


def launches(case: CuboidAttentionCase) -> dict[Direction, list[Launch]]:
    """Return the launches of a case on ``meta`` tensors."""
    from simcast_kernels.cuboid_attention import kernel  # imports Triton

    tensors = {
        name: torch.empty(shape, dtype=torch.float32 if name == "bias" else case.dtype, device="meta")
        for name, shape in case.shapes.items()
    }
    inputs = Inputs(**tensors)
    problem = make_problem(inputs, Options(**case.options))
    out = torch.empty(case.shape, dtype=case.dtype, device="meta")
    _, backward = kernel.backward_launches(inputs, problem, torch.empty_like(out))
    return {"forward": [kernel.forward_launch(inputs, problem, out=out)], "backward": backward}
