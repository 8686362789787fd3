"""Pairs of the regression check: our implementation and a plain one of the same computation, milliseconds each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import op_cases
from benchmarks.cases.adaln_norm_cases import AdalnNormCase
from benchmarks.cases.cuboid_attention_cases import CuboidAttentionCase
from benchmarks.cases.layer_norm_linear_cases import LayerNormLinearCase
from benchmarks.cases.sampler_step_cases import SamplerStepCase
from benchmarks.providers import Benchmark, use_implementation
from simcast_hpc.models.earthformer.stems import UpsampleConv
from simcast_hpc.models.group_norm_silu import group_norm_silu

# On a CPU an operator runs its reference: its ratio is the overhead of the custom operator and, for attention, of
# reordering into cuboids. These cases replace the released sizes, which take too long on a CPU.
CPU_CASES: dict[str, Any] = {
    "cuboid_attention": CuboidAttentionCase(
        name="cpu", shape=(1, 13, 16, 16, 64), heads=2, cuboid=(13, 1, 1), global_vectors=8, dtype=torch.float32
    ),
    "layer_norm_linear": LayerNormLinearCase(
        name="cpu", shape=(1, 13, 16, 16, 64), features=(192, 64), dtype=torch.float32
    ),
    "weighted_mse": "quickstart",
    "adaln_norm": AdalnNormCase(name="cpu", shape=(2, 576, 256), dtype=torch.float32),
    "sampler_step": SamplerStepCase(name="cpu", shape=(2, 12, 1, 96, 96)),
}
# Providers that are not timed on a CPU, where each takes half a minute to compile.
GPU_ONLY = ("compiled", "flex")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two calls with the same result and gradients; ``kept`` are their forward passes, to count saved memory."""

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    kept: tuple[Callable[[], Any], Callable[[], Any]] | None = None


def pairs(device: str) -> Iterator[Pair]:
    """Yield every pair for a device, operators first."""
    for op in sorted(CPU_CASES):
        yield from _of_operator(import_module(f"benchmarks.{op}").BENCHMARK, device)
    yield _group_norm_and_silu(device)
    yield _up_sampling(device)


def _of_operator(benchmark: Benchmark, device: str) -> Iterator[Pair]:
    cases = {case.name: case for case in op_cases(benchmark.op).CASES}
    case: Any = op_cases(benchmark.op).CASES[0]
    if device == "cpu":
        case = CPU_CASES[benchmark.op]
        case = cases[case] if isinstance(case, str) else case
    leaves: list[Tensor] = []
    tensors = _as_leaves(benchmark.tensors(case, device, 0), leaves if benchmark.differentiable else None)

    def call(provider: Any) -> Callable[[], Any]:
        def run() -> None:
            with use_implementation(provider.implementation):
                result = provider.function(*tensors)
                if leaves:
                    torch.autograd.grad(result.sum(), leaves, allow_unused=True)

        return run

    by_name = {p.name: p for p in benchmark.providers(case, device) if device != "cpu" or p.name not in GPU_ONLY}
    names = [("triton" if device == "cuda" else "reference", name) for name in by_name]
    names.append(("compiled", "pytorch"))
    for ours, peer in names:
        if ours in by_name and ours != peer:
            yield Pair(name=f"{benchmark.op} {ours}/{peer}", ours=call(by_name[ours]), peer=call(by_name[peer]))


def _as_leaves(inputs: Any, leaves: list[Tensor] | None) -> Any:
    """Return the arguments of a provider, every floating tensor a leaf that requires a gradient, as in training."""
    if isinstance(inputs, Tensor):
        if leaves is None or not inputs.is_floating_point():
            return inputs
        leaves.append(inputs.detach().clone().requires_grad_())
        return leaves[-1]
    return type(inputs)(_as_leaves(one, leaves) for one in inputs) if isinstance(inputs, list | tuple) else inputs


def _group_norm_and_silu(device: str) -> Pair:
    x = torch.randn(4, 64, 192, 192, device=device, requires_grad=True)
    norm = nn.GroupNorm(2, 64).to(device)

    def two() -> Tensor:
        return F.silu(norm(x))

    def one() -> Tensor:
        return group_norm_silu(x, norm)

    return Pair(name="group norm and SiLU one/two", ours=_backward(one, x), peer=_backward(two, x), kept=(one, two))


def _up_sampling(device: str) -> Pair:
    x = torch.randn(2, 32, 32, 32, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    conv = UpsampleConv(32, 32, grid=(96, 96)).to(device)

    def on_fine() -> Tensor:
        return F.conv2d(F.interpolate(x, size=(96, 96)), conv.weight, conv.bias, padding=1)

    def on_coarse() -> Tensor:
        return conv(x)

    return Pair(
        name="up-sampling by 3 transposed/repeated",
        ours=_backward(on_coarse, x),
        peer=_backward(on_fine, x),
        kept=(on_coarse, on_fine),
    )


def _backward(forward: Callable[[], Tensor], x: Tensor) -> Callable[[], Any]:
    shape = forward().shape
    grad = torch.randn(shape, device=x.device, generator=torch.Generator(x.device).manual_seed(0))
    return lambda: torch.autograd.grad(forward(), x, grad)


def kept_bytes(forward: Callable[[], Any]) -> int:
    """Return the bytes that a forward pass saves for backward, each storage once, parameters included."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return size
