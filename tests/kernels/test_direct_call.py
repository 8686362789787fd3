"""Operators are called directly in eager code, and through PyTorch's dispatcher where something observes the call."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import simcast_kernels as sk
from simcast_kernels import direct_call
from simcast_kernels.adaln_norm import operators as adaln
from simcast_kernels.cuboid_attention import operators as attention
from simcast_kernels.layer_norm_linear import operators as projection

OPERATORS = [
    pytest.param(module.forward_operator, module.backward_operator, id=module.__name__.split(".")[1])
    for module in (adaln, attention, projection)
]


def call(operator: direct_call.Operator, device: str = "cpu") -> tuple[list[Tensor], Tensor]:
    """Return the inputs that require gradients, and a scalar computed by the public function of the operator."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, device=device)
    leaves = [x, *(torch.randn(2, 8, device=device) for _ in range(2)), torch.randn(5, 8, device=device)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    x, shift, scale, weight = leaves
    if operator is adaln.forward_operator:
        return leaves[:3], sk.adaln_norm(x, shift, scale)[0].square().sum()
    if operator is projection.forward_operator:
        one, two = sk.layer_norm_linear(x, shift[0], scale[0], weights=[weight, weight[:2]], biases=[])
        return leaves, one.square().sum() + two.sum()
    qkv = (x.unflatten(1, (3, 1, 1)) * shift.repeat(1, 3)[:, None, None, None, :1]).repeat(1, 1, 1, 1, 3)
    options: dict[str, Any] = {"heads": 2, "cuboid": (3, 1, 1), "strategy": ("l", "l", "l"), "shift": (0, 0, 0)}
    return leaves[:2], sk.cuboid_attention(qkv, **options, dropout=0.3, seed=4).square().sum()


@pytest.fixture
def through_dispatcher(monkeypatch) -> Callable[[direct_call.Operator], list[int]]:
    """Count the calls of an operator that go through the dispatcher."""

    def watch(operator: direct_call.Operator) -> list[int]:
        calls: list[int] = []
        definition = operator._definition
        monkeypatch.setattr(operator, "_definition", lambda *arguments: calls.append(1) or definition(*arguments))
        return calls

    return watch


@pytest.mark.parametrize(("forward", "backward"), OPERATORS)
def test_direct_call_has_the_results_of_the_operator(forward, backward, through_dispatcher, monkeypatch):
    calls = [through_dispatcher(operator) for operator in (forward, backward)]
    leaves, direct = call(forward)
    gradients = torch.autograd.grad(direct, leaves, allow_unused=True)
    assert calls == [[], []]
    monkeypatch.setattr(direct_call, "is_observed", lambda: True)
    leaves, dispatched = call(forward)
    expected = torch.autograd.grad(dispatched, leaves, allow_unused=True)
    assert calls == [[1], [1]]
    assert torch.equal(direct, dispatched)
    for gradient, want in zip(gradients, expected, strict=True):
        assert (gradient is None) == (want is None) and (gradient is None or torch.equal(gradient, want))
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


OBSERVERS = {
    "dispatch mode": _Names,
    "flop counter": lambda: FlopCounterMode(display=False),
    "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "function mode": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize(("forward", "backward"), OPERATORS)
def test_observed_calls_go_through_the_dispatcher(forward, backward, observer, through_dispatcher):
    calls = [through_dispatcher(operator) for operator in (forward, backward)]
    with OBSERVERS[observer]() as seen:
        leaves, result = call(forward)
        torch.autograd.grad(result, leaves, allow_unused=True)
    # PyTorch leaves function modes during a backward pass.
    assert calls == [[1], [] if observer == "function mode" else [1]]
    if observer == "dispatch mode":
        names = [name for name in seen.names if name.startswith("simcast_kernels::")]
        assert len(names) == 2 and names[1] == names[0] + "_backward"


@pytest.mark.parametrize(("forward", "backward"), OPERATORS)
@pytest.mark.parametrize("device", ["meta", "fake"])
def test_tensors_without_data_do_not_reach_the_implementation(forward, backward, device, monkeypatch):
    for operator in (forward, backward):
        monkeypatch.setattr(operator, "_function", None)
    mode = FakeTensorMode() if device == "fake" else contextlib.nullcontext()
    with mode:
        leaves, result = call(forward, "cpu" if device == "fake" else device)
    gradients = torch.autograd.grad(result, leaves, allow_unused=True)  # outside the mode: types are recognized
    assert any(gradient is not None and gradient.shape == leaves[0].shape for gradient in gradients)


@pytest.mark.parametrize(("forward", "backward"), OPERATORS)
def test_calls_with_a_recorded_backward_pass_are_not_direct(forward, backward, through_dispatcher):
    """A second derivative raises the operator's own error instead of being wrong."""
    calls = through_dispatcher(backward)
    leaves, result = call(forward)
    first = torch.autograd.grad(result, leaves, allow_unused=True, create_graph=True)
    assert calls == [1]
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad([g.sum() for g in first if g is not None], leaves)


def test_transforms_and_compiled_code_see_the_operator():
    x, shift, scale = torch.randn(4, 2, 3, 8), torch.randn(2, 8), torch.randn(2, 8)
    mapped = torch.vmap(lambda one: sk.adaln_norm(one, shift, scale)[0])(x)
    assert torch.equal(mapped, torch.stack([sk.adaln_norm(one, shift, scale)[0] for one in x]))
    graphs: list[torch.fx.GraphModule] = []
    backend = lambda graph, _: graphs.append(graph) or graph.forward  # noqa: E731
    compiled = torch.compile(lambda one: sk.adaln_norm(one, shift, scale)[0], fullgraph=True, backend=backend)
    assert torch.equal(compiled(x[0]), sk.adaln_norm(x[0], shift, scale)[0])
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert any("simcast_kernels.adaln_norm" in target for target in targets)
