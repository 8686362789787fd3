"""Where a step's time goes: the profiler's own time of every operator, added up by kind of work."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

# Looked for in this order in the operator's own name; the first that fits.
NAMES = (
    ("convolution", ("conv",)),
    ("norm", ("group_norm", "layer_norm")),
    ("attention", ("scaled_dot_product", "flash_attention", "softmax")),
    ("product", ("mm", "matmul", "linear", "einsum", "dot")),
    ("copy", ("copy", "clone", "contiguous", "cat", "stack", "pad", "roll", "index", "gather", "scatter", "repeat",
              "reorder", "empty", "resize", "zeros", "new_", "fill", "zero_")),
    ("pointwise", ("add", "sub", "mul", "div", "gelu", "silu", "relu", "sigmoid", "tanh", "sqrt", "exp", "dropout",
                   "where", "clamp", "pow", "neg", "sum", "mean", "lerp", "bernoulli", "threshold", "gt", "lt", "ge")),
)  # fmt: skip
# Everything below one of these is of its kind, whatever it is made of.
WHOLES = (("optimizer", "Optimizer.step"), ("attention", "simcast_kernels::cuboid"))
KINDS = ("convolution", "product", "attention", "norm", "pointwise", "copy", "optimizer", "other")


def kind_of(name: str, above: Iterable[str] = ()) -> str:
    """Return the kind of an operator by its name and those of the operators around it."""
    around = (name, *above)
    for kind, prefix in WHOLES:
        if any(one.startswith(prefix) for one in around):
            return kind
    plain = name.rpartition("::")[2].lower()
    for kind, parts in NAMES:
        if any(part in plain for part in parts):
            return kind
    return "other"


def shares_by_kind(step: Callable[[], Any]) -> dict[str, float]:
    """Run ``step`` once under the profiler and return the share of each kind in the time of its operators.

    On a CPU the time is that of the thread that calls an operator, its wait for other threads of the operator included.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times: Counter[str] = Counter()
    for event in profile.events():
        times[kind_of(event.name, _above(event))] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: times[kind] / total for kind in KINDS}


def _above(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names
