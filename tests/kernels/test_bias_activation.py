"""bias_activation: kernel and reference equal the definition in float64, results and gradients; dropout masks."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases.bias_activation_cases import CASES, BiasActivationCase
from simcast_kernels.bias_activation import bias_activation, replaces
from simcast_kernels.bias_activation.reference import bias_activation_reference, keep_mask
from tests.tolerance import assert_all_close

SMALL = [case for case in CASES if case.edge]
REAL = [case for case in CASES if not case.edge]
forward_op = torch.ops.simcast_kernels.bias_activation.default
backward_op = torch.ops.simcast_kernels.bias_activation_backward.default


def by_name(cases: list[BiasActivationCase]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def named(name: str) -> BiasActivationCase:
    return next(case for case in CASES if case.name == name)


def results(
    function: Any, case: BiasActivationCase, tensors: dict[str, Tensor], grad: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the result and all gradients of ``function``, computed in ``dtype``."""
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()}
    result = function(**leaves, **case.settings)
    found = torch.autograd.grad(result, list(leaves.values()), grad.to(dtype))
    return {"result": result.detach(), **{f"gradient of {n}": g for n, g in zip(leaves, found, strict=True)}}


def terms_of(exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum of the magnitudes of the terms of the gradient of the bias."""
    terms = exact["gradient of x"].abs()
    return {"gradient of bias": terms.reshape(-1, terms.shape[-1]).sum(0)}


def assert_case_is_right(case: BiasActivationCase, device: str, *, interpreted: bool) -> None:
    tensors = case.tensors(device, seed=4)
    generator = torch.Generator(device).manual_seed(5)
    grad = torch.randn(case.shape, device=device, generator=generator).to(case.dtype)
    kept = [t.clone() for t in (*tensors.values(), grad)]
    got = results(bias_activation, case, tensors, grad, case.dtype)
    reference = results(bias_activation_reference, case, tensors, grad, case.dtype)
    exact = results(bias_activation_reference, case, tensors, grad, torch.float64)
    assert_all_close(got, reference=reference, exact=exact, terms=terms_of(exact), truncates_bf16=interpreted)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*tensors.values(), grad), strict=True))


@pytest.mark.kernel
@by_name(SMALL)
def test_kernel_matches_the_definition(case, kernel_device):
    assert_case_is_right(case, kernel_device, interpreted=kernel_device == "cpu")


@by_name(SMALL)
def test_reference_matches_the_definition(case, reference_device):
    assert_case_is_right(case, reference_device, interpreted=False)


@pytest.mark.gpu
@by_name(REAL)
def test_real_sizes(case, cuda):
    samples, *rest = case.shape  # float64 copies of all samples would need more memory than a GPU has
    assert_case_is_right(dataclasses.replace(case, shape=(min(samples, 2), *rest)), cuda, interpreted=False)


def test_definition_is_the_formula():
    x, bias = torch.tensor([[1.0, -3.0]]).double(), torch.tensor([1.0, 1.0]).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    for activation, expected in (
        ("gelu", [2 * normal.cdf(torch.tensor(2.0)).item(), -2 * normal.cdf(torch.tensor(-2.0)).item()]),
        ("silu", [2 / (1 + 2.718281828459045**-2), -2 / (1 + 2.718281828459045**2)]),
        ("leaky_relu", [2.0, -1.0]),
        ("none", [2.0, -2.0]),
    ):
        result = bias_activation_reference(x, bias, activation=activation, slope=0.5, residual=torch.full_like(x, 10.0))
        assert result[0].tolist() == pytest.approx([10 + value for value in expected], rel=1e-7)


@pytest.mark.kernel
@pytest.mark.parametrize("columns", [24, 37, 200])
def test_dropout_mask_equals_the_reference(columns, kernel_device):
    """The masks of forward and backward pass equal the reference in every element, also beyond 2^32 in the key."""
    for seed in (0, 2**62 + 12345):
        x = torch.ones(70, columns, device=kernel_device, requires_grad=True)
        result = bias_activation(x, activation="none", dropout=0.3, seed=seed)
        (grad,) = torch.autograd.grad(result.sum(), x)
        mask = keep_mask(x.shape, dropout=0.3, seed=seed, device=x.device)
        expected = torch.where(mask, 2**16 / (2**16 - round(0.3 * 2**16)), 0.0)
        assert torch.equal(result, expected) and torch.equal(grad, expected)


def test_dropout_has_its_probability_and_no_pattern():
    shape = torch.Size([512, 4096])
    masks = [keep_mask(shape, dropout=0.1, seed=seed, device=torch.device("cpu")) for seed in (1, 2)]
    deviation = (0.1 * 0.9 / shape.numel()) ** 0.5
    for mask in masks:
        assert abs((~mask).double().mean() - 0.1) < 4 * deviation
        columns = (~mask.view(512, -1, 8)).double().mean((0, 1))  # of the eight positions of an octet
        assert (columns - 0.1).abs().max() < 4.5 * deviation * 8**0.5
    # Neighbors along columns and rows, and the masks of two seeds, are independent: both dropped in 1 of 100.
    first, second = (~mask for mask in masks)
    for a, b in ((first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first, second)):
        assert abs((a & b).double().mean() - 0.01) < 4 * (0.01 * 0.99 / shape.numel()) ** 0.5


@pytest.mark.kernel
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "leaky_relu", "none"])
def test_extreme_values(activation, kernel_device):
    """Large values saturate as in PyTorch, and a NaN changes only its own element and the sum of its column."""
    values = torch.tensor([0.0, -0.0, 1e4, -1e4, 1e15, -1e15, 40.0, float("nan")], device=kernel_device)
    x, bias = values.repeat(3, 1).requires_grad_(), torch.zeros(8, device=kernel_device, requires_grad=True)
    got, want = [], []
    for function, found in ((bias_activation, got), (bias_activation_reference, want)):
        result = function(x, bias, activation=activation)
        found += [result.detach(), *torch.autograd.grad(result.sum(), (x, bias))]
    for a, b in zip(got, want, strict=True):
        assert torch.isfinite(a[..., :7]).all()
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-6, atol=1e-7)


@pytest.mark.kernel
def test_accepts_any_layout_wide_bias_and_no_elements(kernel_device):
    case = named("odd")
    dense = case.tensors(kernel_device, seed=2)
    grad = torch.ones(case.shape, device=kernel_device)
    crooked = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in dense.items()}
    crooked["bias"] = torch.stack([dense["bias"]] * 2, dim=1)[:, 0]
    shifted = {}
    for name, tensor in dense.items():  # data that is not 16-byte aligned
        shifted[name] = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    want = results(bias_activation, case, dense, grad, case.dtype)
    for tensors in (crooked, shifted):
        got = results(bias_activation, case, tensors, grad, case.dtype)
        assert all(torch.equal(got[name], want[name]) for name in want)
    for dtype, rounding in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
        narrow = {k: v.to(dtype) if k in ("x", "residual") else v for k, v in dense.items()}
        leaves = {k: v.clone().requires_grad_() for k, v in narrow.items()}
        result = bias_activation(**leaves, **case.settings)
        result.sum().backward()
        grad = leaves["bias"].grad
        assert result.dtype == dtype and grad is not None and grad.dtype == torch.float32
        exact = bias_activation_reference(**{k: v.double() for k, v in narrow.items()}, **case.settings)
        torch.testing.assert_close(result.double(), exact, rtol=rounding, atol=rounding)
    empty, bias = (torch.zeros(shape, device=kernel_device, requires_grad=True) for shape in ((0, 8), (8,)))
    grads = torch.autograd.grad(bias_activation(empty, bias, dropout=0.1).sum(), (empty, bias))
    assert grads[0].shape == (0, 8) and torch.equal(grads[1], torch.zeros(8, device=kernel_device))


@pytest.mark.kernel
def test_saves_only_what_backward_reads(kernel_device):
    x, bias = torch.ones(4, 16, device=kernel_device, requires_grad=True), torch.zeros(16, device=kernel_device)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        bias_activation(x, bias, activation="none", dropout=0.5, residual=x)
        assert not saved
        bias_activation(x, bias, dropout=0.5, residual=x)
    assert sum(t.numel() for t in saved) == x.numel() + bias.numel()


def gradcheck(device: str) -> None:
    for activation, summed in (("gelu", True), ("gelu_tanh", False), ("silu", False), ("none", True)):
        case = dataclasses.replace(
            SMALL[0], shape=(2, 9), activation=activation, dtype=torch.float64, summed=summed, dropout=0.3
        )
        leaves = [t.detach().requires_grad_() for t in case.tensors(device, seed=1).values()]

        def function(x, bias, residual=None, case=case):
            return bias_activation(x, bias, residual=residual, **case.settings)

        assert torch.autograd.gradcheck(function, leaves)


def test_gradient_by_differences(reference_device):
    gradcheck(reference_device)


@pytest.mark.kernel
def test_float64_runs_the_reference(kernel_device):
    gradcheck(kernel_device)


def well_formed(device: str, *names: str) -> None:
    for name in names:
        case = named(name)
        leaves = {k: v.detach().clone().requires_grad_() for k, v in case.tensors(device, seed=1).items()}
        settings = (case.activation, case.slope, case.dropout, case.seed)
        torch.library.opcheck(forward_op, (leaves["x"], leaves.get("bias"), leaves.get("residual"), *settings))
        x, bias = leaves["x"].detach(), leaves["bias"].detach()
        torch.library.opcheck(backward_op, (torch.ones_like(x), x, bias, *settings))
        torch.library.opcheck(backward_op, (torch.ones_like(x), None, None, "none", *settings[1:]))


@pytest.mark.kernel
def test_opcheck(kernel_device):
    well_formed(kernel_device, "one-row")


def test_opcheck_of_the_reference(reference_device):
    well_formed(reference_device, "odd", "one-row", "odd-bf16")


def test_compiles_as_one_graph(reference_device):
    case = named("odd")
    tensors = case.tensors(reference_device, seed=1)

    def block(x, bias, residual):
        first = bias_activation(2 * x, bias, **case.settings)
        return bias_activation(x, bias, **case.settings, residual=first + residual)

    found = []
    for function in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
        out = function(*leaves)
        out.square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    torch._dynamo.reset()
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


X, B = torch.zeros(2, 4, 8), torch.zeros(8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.int()}, TypeError, "x is torch.int32"),
        ({"x": torch.zeros(())}, ValueError, "x has no axis"),
        ({"x": X[:1, :1].expand(2**16, 2**15, 8)}, ValueError, r"fewer than 2\*\*31 rows"),
        ({"bias": B.int()}, TypeError, "bias is torch.int32"),
        ({"bias": B[:3]}, ValueError, r"bias is \(3,\)"),
        ({"activation": "relu"}, ValueError, "activation='relu'.*choose one of gelu, gelu_tanh, silu, leaky_relu"),
        ({"dropout": 1.0}, ValueError, "dropout=1.0"),
        ({"dropout": 1 - 2.0**-20}, ValueError, "rounded to multiples"),
        ({"dropout": float("nan")}, ValueError, "dropout=nan"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"residual": X.bfloat16()}, TypeError, "residual is torch.bfloat16"),
        ({"residual": X[:1]}, ValueError, r"residual is \(1, 4, 8\)"),
    ],
)
def test_rejects_invalid_input(change, error, message):
    with pytest.raises(error, match=message):
        bias_activation(**({"x": X, "bias": B} | change))


class GridDropout(nn.Dropout):
    """A dropout with another mask, such as that of a sharded grid."""


def test_replaces_only_where_the_kernel_runs(monkeypatch):
    layers = nn.Linear(8, 8), nn.Dropout(0.1)
    monkeypatch.delenv("SIMCAST_KERNELS", raising=False)
    assert not replaces(X, *layers), "on a CPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SIMCAST_KERNELS", "triton")
    assert replaces(X, *layers)
    others = [(X.double(), layers), (X.to("meta"), layers), (X[:0], layers), (X, [GridDropout(0.1)])]
    assert not any(replaces(tensor, *other) for tensor, other in others)
    assert not replaces(X, nn.Linear(8, 8, bias=False))
