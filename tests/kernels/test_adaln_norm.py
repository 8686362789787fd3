"""adaln_norm: kernel and reference equal the definition in float64, results and gradients."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases.adaln_norm_cases import CASES, AdalnNormCase
from simcast_kernels.adaln_norm import adaln_norm
from simcast_kernels.adaln_norm.reference import adaln_norm_reference
from tests.tolerance import assert_all_close

SMALL = [case for case in CASES if case.numel < 10_000]
REAL = [case for case in CASES if case.numel >= 10_000]
forward_op = torch.ops.simcast_kernels.adaln_norm.default
backward_op = torch.ops.simcast_kernels.adaln_norm_backward.default


def by_name(cases: list[AdalnNormCase]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def results(function: Any, tensors: dict[str, Tensor], grads: list[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return both results and all gradients of ``function``, computed in ``dtype``."""
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()}
    modulated, carried = function(**leaves)
    outputs = [modulated, carried] if "branch" in leaves else [modulated]
    factors = [grad.to(dtype) for grad in grads[: len(outputs)]]
    found = torch.autograd.grad(outputs, list(leaves.values()), factors)
    named = {f"gradient of {name}": grad for name, grad in zip(leaves, found, strict=True)}
    return {"modulated": modulated.detach(), "carried": carried.detach(), **named}


def results_of(function: Any, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return function(**tensors)


def terms_of(case: AdalnNormCase, tensors: dict[str, Tensor], grads: list[Tensor], exact: dict[str, Tensor]):
    """Return the sums of the magnitudes of the terms, for gradients that are sums over tokens."""
    centred = exact["carried"] - exact["carried"].mean(dim=-1, keepdim=True)
    normed = centred * (centred.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
    grad = grads[0].double()
    terms = {"gradient of shift": grad.abs().sum(dim=1), "gradient of scale": (grad * normed).abs().sum(dim=1)}
    if case.residual:
        terms["gradient of gate"] = (tensors["branch"].double() * exact["gradient of x"]).abs().sum(dim=1)
    return terms


def assert_case_is_right(case: AdalnNormCase, device: str, *, interpreted: bool) -> None:
    tensors = case.tensors(device, seed=4)
    generator = torch.Generator(device).manual_seed(5)
    grads = [torch.randn(case.shape, device=device, generator=generator).to(case.dtype) for _ in range(2)]
    kept = [t.clone() for t in (*tensors.values(), *grads)]
    got = results(adaln_norm, tensors, grads, case.dtype)
    reference = results(adaln_norm_reference, tensors, grads, case.dtype)
    exact = results(adaln_norm_reference, tensors, grads, torch.float64)
    terms = terms_of(case, tensors, grads, exact)
    assert_all_close(got, reference=reference, exact=exact, terms=terms, truncates_bf16=interpreted)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*tensors.values(), *grads), strict=True))


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
    assert_case_is_right(case, cuda, interpreted=False)


def test_definition_is_the_papers_formula():
    x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    shift, scale = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[1.0, 2.0]]).double()
    branch, gate = torch.tensor([[[2.0, 4.0]]]).double(), torch.tensor([[1.0, 0.5]]).double()
    modulated, carried = adaln_norm_reference(x, shift, scale, branch=branch, gate=gate, eps=0.0)
    assert carried.tolist() == [[[3.0, 5.0]]]
    assert modulated.tolist() == [[[-1.0 * 2 + 0.5, 1.0 * 3 + 0.5]]]


def gradcheck(device: str) -> None:
    tensors = dataclasses.replace(SMALL[1], shape=(2, 3, 5), dtype=torch.float64).tensors(device, seed=1)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors.values()]

    def both(x, shift, scale, branch, gate):
        return adaln_norm(x, shift, scale, branch=branch, gate=gate)

    assert torch.autograd.gradcheck(both, leaves)
    assert torch.autograd.gradcheck(lambda *three: adaln_norm(*three)[0], leaves[:3])


def test_gradient_by_differences(reference_device):
    gradcheck(reference_device)


@pytest.mark.kernel
def test_float64_runs_the_reference(kernel_device):
    gradcheck(kernel_device)


def one_result_alone(device: str) -> None:
    case = next(c for c in SMALL if c.name == "odd")
    tensors = {k: v.detach().requires_grad_() for k, v in case.tensors(device, seed=1).items()}
    modulated, carried = results_of(adaln_norm, tensors)
    want = results_of(adaln_norm_reference, tensors)
    for got, expected in ((modulated, want[0]), (carried, want[1])):
        mine = torch.autograd.grad(got.square().sum(), tensors["branch"], retain_graph=True)[0]
        theirs = torch.autograd.grad(expected.square().sum(), tensors["branch"], retain_graph=True)[0]
        torch.testing.assert_close(mine, theirs)


@pytest.mark.kernel
def test_either_result_may_be_unused(kernel_device):
    one_result_alone(kernel_device)


def test_either_result_may_be_unused_in_the_reference(reference_device):
    one_result_alone(reference_device)


@pytest.mark.kernel
def test_accepts_inputs_that_are_not_contiguous(kernel_device):
    case = next(c for c in SMALL if c.name == "odd")
    dense = case.tensors(kernel_device, seed=2)
    crooked = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in dense.items()}
    grads = [torch.ones(case.shape, device=kernel_device)] * 2
    got, want = (results(adaln_norm, tensors, grads, case.dtype) for tensors in (crooked, dense))
    assert all(torch.equal(got[name], want[name]) for name in want)


def well_formed(device: str) -> None:
    for name in ("odd", "odd-first"):
        tensors = next(c for c in SMALL if c.name == name).tensors(device, seed=1)
        leaves = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
        x, shift, scale = leaves["x"], leaves["shift"], leaves["scale"]
        branch, gate = leaves.get("branch"), leaves.get("gate")
        torch.library.opcheck(forward_op, (x, shift, scale, branch, gate, 1e-6))
        rest = [None if t is None else t.detach() for t in (x, scale, branch, gate)]
        mean = torch.zeros(x.shape[:2], device=device)
        torch.library.opcheck(backward_op, (x.detach(), None, *rest, mean, mean + 1))


@pytest.mark.kernel
def test_opcheck(kernel_device):
    well_formed(kernel_device)


def test_opcheck_of_the_reference(reference_device):
    well_formed(reference_device)


def test_compiles_as_one_graph(reference_device):
    tensors = next(c for c in SMALL if c.name == "odd").tensors(reference_device, seed=1)

    def block(x, shift, scale, branch, gate):
        modulated, carried = adaln_norm(x, shift, scale, branch=branch * 2, gate=gate)
        return adaln_norm(carried, shift, scale, branch=modulated, gate=gate)[0]

    found = []
    for function in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
        out = function(*leaves)
        out.square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    torch._dynamo.reset()
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


X, M = torch.zeros(2, 3, 4), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.half()}, TypeError, "x is torch.float16"),
        ({"x": M}, ValueError, r"shape \(2, 4\)"),
        ({"x": X[:, :0]}, ValueError, "no empty axis"),
        ({"scale": M.double()}, TypeError, "scale is torch.float64"),
        ({"shift": M[:1]}, ValueError, r"shift is \(1, 4\)"),
        ({"gate": M}, ValueError, "must be given together"),
        ({"branch": X[:, :2], "gate": M}, ValueError, "branch is"),
        ({"branch": X, "gate": M[:, :3]}, ValueError, "gate is"),
    ],
)
def test_rejects_invalid_input(change, error, message):
    with pytest.raises(error, match=message):
        adaln_norm(**({"x": X, "shift": M, "scale": M} | change))


def under_autocast(device: str) -> None:
    """Assert that under autocast the bfloat16 arguments are cast to the float32 dtype of the stream."""
    case = next(c for c in SMALL if c.name == "odd" and c.dtype == torch.float32)
    tensors = {k: v if k == "x" else v.bfloat16() for k, v in case.tensors(device, seed=3).items()}
    leaves = {k: v.detach().requires_grad_() for k, v in tensors.items()}
    with torch.autocast(device, torch.bfloat16):
        modulated, carried = results_of(adaln_norm, leaves)
    wide = {k: v.float() for k, v in tensors.items()}
    assert all(torch.equal(a, b) for a, b in zip((modulated, carried), results_of(adaln_norm, wide), strict=True))
    (modulated.square().sum() + carried.sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in leaves.values())
    with pytest.raises(TypeError, match="they must agree"):
        results_of(adaln_norm, tensors)


@pytest.mark.kernel
def test_autocast(kernel_device):
    under_autocast(kernel_device)


def test_autocast_in_the_reference(reference_device):
    under_autocast(reference_device)
