"""Shares of a step's time by kind of work: the sum of the profiler's self time of every operator."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

# Searched in this order in the operator's name; the first match counts.
NAMES = (
    ("convolution", ("conv",)),
    ("norm", ("group_norm", "layer_norm")),
    ("attention", ("scaled_dot_product", "flash_attention", "softmax")),
    ("product", ("mm", "matmul", "linear", "einsum", "dot")),
    ("copy", ("copy", "clone", "contiguous", "cat", "stack", "pad", "roll", "index", "gather", "scatter", "repeat",
              "reorder", "empty", "resize", "zeros", "new_", "fill", "zero_")),
    ("pointwise", ("bias_activation", "add", "sub", "mul", "div", "gelu", "silu", "relu", "sigmoid", "tanh", "sqrt",
                   "exp", "dropout", "where", "clamp", "pow", "neg", "sum", "mean", "lerp", "bernoulli", "threshold",
                   "gt", "lt", "ge")),
)  # fmt: skip
# Every operator called by one of these has its kind.
CALLERS = (("optimizer", "Optimizer.step"), ("attention", "simcast_kernels::cuboid"))
KINDS = ("convolution", "product", "attention", "norm", "pointwise", "copy", "optimizer", "other")


def kind_of(name: str, callers: Iterable[str] = ()) -> str:
    """Return the kind of an operator by its name and the names of its callers."""
    names = (name, *callers)
    for kind, prefix in CALLERS:
        if any(one.startswith(prefix) for one in names):
            return kind
    plain = name.rpartition("::")[2].lower()
    for kind, parts in NAMES:
        if any(part in plain for part in parts):
            return kind
    return "other"


def shares_by_kind(step: Callable[[], Any]) -> dict[str, float]:
    """Run ``step`` once under the profiler and return the share of each kind in the time of its operators.

    The time is that of the calling thread, including its wait for other threads of the operator.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times: Counter[str] = Counter()
    for event in profile.events() or ():
        times[kind_of(event.name, _callers(event))] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: times[kind] / total for kind in KINDS}


def _callers(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names
