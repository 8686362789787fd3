"""Every provider of the layer norm benchmark computes what the reference computes."""

import pytest

from benchmarks import layer_norm_linear
from benchmarks.cases.layer_norm_linear_cases import CASES
from benchmarks.providers import check


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("tiny", "one-row", "odd")], ids=lambda c: c.name
)
def test_every_provider_is_correct(case):
    tensors = layer_norm_linear.tensors(case, "cpu", 0)
    tensors[0].requires_grad_()
    found = [p for p in layer_norm_linear.providers(case, "cpu") if p.name != "compiled"]
    assert {"pytorch", "reference"} <= {provider.name for provider in found}
    for provider in found:
        check(layer_norm_linear.BENCHMARK, case, provider, tensors)


def test_large_cases_are_skipped_on_a_cpu():
    assert layer_norm_linear.providers(CASES[0], "cpu") == []
