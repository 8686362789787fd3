"""Every provider of the benchmarks of diffusion computes what the reference computes."""

import pytest

from benchmarks import adaln_norm, sampler_step
from benchmarks.cases.adaln_norm_cases import CASES as NORMS
from benchmarks.cases.sampler_step_cases import CASES
from benchmarks.providers import check


@pytest.mark.parametrize("name", ["odd", "odd-bf16", "one-past-a-program"])
def test_every_step_provider_is_correct(name):
    (case,) = (case for case in CASES if case.name == name)
    tensors = sampler_step.tensors(case, "cpu", 0)
    found = [p for p in sampler_step.providers(case, "cpu") if p.name != "compiled"]
    assert {"pytorch", "reference"} <= {provider.name for provider in found}
    for provider in found:
        check(sampler_step.BENCHMARK, case, provider, tensors)


@pytest.mark.parametrize("name", ["odd", "odd-first", "odd-bf16"])
def test_every_norm_provider_is_correct(name):
    (case,) = (case for case in NORMS if case.name == name)
    tensors = adaln_norm.tensors(case, "cpu", 0)
    tensors[0].requires_grad_()
    found = [p for p in adaln_norm.providers(case, "cpu") if p.name != "compiled"]
    assert {"pytorch", "reference"} <= {provider.name for provider in found}
    for provider in found:
        check(adaln_norm.BENCHMARK, case, provider, tensors)
