"""cuboid_attention as a PyTorch operator: invalid input, registration, compilation, memory, determinism."""

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor

from benchmarks.cases.cuboid_attention_cases import CASES, CuboidAttentionCase
from simcast_kernels import dispatch
from simcast_kernels.cuboid_attention import cuboid_attention, cuboid_cross_attention
from simcast_kernels.cuboid_attention.geometry import Inputs, Options, make_problem

# Few programs, because the interpreter is slow and opcheck calls an operator a dozen times.
TINY = CuboidAttentionCase(
    name="self", shape=(2, 2, 3, 3, 8), heads=1, cuboid=(2, 2, 2), strategy=("l", "d", "l"), shift=(0, 0, 1),
    padding="zeros", global_vectors=3, dtype=torch.float32,
)  # fmt: skip
CROSS = dataclasses.replace(TINY, name="cross", shape=(1, 2, 3, 4, 16), heads=2, memory_frames=3, cuboid=(9, 2, 4),
                            padding="ignore", global_vectors=0)  # fmt: skip
SPLIT = dataclasses.replace(TINY, name="split", shape=(1, 3, 6, 5, 8), cuboid=(3, 5, 5), strategy=("l",) * 3,
                            shift=(0, 2, 0), padding="ignore")  # fmt: skip
KINDS = [pytest.param(case, id=case.name) for case in (TINY, CROSS, SPLIT)]
forward_op = torch.ops.simcast_kernels.cuboid_attention.default
backward_op = torch.ops.simcast_kernels.cuboid_attention_backward.default


def result_and_gradients(case: CuboidAttentionCase, tensors: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    result = case.attention(leaves)
    factor = torch.arange(result.numel(), device=result.device).view(result.shape).sin().to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, list(leaves.values()), factor)]


def check_operators(case: CuboidAttentionCase, device: str) -> None:
    tensors = case.tensors(device, seed=1)
    names = ("query", "memory", "bias", "global_query", "global_key", "global_value")
    inputs = [tensors.get(name) for name in names]
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    options = (case.heads, list(case.cuboid), "".join(case.strategy), list(case.shift), case.padding, 0.3, 0.2, 5,
               [0, 1, 0], [case.shape[1], case.shape[2] + 1, case.shape[3]])  # fmt: skip
    torch.library.opcheck(forward_op, (*leaves, *options))
    grad = torch.ones(case.shape, device=device)
    torch.library.opcheck(backward_op, (*inputs, grad, *options))


@pytest.mark.kernel
@pytest.mark.parametrize("case", KINDS)
def test_opcheck(case, kernel_device):
    check_operators(case, kernel_device)


@pytest.mark.parametrize("case", KINDS)
def test_opcheck_of_the_reference(case, reference_device):
    check_operators(case, reference_device)


def compiled_equals_eager(case: CuboidAttentionCase, device: str, *, backend: str) -> None:
    tensors = case.tensors(device, seed=2)

    def step(**inputs):
        return case.attention({name: 2 * x for name, x in inputs.items()}).square().sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
        function(**leaves).backward()
        results.append([x.grad for x in leaves.values()])
    torch._dynamo.reset()
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.kernel
@pytest.mark.parametrize("case", KINDS)
def test_compiles_as_one_graph(case, kernel_device):
    compiled_equals_eager(case, kernel_device, backend="aot_eager")


@pytest.mark.parametrize("case", [TINY, dataclasses.replace(TINY, padding="nearest")], ids=["zeros", "nearest"])
def test_compiles_as_one_graph_in_the_reference(case, reference_device):
    compiled_equals_eager(case, reference_device, backend="aot_eager")


@pytest.mark.gpu
def test_compiles_as_one_graph_with_inductor(cuda):
    compiled_equals_eager(TINY, cuda, backend="inductor")


@pytest.mark.kernel
@pytest.mark.parametrize("case", KINDS)
def test_is_bitwise_reproducible(case, kernel_device):
    case = dataclasses.replace(case, dropout=0.2)
    tensors = case.tensors(kernel_device, seed=3)
    first, second = (result_and_gradients(case, tensors) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sevir-axial-t-dropout", "sevir-axial-h", "video-swin-2x8", "sevir-cross-1x1"])
def test_is_bitwise_reproducible_at_real_shapes(name, cuda):
    case = next(c for c in CASES if c.name == name)
    tensors = case.tensors(cuda, seed=3)
    first = result_and_gradients(case, tensors)
    for _ in range(3):
        for a, b in zip(first, result_and_gradients(case, tensors), strict=True):
            assert torch.equal(a, b)


@pytest.mark.kernel
@pytest.mark.parametrize("case", KINDS)
def test_inputs_need_not_be_contiguous(case, kernel_device):
    tensors = case.tensors(kernel_device, seed=4)
    views = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in tensors.items()}
    assert not any(view.is_contiguous() for view in views.values())
    for got, want in zip(result_and_gradients(case, views), result_and_gradients(case, tensors), strict=True):
        assert got.is_contiguous() and torch.equal(got, want)


@pytest.mark.kernel
def test_gradient_need_not_be_contiguous(kernel_device):
    tensors = TINY.tensors(kernel_device, seed=5)
    leaf = tensors["query"].requires_grad_()
    result = TINY.attention(tensors)
    factor = torch.randn(*reversed(result.shape), device=kernel_device).permute(4, 3, 2, 1, 0)
    (got,) = torch.autograd.grad(result, leaf, factor, retain_graph=True)
    (want,) = torch.autograd.grad(result, leaf, factor.contiguous(), retain_graph=True)
    assert torch.equal(got, want)
    (expanded,) = torch.autograd.grad(result.sum(), leaf)
    assert torch.isfinite(expanded).all()


def in_guards(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of ``values`` in the middle of a buffer of NaN, and that buffer."""
    buffer = torch.full((values.numel() + 8192,), float("nan"), dtype=values.dtype, device=values.device)
    inner = buffer[4096 : 4096 + values.numel()].view(values.shape)
    return inner.copy_(values), buffer


@pytest.mark.kernel
@pytest.mark.parametrize("case", KINDS)
def test_accesses_stay_within_the_tensors(case, kernel_device, monkeypatch):
    from simcast_kernels.cuboid_attention import kernel

    guards = []

    def guarded(*arguments):
        found = original(*arguments)
        banded = [None if x is None else in_guards(torch.full_like(x, float("nan"))) for x in found]
        guards.extend(pair for pair in banded if pair is not None)
        return Inputs._make(None if pair is None else pair[0] for pair in banded)

    original = kernel._buffers
    monkeypatch.setattr(kernel, "_buffers", guarded)
    tensors = {name: in_guards(x)[0] for name, x in case.tensors(kernel_device, seed=6).items()}
    for tensor in result_and_gradients(case, tensors):
        assert torch.isfinite(tensor).all()
    rest = dict(tensors)
    inputs = Inputs(rest.pop("query"), **rest)
    out, buffer = in_guards(torch.full(case.shape, float("nan"), device=kernel_device))
    kernel.forward_launch(inputs, make_problem(inputs, Options(**case.options)), out=out).run()
    for inner, around in [*guards, (out, buffer)]:
        assert torch.isfinite(inner).all(), "every element must be written"
        assert int(torch.isnan(around).sum()) == around.numel() - inner.numel(), "nothing else may be"


@pytest.mark.kernel
def test_nan_stays_in_its_cuboid(kernel_device):
    """Cuboids of fewer than 9 tokens share a tile, where 0 times NaN is NaN."""
    case = CuboidAttentionCase(name="n", shape=(1, 3, 4, 4, 8), heads=1, cuboid=(3, 2, 2), dtype=torch.float32)
    tensors = case.tensors(kernel_device, seed=7)
    tensors["query"][0, 0, 0, 0, -1] = float("nan")
    result = case.attention(tensors)
    assert torch.isnan(result[0, :, :2, :2, -1]).all()
    assert int(torch.isnan(result).sum()) == 12


@pytest.mark.kernel
@pytest.mark.parametrize("change", [{"padding": "nearest"}, {"global_vectors": 65}, {"shape": (1, 3, 5, 6, 129)}])
def test_unsupported_input_runs_the_reference_with_one_warning(change, kernel_device, monkeypatch):
    monkeypatch.setattr(dispatch, "_warned", set())
    case = dataclasses.replace(TINY, **change)
    tensors = case.tensors(kernel_device, seed=8)
    with pytest.warns(
        UserWarning, match="runs its slower PyTorch reference: (padding|65 global vectors|head size 129)"
    ):
        got = case.attention(tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.attention(tensors)
    assert torch.equal(got, case.attention(tensors, reference=True))


def assert_autocast_has_no_effect(device: str) -> None:
    tensors = TINY.tensors(device, seed=9)
    want = result_and_gradients(TINY, tensors)
    with torch.autocast(device, torch.bfloat16):
        found = result_and_gradients(TINY, tensors)
    for got, expected in zip(found, want, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, expected)


@pytest.mark.kernel
def test_autocast_does_not_affect_the_op(kernel_device):
    assert_autocast_has_no_effect(kernel_device)


def test_autocast_does_not_affect_the_reference(reference_device):
    assert_autocast_has_no_effect(reference_device)


@pytest.mark.gpu
def test_captured_in_a_cuda_graph(cuda):
    tensors = TINY.tensors(cuda, seed=10)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result_and_gradients(TINY, tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = result_and_gradients(TINY, tensors)
    tensors["query"].mul_(0.5)
    graph.replay()
    for got, want in zip(captured, result_and_gradients(TINY, tensors), strict=True):
        assert torch.equal(got, want)


OPTIONS = {"heads": 2, "cuboid": (2, 3, 4), "strategy": ("l", "l", "l"), "shift": (0, 0, 0)}
ONES = torch.ones(1, 2, 8)
INVALID = {
    "half": ({"qkv": torch.zeros(1, 3, 5, 6, 24).half()}, TypeError, "qkv is torch.float16"),
    "four axes": ({"qkv": torch.zeros(3, 5, 6, 24)}, ValueError, r"qkv has shape \(3, 5, 6, 24\)"),
    "width": ({"qkv": torch.zeros(1, 3, 5, 6, 25)}, ValueError, r"qkv has shape .*25.*3 D"),
    "empty": ({"qkv": torch.zeros(1, 3, 0, 6, 24)}, ValueError, "no empty axis"),
    "heads": ({"heads": 3}, ValueError, "heads is 3; it must divide the width D = 8"),
    "no heads": ({"heads": 0}, ValueError, "heads is 0"),
    "cuboid": ({"cuboid": (2, 0, 4)}, ValueError, r"cuboid is \(2, 0, 4\)"),
    "strategy": ({"strategy": ("l", "x", "d")}, ValueError, "strategy is .*'l' .local. or 'd'"),
    "negative shift": ({"shift": (0, -1, 0)}, ValueError, r"shift is \(0, -1, 0\)"),
    "large shift": ({"shift": (0, 3, 0)}, ValueError, "along axis 1 it must be below 3"),
    "padding": ({"padding": "reflect"}, ValueError, "padding is 'reflect'; it must be ignore, zeros, nearest"),
    "dropout": ({"dropout": 1.0}, ValueError, "dropout is 1.0"),
    "seed": ({"dropout": 0.1, "seed": -1}, ValueError, "seed is -1"),
    "negative offset": ({"offset": (0, -1, 0)}, ValueError, r"offset is \(0, -1, 0\)"),
    "two axes": ({"domain": (5, 6)}, ValueError, r"domain is \(5, 6\); each must be three"),
    "small domain": ({"domain": (3, 4, 6)}, ValueError, r"domain is \(3, 4, 6\); it must contain .*\(3, 5, 6\)"),
    "outside": ({"domain": (3, 9, 6), "offset": (0, 5, 0)}, ValueError, r"must contain .* at offset \(0, 5, 0\)"),
    "offset alone": ({"offset": (0, 0, 1)}, ValueError, r"domain is \(3, 5, 6\); it must contain"),
    "large domain": ({"domain": (3, 2**15, 2**15)}, ValueError, r"fewer than 2\*\*31 tokens"),
    "nearest": ({"domain": (3, 5, 8), "padding": "nearest"}, ValueError, "with padding 'nearest' it must be the grid"),
    "bias shape": ({"bias": torch.zeros(2, 24, 23)}, ValueError, r"bias has shape .*\(2, 24, 24\)"),
    "bias dtype": ({"bias": torch.zeros(2, 24, 24).half()}, TypeError, "bias is torch.float16"),
    "value alone": ({"global_value": ONES}, ValueError, "global_key is None"),
    "key alone": ({"global_key": ONES}, ValueError, "global_value is None"),
    "query alone": ({"global_query": torch.zeros(1, 3, 5, 6, 8)}, ValueError, "global_query requires global_key"),
    "key shape": ({"global_key": ONES[0], "global_value": ONES}, ValueError, r"global_key has shape \(2, 8\)"),
    "key batch": ({"global_key": ONES.repeat(2, 1, 1), "global_value": ONES}, ValueError, "global_key has shape"),
    "value shape": ({"global_key": ONES, "global_value": ONES[:, :1]}, ValueError, "global_value has shape"),
    "key dtype": ({"global_key": ONES.bfloat16(), "global_value": ONES}, TypeError, "global_key is torch.bfloat16"),
    "query shape": (
        {"global_key": ONES, "global_value": ONES, "global_query": torch.zeros(1, 3, 5, 6, 24)},
        ValueError, "global_query has shape",
    ),
    "other device": ({"bias": torch.zeros(2, 24, 24, device="meta")}, ValueError, "bias is on meta"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), INVALID.values(), ids=INVALID.keys())
def test_rejects_invalid_input(change, error, message, reference_device):
    inputs = {"qkv": torch.zeros(1, 3, 5, 6, 24), **OPTIONS} | change
    with pytest.raises(error, match=message):
        cuboid_attention(inputs.pop("qkv"), **inputs)


@pytest.mark.parametrize(
    ("memory", "cuboid", "message"),
    [
        (
            torch.zeros(1, 4, 5, 6, 8),
            (4, 3, 4),
            r"key_value has shape \(1, 4, 5, 6, 8\); it must be \[1, Tm, 5, 6, 16\]",
        ),
        (torch.zeros(1, 4, 5, 7, 16), (4, 3, 4), "key_value has shape"),
        (torch.zeros(4, 5, 6, 16), (4, 3, 4), "key_value has shape"),
        (torch.zeros(1, 4, 5, 6, 16), (3, 3, 4), "must contain all frames, at least 4"),
    ],
)
def test_rejects_invalid_memory(memory, cuboid, message, reference_device):
    with pytest.raises(ValueError, match=message):
        cuboid_cross_attention(torch.zeros(1, 3, 5, 6, 8), memory, **OPTIONS | {"cuboid": cuboid})
