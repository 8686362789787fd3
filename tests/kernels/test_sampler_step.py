"""sampler_step: kernel against the definition; clipping, guidance and noise; invalid input."""

import dataclasses

import pytest
import torch
from torch import Tensor

from benchmarks.cases.sampler_step_cases import (
    ANCESTRAL,
    CASES,
    DDIM,
    DPM_SOLVER,
    DPM_SOLVER_SDE,
    THIRD_ORDER,
    SamplerStepCase,
)
from simcast_kernels.philox import normals
from simcast_kernels.sampler_step import Coefficients, Counters, sampler_step
from simcast_kernels.sampler_step.reference import sampler_step_reference
from tests.tolerance import assert_tensor_close

SMALL = [case for case in CASES if case.numel < 20_000]
REAL = [case for case in CASES if case.numel >= 20_000]
operator = torch.ops.simcast_kernels.sampler_step.default


def by_name(cases: list[SamplerStepCase]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def taken(case: SamplerStepCase, tensors: dict[str, Tensor | None], device: str) -> tuple[Tensor, Tensor | None, int]:
    hits = torch.zeros((), dtype=torch.int64, device=device)
    given = {k: v for k, v in tensors.items() if v is not None}
    out, clean = sampler_step(
        **given, **case.options, hits=hits, counters=case.counters(device), with_clean=case.with_clean
    )
    return out, clean, int(hits)


def assert_case_is_right(case: SamplerStepCase, device: str) -> None:
    tensors = case.tensors(device, seed=3)
    kept = {k: None if v is None else v.clone() for k, v in tensors.items()}
    out, clean, hits = taken(case, tensors, device)
    results = []
    for dtype in (case.dtype, torch.float64):
        cast = [None if v is None else v.to(dtype) for v in tensors.values()]
        x, p, u, h, e = cast
        assert x is not None and p is not None
        results.append(sampler_step_reference(x, p, u, h, e, counters=case.counters(device), **case.options))
    reference, exact = results
    truncates = device == "cpu"
    assert_tensor_close("next", out, reference=reference[0], exact=exact[0], truncates_bf16=truncates)
    if clean is not None:
        assert_tensor_close("clean", clean, reference=reference[1], exact=exact[1], truncates_bf16=truncates)
    assert (clean is None) == (not case.with_clean)
    assert hits == int(reference[2])
    for name, before in kept.items():
        after = tensors[name]
        assert before is None or (after is not None and torch.equal(before, after)), f"{name} was written to"


@pytest.mark.kernel
@by_name(SMALL)
def test_kernel_matches_the_definition(case, kernel_device):
    assert_case_is_right(case, kernel_device)


@by_name([case for case in SMALL if case.name.startswith("odd")])
def test_operator_matches_the_definition_in_the_reference(case, reference_device):
    assert_case_is_right(case, reference_device)


@pytest.mark.gpu
@by_name(REAL)
def test_real_sizes(case, cuda):
    assert_case_is_right(case, cuda)


@pytest.mark.kernel
def test_rows_need_not_be_contiguous(kernel_device):
    case = dataclasses.replace(SMALL[1], shape=(4, 6, 10))
    tensors = {
        k: None if v is None else v.transpose(-1, -2).contiguous().transpose(-1, -2)
        for k, v in case.tensors(kernel_device, seed=2).items()
    }
    dense = {k: None if v is None else v.contiguous() for k, v in tensors.items()}
    assert torch.equal(taken(case, tensors, kernel_device)[0], taken(case, dense, kernel_device)[0])


def noise_alone(device: str) -> None:
    """Assert that a step of pure noise returns the stream of its counters, for any grouping of rows."""
    shape, forms = (6, 3, 5, 7), Coefficients(0, 0, 0, 0, 0, noise=1.0)
    sample = torch.tensor([0, 1, 2**32 - 1, 0, 1, 5], device=device)
    member = torch.tensor([0, 0, 3, 1, 1, 2**20], device=device)
    zero, hits = torch.zeros(shape, device=device), torch.zeros((), dtype=torch.int64, device=device)

    def noise(rows: slice) -> Tensor:
        counters = Counters(2**61 + 9, sample[rows], member[rows], 3)
        return sampler_step(zero[rows], zero[rows], coefficients=forms, hits=hits, counters=counters)[0]

    together = noise(slice(0, 6))
    want = normals(2**61 + 9, sample, member, step=3, elements=105, dtype=torch.float64).view(shape)
    assert (together - want).abs().max() < 2e-6
    apart = torch.cat([noise(slice(0, 1)), noise(slice(1, 4)), noise(slice(4, 6))])
    assert torch.equal(apart, together), "the noise of a row is bitwise independent of its batch"


@pytest.mark.kernel
def test_noise_is_a_function_of_its_counters(kernel_device):
    noise_alone(kernel_device)


def test_noise_is_a_function_of_its_counters_in_the_reference(reference_device):
    noise_alone(reference_device)


def nan_and_clip(device: str) -> None:
    x = torch.tensor([[0.5, 3.0, -3.0, float("nan"), 2.0]], device=device)
    forms = Coefficients(1.0, 0.0, 0.0, 0.0, 1.0)
    hits = torch.tensor(10, device=device)
    out, clean = sampler_step(x, torch.zeros_like(x), coefficients=forms, hits=hits, clip=2.0, with_clean=True)
    assert clean is not None and torch.equal(clean[0, :3].cpu(), torch.tensor([0.5, 2.0, -2.0]))
    assert out[0, 3].isnan() and clean[0, 3].isnan(), "a broken network must show"
    assert int(hits) == 12, "hits are added to what was counted before; a value on the bound is none"


@pytest.mark.kernel
def test_clip_counts_what_it_changes(kernel_device):
    nan_and_clip(kernel_device)


def test_clip_counts_what_it_changes_in_the_reference(reference_device):
    nan_and_clip(reference_device)


def well_formed(device: str) -> None:
    for forms in (ANCESTRAL, DPM_SOLVER, DPM_SOLVER_SDE, THIRD_ORDER):
        case = dataclasses.replace(SMALL[1], forms=forms)
        tensors = case.tensors(device, seed=1)
        key, sample, member, step = case.counters(device) or (0, None, None, 0)
        hits = torch.zeros((), dtype=torch.int64, device=device)
        arguments = (*tensors.values(), sample, member, hits, list(forms), 1.5, 2.0, key, step, case.with_clean)
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.kernel
def test_opcheck(kernel_device):
    well_formed(kernel_device)


def test_opcheck_of_the_reference(reference_device):
    well_formed(reference_device)


def test_compiles_as_one_graph(reference_device):
    case = next(c for c in SMALL if c.name == "odd")
    tensors, counters = case.tensors(reference_device, seed=1), case.counters(reference_device)

    def two_steps(noisy, prediction, hits):
        for _ in range(2):
            noisy, _ = sampler_step(noisy, prediction, coefficients=ANCESTRAL, hits=hits, counters=counters, clip=1.0)
        return noisy

    results, counted = [], []
    for function in (two_steps, torch.compile(two_steps, fullgraph=True, backend="aot_eager")):
        hits = torch.zeros((), dtype=torch.int64)
        results.append(function(tensors["noisy"], tensors["prediction"], hits))
        counted.append(int(hits))
    torch._dynamo.reset()
    assert torch.equal(*results)
    assert counted[0] == counted[1] > 0


X = torch.zeros(2, 3)
HITS = torch.zeros((), dtype=torch.int64)
ROWS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"noisy": X.half()}, TypeError, "noisy is torch.float16"),
        ({"noisy": torch.zeros(2)}, ValueError, r"shape \(2,\)"),
        ({"noisy": X[:0], "prediction": X[:0]}, ValueError, "no empty axis"),
        ({"prediction": X.double()}, TypeError, "prediction is torch.float64"),
        ({"unconditional": X[:1]}, ValueError, "unconditional is"),
        ({"hits": torch.zeros(())}, ValueError, "int64 scalar"),
        ({"clip": 0.0}, ValueError, "clip=0.0"),
        ({"coefficients": DPM_SOLVER}, ValueError, "history is None"),
        ({"coefficients": THIRD_ORDER, "history": X}, ValueError, "earlier is None"),
        ({"coefficients": ANCESTRAL}, ValueError, "counters is None"),
        ({"counters": Counters(-1, ROWS, ROWS, 0)}, ValueError, "counters.key=-1"),
        ({"counters": Counters(0, ROWS, ROWS, 2**32)}, ValueError, "counters.step=4294967296"),
        ({"counters": Counters(0, ROWS[:1], ROWS, 0)}, ValueError, "counters.sample"),
        ({"counters": Counters(0, ROWS, ROWS.int(), 0)}, ValueError, "counters.member"),
    ],
)
def test_rejects_invalid_input(change, error, message):
    arguments = {"noisy": X, "prediction": X, "coefficients": DDIM, "hits": HITS} | change
    with pytest.raises(error, match=message):
        sampler_step(**arguments)
