"""layer_norm_linear: reference and kernel equal the definition in float64; operator registration, invalid input."""

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases.layer_norm_linear_cases import CASES, LayerNormLinearCase
from simcast_kernels import dispatch
from simcast_kernels.dispatch import VARIABLE, interpreter_is_on
from simcast_kernels.layer_norm_linear import layer_norm_linear, operators
from simcast_kernels.layer_norm_linear.reference import Inputs, layer_norm_linear_reference
from tests.tolerance import assert_all_close

TINY = next(case for case in CASES if case.name == "tiny")
SMALL = [
    TINY,
    dataclasses.replace(TINY, name="tiny-bf16", dtype=torch.bfloat16),
    *(case for case in CASES if case.name in ("one-row", "odd")),
    LayerNormLinearCase(name="no-bias", shape=(5, 4, 32), features=(96, 32, 32, 32), dtype=torch.float32),
    LayerNormLinearCase(name="rows-of-two-tiles", shape=(2, 70, 128), features=(136,), biased=True),
    LayerNormLinearCase(name="wide", shape=(3, 600), features=(20, 70), dtype=torch.float32),
]
forward_op = torch.ops.simcast_kernels.layer_norm_linear.default
backward_op = torch.ops.simcast_kernels.layer_norm_linear_backward.default


def by_name(case: LayerNormLinearCase) -> str:
    return case.name


def flat(inputs: Inputs) -> list[Tensor]:
    return [*inputs[:3], *inputs.weights, *inputs.biases]


def packed(tensors: list[Tensor], like: Inputs) -> Inputs:
    layers = len(like.weights)
    return Inputs(*tensors[:3], tensors[3 : 3 + layers], tensors[3 + layers :])


def called(inputs: Inputs, *, reference: bool = False) -> list[Tensor]:
    function = layer_norm_linear_reference if reference else layer_norm_linear
    return function(*inputs[:3], weights=inputs.weights, biases=inputs.biases)


def factor_of(shape: torch.Size, x: Tensor) -> Tensor:
    """Return the gradient of a result, rounded to the dtype of x, so that it is equal in float64."""
    generator = torch.Generator(x.device).manual_seed(99)
    return torch.randn(shape, device=x.device, generator=generator).bfloat16().to(x.dtype)


def results_and_gradients(inputs: Inputs, *, reference: bool = False) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_() for x in flat(inputs)]
    results = called(packed(leaves, inputs), reference=reference)
    factors = [factor_of(result.shape, inputs.x).to(result.dtype) for result in results]
    kept = [factor.clone() for factor in factors]
    grads = torch.autograd.grad(results, leaves, factors)
    assert all(map(torch.equal, factors, kept)), "the backward must not write into grad_output"
    names = ["x", "norm_weight", "norm_bias", *(f"layer {i}" for i in range(len(grads) - 3))]
    found = {f"result {i}": result.detach() for i, result in enumerate(results)}
    return found | {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=True)}


def terms_of_sums(inputs: Inputs) -> dict[str, Tensor]:
    """Return the magnitudes of the terms of results (over features) and of the gradients of the norm (over rows)."""
    x, scale, shift, weights, biases = packed([x.double() for x in flat(inputs)], inputs)
    factors = [factor_of(torch.Size((*x.shape[:-1], weight.shape[0])), x).abs() for weight in weights]
    d_normed = sum((f @ w.abs() for f, w in zip(factors, weights, strict=True)), torch.zeros_like(x))
    unit = torch.nn.functional.layer_norm(x, x.shape[-1:])
    normed, rows = (unit * scale).abs() + shift.abs(), tuple(range(x.ndim - 1))
    found = {f"result {i}": normed @ weight.abs().T for i, weight in enumerate(weights)}
    for i, bias in enumerate(biases):
        found[f"result {i}"] += bias.abs()
    return found | {
        "gradient of norm_weight": (d_normed * unit.abs()).sum(rows),
        "gradient of norm_bias": d_normed.sum(rows),
    }


def assert_matches_definition(case: LayerNormLinearCase, device: str) -> None:
    inputs = case.tensors(device, seed=1)
    got, reference = results_and_gradients(inputs), results_and_gradients(inputs, reference=True)
    exact = results_and_gradients(packed([x.double() for x in flat(inputs)], inputs), reference=True)
    terms = terms_of_sums(inputs)
    for name, value in got.items():
        assert value.is_contiguous(), name
    assert_all_close(got, reference=reference, exact=exact, terms=terms, truncates_bf16=interpreter_is_on())


@pytest.mark.kernel
@pytest.mark.parametrize("case", SMALL, ids=by_name)
def test_kernel_matches_definition(case, kernel_device):
    assert_matches_definition(case, kernel_device)


@pytest.mark.parametrize("case", SMALL, ids=by_name)
def test_reference_matches_definition(case, reference_device):
    assert_matches_definition(case, reference_device)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_kernel_matches_definition_at_real_shapes(case, cuda):
    assert_matches_definition(case, cuda)


def test_definition_equals_pytorch():
    inputs = TINY.tensors("cpu", seed=2)
    normed = torch.nn.functional.layer_norm(inputs.x, (24,), inputs.norm_weight, inputs.norm_bias, 1e-5)
    for got, weight, bias in zip(called(inputs, reference=True), inputs.weights, inputs.biases, strict=True):
        assert torch.equal(got, torch.nn.functional.linear(normed, weight, bias))


@pytest.mark.kernel
def test_opcheck(kernel_device):
    inputs = TINY.tensors(kernel_device, seed=3)
    leaves = packed([x.clone().requires_grad_() for x in flat(inputs)], inputs)
    torch.library.opcheck(forward_op, (*leaves, 1e-5))
    grads = [torch.ones(*TINY.shape[:-1], features, device=kernel_device) for features in TINY.features]
    torch.library.opcheck(backward_op, (*inputs, grads, 1e-5, True))
    torch.library.opcheck(backward_op, (*inputs, grads, 1e-5, False), test_utils="test_schema")


@pytest.mark.kernel
def test_compiles_as_one_graph(kernel_device):
    def step(*tensors: Tensor) -> Tensor:
        results = called(packed([2 * x for x in tensors], inputs))
        return torch.stack([result.square().sum() for result in results]).sum()

    inputs = TINY.tensors(kernel_device, seed=4)
    grads = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in flat(inputs)]
        grads.append(torch.autograd.grad(function(*leaves), leaves))
    torch._dynamo.reset()
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.kernel
def test_is_bitwise_reproducible(kernel_device):
    inputs = SMALL[-2].tensors(kernel_device, seed=5)
    first, second = results_and_gradients(inputs), results_and_gradients(inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.kernel
def test_inputs_need_not_be_contiguous(kernel_device):
    inputs = TINY.tensors(kernel_device, seed=6)
    views = [torch.stack([x, x], dim=-1)[..., 0] for x in flat(inputs)]
    assert not any(view.is_contiguous() for view in views)
    want = results_and_gradients(inputs)
    for name, got in results_and_gradients(packed(views, inputs)).items():
        assert torch.equal(got, want[name]), name


def in_guards(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of ``values`` in the middle of a buffer of NaN, and that buffer."""
    buffer = torch.full((values.numel() + 8192,), float("nan"), dtype=values.dtype, device=values.device)
    inner = buffer[4096 : 4096 + values.numel()].view(values.shape)
    return inner.copy_(values), buffer


@pytest.mark.kernel
@pytest.mark.parametrize("case", [TINY, SMALL[3]], ids=by_name)
def test_accesses_stay_within_the_tensors(case, kernel_device):
    from simcast_kernels.layer_norm_linear import kernel

    tensors = case.tensors(kernel_device, seed=7)
    inputs = packed([in_guards(x)[0] for x in flat(tensors)], tensors)
    outs = [in_guards(torch.full_like(out, float("nan"))) for out in called(tensors)]
    written = [in_guards(torch.full_like(x, float("nan"))) for x in kernel.buffers(inputs)]
    kernel.forward_launch(inputs, 1e-5, outs=[inner for inner, _ in outs]).run()
    grads = [in_guards(inner.flatten(0, -2))[0] for inner, _ in outs]
    d_x, normed, partials = (inner for inner, _ in written)
    kernel.backward_launch(inputs, grads, 1e-5, d_x=d_x, normed=normed, partials=partials).run()
    for inner, around in [*outs, *written]:
        assert torch.isfinite(inner).all(), "every element must be written"
        assert int(torch.isnan(around).sum()) == around.numel() - inner.numel(), "nothing else may be"


@pytest.mark.kernel
def test_unused_result_has_no_gradient(kernel_device):
    inputs = TINY.tensors(kernel_device, seed=8)
    leaves = packed([x.clone().requires_grad_() for x in flat(inputs)], inputs)
    first, _ = called(leaves)
    first.sum().backward()
    alone = layer_norm_linear(*inputs[:3], weights=inputs.weights[:1], biases=inputs.biases[:1])
    assert torch.equal(first, alone[0])
    assert leaves.weights[1].grad.abs().max() == 0 and leaves.weights[0].grad.abs().max() > 0


@pytest.mark.kernel
def test_frozen_layers_need_no_matmuls(kernel_device):
    inputs = TINY.tensors(kernel_device, seed=8)
    want = results_and_gradients(inputs)["gradient of x"]
    leaf = inputs.x.clone().requires_grad_()
    results = called(inputs._replace(x=leaf))
    factors = [factor_of(result.shape, leaf) for result in results]
    with FlopCounterMode(display=False) as counter:
        (got,) = torch.autograd.grad(results, leaf, factors)
    assert torch.equal(got, want)
    assert counter.get_total_flops() == 2 * 30 * 24 * 47


@pytest.mark.kernel
def test_unsupported_input_runs_the_reference_with_one_warning(kernel_device, monkeypatch):
    monkeypatch.setattr(dispatch, "_warned", set())
    inputs = dataclasses.replace(TINY, shape=(2, 1025)).tensors(kernel_device, seed=9)
    with pytest.warns(UserWarning, match="slower PyTorch reference: width 1025 is more than 1024"):
        got = called(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called(inputs)
    assert all(map(torch.equal, got, called(inputs, reference=True)))


@pytest.mark.kernel
@pytest.mark.parametrize(("value", "dtype", "width", "runs"), [
    ("triton", torch.float32, 24, True), ("", torch.float32, 24, False), ("", torch.bfloat16, 24, True),
    ("", torch.bfloat16, 256, True), ("", torch.bfloat16, 257, False), ("triton", torch.bfloat16, 257, True),
])  # fmt: skip
def test_float32_and_wide_rows_run_the_kernel_only_on_request(value, dtype, width, runs, kernel_device, monkeypatch):
    from simcast_kernels.layer_norm_linear import kernel

    calls, run = [], kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *a: calls.append(1) or run(*a))
    monkeypatch.setattr(operators, "select_implementation", lambda op, device: "triton")  # as on CUDA
    monkeypatch.setenv(VARIABLE, value)
    called(dataclasses.replace(TINY, dtype=dtype, shape=(5, width)).tensors(kernel_device, seed=10))
    assert bool(calls) is runs


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_misaligned_weights_are_copied_to_multiples_of_16_bytes(dtype, kernel_device):
    from simcast_kernels.layer_norm_linear import kernel

    case = dataclasses.replace(TINY, dtype=dtype)
    inputs = dataclasses.replace(case, misaligned=True).tensors(kernel_device, seed=11)
    assert {weight.data_ptr() % 16 for weight in inputs.weights} == {8}
    aligned = kernel.prepared(inputs)
    assert {weight.data_ptr() % 16 for weight in aligned.weights} == {0}
    assert all(a is b for a, b in zip(kernel.prepared(aligned).weights, aligned.weights, strict=True))
    want = results_and_gradients(case.tensors(kernel_device, seed=11))
    assert all(torch.equal(value, want[name]) for name, value in results_and_gradients(inputs).items())


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_equals_the_pytorch_layers(x_dtype, reference_device):
    inputs = TINY.tensors(reference_device, seed=11)
    x = inputs.x.to(x_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = layer_norm_linear(x, *inputs[1:3], weights=inputs.weights, biases=inputs.biases)
        normed = torch.nn.functional.layer_norm(x.float(), (24,), *inputs[1:3])
        want = [torch.nn.functional.linear(normed, w, b) for w, b in zip(*inputs[3:], strict=True)]
        (gradient,) = torch.autograd.grad(got[0].float().sum() + got[1].float().sum(), x)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype == torch.bfloat16 and torch.equal(ours, theirs)
    assert gradient.dtype == x_dtype and torch.isfinite(gradient).all()


def test_flop_counter_counts_the_op(reference_device):
    inputs = TINY.tensors(reference_device, seed=12)
    leaves = packed([x.clone().requires_grad_() for x in flat(inputs)], inputs)
    with FlopCounterMode(display=False) as counter:
        results = called(leaves)
        forward = counter.get_total_flops()
        torch.cat(results, dim=-1).sum().backward()
    assert forward == 2 * 30 * 24 * 47
    assert counter.get_total_flops() == 3 * forward


GOOD = {"x": torch.zeros(2, 3, 8), "norm_weight": torch.ones(8), "norm_bias": torch.zeros(8)}
LAYERS = {"weights": [torch.zeros(5, 8), torch.zeros(4, 8)], "biases": [torch.zeros(5), torch.zeros(4)]}
INVALID = {
    "half x": ({"x": torch.zeros(2, 8).half()}, TypeError, "x is torch.float16"),
    "half": ({"weights": [torch.zeros(5, 8).half()], "biases": []}, TypeError, "weights is torch.float16"),
    "empty": ({"x": torch.zeros(0, 8)}, ValueError, r"x has shape \(0, 8\)"),
    "width": ({"x": torch.zeros(2, 9)}, ValueError, r"norm_weight has shape \(8,\); it must be \[9\]"),
    "norm bias": ({"norm_bias": torch.zeros(7)}, ValueError, r"norm_bias has shape \(7,\)"),
    "no weights": ({"weights": [], "biases": []}, ValueError, "weights is empty"),
    "vector": ({"weights": [torch.zeros(8)], "biases": []}, ValueError, r"weights\[0\] has shape \(8,\)"),
    "depth": ({"weights": [torch.zeros(5, 8), torch.zeros(4, 9)]}, ValueError, r"weights\[1\] has shape \(4, 9\)"),
    "mixed": ({"weights": [torch.zeros(5, 8), torch.zeros(4, 8).bfloat16()]}, TypeError, r"weights\[1\] is .*bfloat16"),
    "one bias": ({"biases": [torch.zeros(5)]}, ValueError, "1 biases for 2 weights"),
    "bias": ({"biases": [torch.zeros(5), torch.zeros(5)]}, ValueError, r"biases\[1\] has shape \(5,\)"),
    "device": ({"norm_bias": torch.zeros(8, device="meta")}, ValueError, "norm_bias is on meta"),
}


@pytest.mark.parametrize(("change", "error", "message"), INVALID.values(), ids=INVALID.keys())
def test_rejects_invalid_input(change, error, message, reference_device):
    with pytest.raises(error, match=message):
        layer_norm_linear(**{**GOOD, **LAYERS, **change})
