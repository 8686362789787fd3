"""All parameters that kernels read start at multiples of 16 bytes, under every ZeRO stage and precision."""

import json
from collections.abc import Iterator

import pytest
import torch

from simcast_hpc.distributed.named_tensors import parameter_names, read_state
from simcast_hpc.distributed.partitions import write_fragments
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from tests.distributed.alignment_checks import (
    NETWORKS,
    Layout,
    MeanSquare,
    assert_equal,
    build,
    compare,
    forward,
    train,
    unalign,
)
from tests.multi_rank.runs import two_ranks

_ALWAYS = [
    *[Layout("earthformer", *one) for one in [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]],
    *[Layout(network, 2, "bf16") for network in NETWORKS if network != "earthformer"],
]
_ALL = [
    Layout(network, stage, precision)
    for network in NETWORKS
    for stage in range(4)
    for precision in ("fp32", "bf16")
    if stage or precision == "fp32"
]
_TWO_RANKS = [Layout("earthformer-100m", 3, "bf16"), Layout("simvp", 1, "fp32"), Layout("casformer", 2, "bf16")]


@pytest.fixture(scope="module")
def ranks() -> Iterator[TorchRanks]:
    joined = join_process_group(timeout_minutes=1.0)
    yield joined
    joined.leave()


@pytest.mark.parametrize(
    "layout", [pytest.param(one, marks=() if one in _ALWAYS else pytest.mark.slow) for one in _ALL], ids=str
)
def test_parameters_are_aligned_and_losses_unchanged(tmp_path, ranks, layout):
    """Without alignment, the same network has misaligned parameters in flat buffers."""
    found = compare(layout, ranks, tmp_path)
    assert_equal(found)
    divisible = layout.network == "casformer" and layout.precision == "fp32"  # all sizes are multiples of 16 bytes
    assert bool(found["unaligned"]["misaligned"]) == (layout.stage > 0 and not divisible)


@pytest.mark.multi
@pytest.mark.parametrize("layouts", [_TWO_RANKS, pytest.param(_ALL, marks=pytest.mark.slow)], ids=["some", "all"])
def test_parameters_are_aligned_on_two_ranks(tmp_path, layouts):
    two_ranks("tests.distributed.alignment_checks", str(tmp_path), *map(str, layouts))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert [Layout(*one["layout"]) for one in found] == layouts
        for one in found:
            assert_equal(one)
        assert any(one["unaligned"]["misaligned"] for one in found), "the comparison needs misaligned parameters"


def test_the_padding_is_no_parameter_of_the_network(tmp_path, ranks):
    engine = build(tmp_path, ranks, Layout("earthformer", 1, "bf16"))
    assert parameter_names(engine) == [name for name, _ in MeanSquare("earthformer").named_parameters()]


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_state_of_the_unaligned_layout_is_read_by_name(tmp_path, ranks, monkeypatch, stage, precision):
    layout = Layout("earthformer", stage, precision)
    with monkeypatch.context() as patched:
        unalign(patched)
        old = build(tmp_path, ranks, layout)
    train(old)
    state = {name: {key: value.clone() for key, value in one.items()} for name, one in read_state(old)}
    new = build(tmp_path, ranks, layout)

    def lookup(kind: str, name: str, start: int, length: int) -> torch.Tensor:
        return state[name][kind].flatten()[start : start + length]

    write_fragments(new, lookup, ranks, step=2, warm_up=lambda: forward(new))
    assert train(new) == train(old)
