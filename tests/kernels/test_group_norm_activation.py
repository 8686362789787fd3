"""group_norm_activation: kernel and reference equal the definition in float64, results and gradients."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases.group_norm_activation_cases import CASES, GroupNormActivationCase
from simcast_kernels.group_norm_activation import group_norm_activation, replaces
from simcast_kernels.group_norm_activation.reference import group_norm_activation_reference
from tests.tolerance import assert_all_close

SMALL = [case for case in CASES if case.edge]
REAL = [case for case in CASES if not case.edge]
forward_op = torch.ops.simcast_kernels.group_norm_activation.default
backward_op = torch.ops.simcast_kernels.group_norm_activation_backward.default


def by_name(cases: list[GroupNormActivationCase]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def named(name: str) -> GroupNormActivationCase:
    return next(case for case in CASES if case.name == name)


def results(
    function: Any, case: GroupNormActivationCase, tensors: dict[str, Tensor], grad: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the result and all gradients of ``function``, computed in ``dtype``."""
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()}
    result = function(**leaves, **case.settings)
    found = torch.autograd.grad(result, list(leaves.values()), grad.to(dtype))
    return {"result": result.detach(), **{f"gradient of {n}": g for n, g in zip(leaves, found, strict=True)}}


def terms_of(case: GroupNormActivationCase, tensors: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Return the sums of the magnitudes of the terms, for gradients that are sums over samples and pixels."""
    weight, bias = tensors["weight"].double(), tensors["bias"].double()
    normed = torch.group_norm(tensors["x"].double(), case.groups)
    z = (normed * weight[:, None, None] + bias[:, None, None]).requires_grad_()
    active = nn.functional.silu(z) if case.activation == "silu" else nn.functional.leaky_relu(z, case.slope)
    inner = torch.autograd.grad(active, z, grad.double())[0].abs()
    return {"gradient of weight": (inner * normed.abs()).sum((0, 2, 3)), "gradient of bias": inner.sum((0, 2, 3))}


def assert_case_is_right(case: GroupNormActivationCase, device: str, *, interpreted: bool) -> None:
    tensors = case.tensors(device, seed=4)
    generator = torch.Generator(device).manual_seed(5)
    grad = torch.randn(case.shape, device=device, generator=generator).to(case.dtype)
    kept = [t.clone() for t in (*tensors.values(), grad)]
    got = results(group_norm_activation, case, tensors, grad, case.dtype)
    assert got["result"].is_contiguous(memory_format=torch.channels_last)
    reference = results(group_norm_activation_reference, case, tensors, grad, case.dtype)
    exact = results(group_norm_activation_reference, case, tensors, grad, torch.float64)
    terms = terms_of(case, tensors, grad)
    assert_all_close(got, reference=reference, exact=exact, terms=terms, truncates_bf16=interpreted)
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
    samples, *rest = case.shape  # float64 copies of all samples would need 30 GB
    assert_case_is_right(dataclasses.replace(case, shape=(min(samples, 2), *rest)), cuda, interpreted=False)


def test_definition_is_the_formula():
    x = torch.tensor([1.0, 3.0, -2.0, 6.0], dtype=torch.float64).view(1, 2, 1, 2)  # groups: mean 2 and 2
    weight, bias = torch.tensor([2.0, 1.0]).double(), torch.tensor([0.5, -0.5]).double()
    total = torch.full_like(x, 10.0)
    result = group_norm_activation_reference(
        x, weight, bias, groups=2, activation="leaky_relu", slope=0.5, eps=0.0, total=total
    )
    assert result.flatten().tolist() == [10 - 0.75, 12.5, 10 - 0.75, 10.5]


@pytest.mark.kernel
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_variance_of_features_far_from_zero(mean, kernel_device):
    """The variance is not the difference of two large numbers, also if the first pixel is an outlier."""
    case = dataclasses.replace(named("two-parts"), dtype=torch.float32, summed=False)
    x = case.tensors(kernel_device, seed=6)["x"] + mean
    x[:, :, 0, 0] += 1000
    grad = torch.ones(case.shape, device=kernel_device)
    tensors = {"x": x, "weight": x.new_ones(16), "bias": x.new_zeros(16)}
    got = results(group_norm_activation, case, tensors, grad, torch.float32)["result"]
    exact = results(group_norm_activation_reference, case, tensors, grad, torch.float64)["result"]
    scale = 16 * torch.finfo(torch.float32).eps * (1 + mean / x.std().item())
    torch.testing.assert_close(got.double(), exact, rtol=scale, atol=scale)


def gradcheck(device: str) -> None:
    for activation, summed in (("silu", True), ("leaky_relu", False)):
        case = dataclasses.replace(SMALL[0], shape=(2, 4, 2, 3), groups=2, dtype=torch.float64, summed=summed)
        leaves = [t.detach().requires_grad_() for t in case.tensors(device, seed=1).values()]

        def function(x, weight, bias, total=None, activation=activation):
            return group_norm_activation(x, weight, bias, groups=2, activation=activation, total=total)

        assert torch.autograd.gradcheck(function, leaves)


def test_gradient_by_differences(reference_device):
    gradcheck(reference_device)


@pytest.mark.kernel
def test_float64_runs_the_reference(kernel_device):
    gradcheck(kernel_device)


@pytest.mark.kernel
def test_accepts_any_layout_and_wide_weights(kernel_device):
    case = named("odd")
    dense = case.tensors(kernel_device, seed=2)
    grad = torch.ones(case.shape, device=kernel_device)
    crooked = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in dense.items()}
    got, want = (results(group_norm_activation, case, t, grad, case.dtype) for t in (crooked, dense))
    assert all(torch.equal(got[name], want[name]) for name in want)
    narrow = {k: v.bfloat16() if k in ("x", "total") else v for k, v in dense.items()}
    result = group_norm_activation(**narrow, **case.settings)
    assert result.dtype == torch.bfloat16
    exact = group_norm_activation_reference(**{k: v.double() for k, v in narrow.items()}, **case.settings)
    torch.testing.assert_close(result.double(), exact, rtol=2**-7, atol=2**-7)


def well_formed(device: str, *names: str) -> None:
    for name in names:
        case = named(name)
        leaves = {k: v.detach().clone().requires_grad_() for k, v in case.tensors(device, seed=1).items()}
        x, weight, bias = leaves["x"], leaves["weight"], leaves["bias"]
        settings = (case.groups, case.activation, case.slope, 1e-5)
        torch.library.opcheck(forward_op, (x, weight, bias, leaves.get("total"), *settings))
        mean = torch.zeros(x.shape[0], case.groups, device=device)
        tensors = (torch.ones_like(x), x.detach(), weight.detach(), bias.detach(), mean, mean + 1)
        torch.library.opcheck(backward_op, (*tensors, *settings))


@pytest.mark.kernel
def test_opcheck(kernel_device):
    well_formed(kernel_device, "one-channel")


def test_opcheck_of_the_reference(reference_device):
    well_formed(reference_device, "odd", "one-channel")


def test_compiles_as_one_graph(reference_device):
    case = named("odd")
    tensors = case.tensors(reference_device, seed=1)

    def block(x, weight, bias, total):
        first = group_norm_activation(2 * x, weight, bias, **case.settings)
        return group_norm_activation(x, weight, bias, **case.settings, total=first + total)

    found = []
    for function in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
        out = function(*leaves)
        out.square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    torch._dynamo.reset()
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


X, W = torch.zeros(2, 4, 3, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.half()}, TypeError, "x is torch.float16"),
        ({"weight": W.half()}, TypeError, "weight is torch.float16"),
        ({"bias": W.double()}, TypeError, "bias is torch.float64 and weight"),
        ({"x": X[0]}, ValueError, r"shape \(4, 3, 3\)"),
        ({"x": X[:, :, :0]}, ValueError, "no empty axis"),
        ({"groups": 3}, ValueError, "groups=3 does not divide the 4 channels"),
        ({"groups": 0}, ValueError, "groups=0"),
        ({"activation": "gelu"}, ValueError, "activation='gelu'.*choose leaky_relu or silu"),
        ({"bias": W[:3]}, ValueError, r"bias is \(3,\)"),
        ({"total": X.bfloat16()}, TypeError, "total is torch.bfloat16"),
        ({"total": X[:1]}, ValueError, r"total is \(1, 4, 3, 3\)"),
    ],
)
def test_rejects_invalid_input(change, error, message):
    with pytest.raises(error, match=message):
        group_norm_activation(**({"x": X, "weight": W, "bias": W, "groups": 2, "activation": "silu"} | change))


class GridNorm(nn.GroupNorm):
    """A norm with other statistics, such as those of a sharded grid."""


def test_replaces_only_where_the_kernel_runs(monkeypatch):
    norm, x = nn.GroupNorm(2, 4), X.contiguous(memory_format=torch.channels_last)
    monkeypatch.delenv("SIMCAST_KERNELS", raising=False)
    assert not replaces(x, norm), "on a CPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SIMCAST_KERNELS", "triton")
    assert replaces(x, norm)
    others = [(X, norm), (x.double(), norm), (x, GridNorm(2, 4)), (x.to("meta"), norm), (x, nn.LayerNorm(3))]
    assert not any(replaces(tensor, other) for tensor, other in others)
    assert not replaces(x, nn.GroupNorm(2, 4, affine=False))
