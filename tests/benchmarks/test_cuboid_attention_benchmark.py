"""Every provider of the cuboid attention benchmark computes what the reference computes."""

import dataclasses

import pytest
import torch

from benchmarks import cuboid_attention
from benchmarks.cases.cuboid_attention_cases import CASES, CuboidAttentionCase
from benchmarks.providers import check

SHARED = CuboidAttentionCase(
    name="shared", shape=(2, 3, 5, 6, 16), heads=2, cuboid=(2, 3, 4), shift=(1, 1, 2), global_vectors=3,
    shared_query=True, dtype=torch.float32,
)  # fmt: skip
SMALL = [*(case for case in CASES if case.name.startswith("tiny")), SHARED, dataclasses.replace(SHARED, biased=False)]


@pytest.mark.parametrize("case", SMALL, ids=["self", "cross", "shared", "no-bias"])
def test_every_provider_is_correct(case):
    tensors = cuboid_attention.tensors(case, "cpu", 0)
    tensors[0].requires_grad_()
    found = [p for p in cuboid_attention.providers(case, "cpu") if p.name != "compiled"]
    assert {"pytorch", "eager", "sdpa", "reference"} <= {provider.name for provider in found}
    for provider in found:
        check(cuboid_attention.BENCHMARK, case, provider, tensors)


def test_large_cases_are_skipped_on_a_cpu():
    (large,) = (case for case in CASES if case.name == "wide-axial-t")
    assert cuboid_attention.providers(large, "cpu") == []
