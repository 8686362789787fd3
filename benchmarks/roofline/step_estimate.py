"""Estimate the time of a training step by part: bytes and FLOPs of every operator, on the meta device, no measurement.

    PYTHONPATH=kernels python -m benchmarks.roofline.step_estimate [--config direct/sevir] [--batch 8]

Each operator of the forward and backward pass reads its inputs from and writes its outputs to memory once, at the copy
bandwidth of the GPU, or computes its FLOPs at ``MATMUL_SHARE`` of the data sheet's dense bf16 rate, whichever takes
longer. An operator of this project counts as one operator; on the meta device the ones that need CUDA tensors, such as
the channels-last group norm, run as the operators of PyTorch that they replace, so this is the step without them.
Optimizer, launches and host are not included. Grouped convolutions reach a smaller share of the rate than assumed.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.measurements import print_table
from benchmarks.roofline.gpu_rates import H200
from benchmarks.work_kinds import kind_of
from simcast_hpc.config import TrainConfig, read_config, resolve
from simcast_hpc.models import build_model, group_norm_silu

MATMUL_RATE = 989e12
"""Dense bf16 FLOPs per second of an H200's tensor cores (data sheet)."""
MATMUL_SHARE = 0.6
"""Share of it that matmuls and convolutions reach (assumption)."""
_ALLOCATIONS = ("empty", "new_empty", "detach", "lift_fresh", "alias")


def operations(func: Any, args: Any, kwargs: Any, output: Any) -> int:
    """Return the FLOPs of an operator, a multiply-add as two."""
    if func.overloadpacket is torch.ops.aten.convolution_backward:  # PyTorch's count is too large for groups
        gradient, _, weight, *_, mask = args
        return 2 * gradient.numel() * prod(weight.shape[1:]) * (mask[0] + mask[1])
    counted = flop_registry.get(func.overloadpacket)
    return counted(*args, **kwargs, out_val=output) if counted else 0


class OperatorCosts(TorchDispatchMode):
    """Sums bytes, FLOPs, seconds and number of operators by kind of work."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.bytes, self.flops, self.calls = Counter[str](), Counter[str](), Counter[str]()
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator and add its cost; views and allocations cost nothing."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        is_view = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        name = func._schema.name
        if is_view or name.rpartition("::")[2].startswith(_ALLOCATIONS):
            return output
        kind = "attention" if name.startswith("simcast_kernels::cuboid") else kind_of(name)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        flops = operations(func, args, kwargs, output)
        self.bytes[kind] += size
        self.flops[kind] += flops
        self.calls[kind] += 1
        longest = max(size / H200.copy, flops / (MATMUL_SHARE * MATMUL_RATE))
        self.seconds[kind] = self.seconds.get(kind, 0.0) + longest
        return output


def estimate(config: TrainConfig, *, batch: int) -> OperatorCosts:
    """Return the costs of the network's forward and backward pass in bf16, for inputs of 384 x 384 pixels."""
    sequence = config.sequence
    with torch.device("meta"):
        model_config = config.model
        if getattr(model_config, "grid", "") is None:
            model_config = model_config.model_copy(update={"grid": (384, 384)})
        network = build_model(model_config, frames_in=sequence.frames_in, frames_out=sequence.frames_out).bfloat16()
        frames = torch.empty(batch, sequence.frames_in, 1, 384, 384)
    with OperatorCosts() as costs:
        network(frames).sum().backward()
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one configuration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--config", default="direct/sevir", help="name of a shipped configuration")
    parser.add_argument("--batch", type=int, default=8, help="samples")
    parser.add_argument("--fused-norms", action="store_true", help="with the group norm kernel of CUDA")
    options = parser.parse_args(arguments)
    if options.fused_norms:
        group_norm_silu.replaces = lambda x, norm: type(norm) is torch.nn.GroupNorm
    costs = estimate(read_config(TrainConfig, resolve(options.config)), batch=options.batch)
    rows = [["part", "operators", "GB", "TFLOP", "ms (estimated)"]]
    for kind, seconds in sorted(costs.seconds.items(), key=lambda item: -item[1]):
        gb, tflop = costs.bytes[kind] / 1e9, costs.flops[kind] / 1e12
        rows.append([kind, str(costs.calls[kind]), f"{gb:.1f}", f"{tflop:.2f}", f"{1e3 * seconds:.1f}"])
    totals = (sum(costs.bytes.values()) / 1e9, sum(costs.flops.values()) / 1e12, 1e3 * sum(costs.seconds.values()))
    rows.append(["all", str(sum(costs.calls.values())), f"{totals[0]:.1f}", f"{totals[1]:.2f}", f"{totals[2]:.1f}"])
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
