"""Every provider of the benchmarks of diffusion computes what the twin computes."""

import pytest

from benchmarks import sampler_step
from benchmarks.harness import check
from simcast_kernels.sampler_step.cases import CASES


@pytest.mark.parametrize("name", ["odd", "odd-bf16", "one-past-a-program"])
def test_every_provider_of_a_step_is_right(name):
    (case,) = (case for case in CASES if case.name == name)
    tensors = sampler_step.tensors(case, "cpu", 0)
    found = [p for p in sampler_step.providers(case, "cpu") if p.name != "compiled"]
    assert {"twin", "reference"} <= {provider.name for provider in found}
    for provider in found:
        check(sampler_step.BENCHMARK, case, provider, tensors)
