"""Activation checkpointing: memory and slow-down of each choice of levels to recompute.

Memory is computed on the meta device. The slow-down is counted in FLOPs or measured as the time of real steps.
"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from simcast_hpc.config import ConfigError

from .flops import Levels, Network, output_tensors, training_flops
from .peak_memory import peak_bytes

_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class RecomputeOption:
    """Activation memory and slow-down of one choice of checkpointed levels.

    Attributes:
        levels: checkpointed levels, ascending; empty without checkpointing, (0,) if it is all or nothing.
        activations: peak bytes at micro-batch 1 and 2.
        cost: relative increase of the training step compared with no checkpointing.
    """

    levels: Levels
    activations: tuple[int, int]
    cost: float

    def bytes_at(self, micro: int) -> int:
        """Return the peak at a micro-batch, extrapolated linearly from 1 and 2 and at least proportional to it."""
        one, two = self.activations
        return max(one + (two - one) * (micro - 1), one * micro)


def level_subsets(network: Network) -> list[Levels]:
    """Return every subset of the levels that can be checkpointed, starting with the empty one."""
    sizes = range(len(network.levels) + 1)
    return [subset for size in sizes for subset in itertools.combinations(network.levels, size)]


def recompute_options(
    network: Network, *, dtype: torch.dtype, costs: Mapping[Levels, float] | None = None, extra_bytes: int = 0
) -> tuple[RecomputeOption, ...]:
    """Return the Pareto-optimal options, first no checkpointing, then by cost; each needs less memory than the last.

    Args:
        network: the network.
        dtype: dtype of weights and activations.
        costs: cost per subset of levels; by default counted from the FLOPs of matmuls and convolutions.
        extra_bytes: activation bytes per sample of other networks.
    """
    options = []
    for levels in level_subsets(network):
        model = network.on_meta(levels, dtype)
        one, two = (peak_bytes(model, *network.inputs(micro)) + micro * extra_bytes for micro in (1, 2))
        cost = float(training_flops(model, *network.inputs(1))) if costs is None else costs[levels]
        options.append(RecomputeOption(levels=levels, activations=(one, two), cost=cost))
    if costs is None:
        baseline = options[0].cost
        options = [
            RecomputeOption(levels=option.levels, activations=option.activations, cost=option.cost / baseline - 1)
            for option in options
        ]
    return tuple(_pareto_front(options))


def measured_costs(network: Network, *, dtype: torch.dtype, device: torch.device) -> dict[Levels, float]:
    """Return the measured relative slow-down of a step at micro-batch 1 for each subset of levels on ``device``.

    The time is the median of three forward and backward passes after one warm-up pass. The optimizer step, which is the
    same for all, is not included. Negative differences, which are noise, are reported as 0.

    Raises:
        ConfigError: a step does not fit into the memory of the device.
    """
    seconds = {}
    for levels in level_subsets(network):
        try:
            seconds[levels] = _step_seconds(network, levels, dtype, device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"--measure: a training step with recomputed levels {list(levels)} does not fit into the memory of "
                f"{device}; omit --measure to count FLOPs instead"
            ) from error
    baseline = seconds[()]
    return {levels: max(0.0, elapsed / baseline - 1) for levels, elapsed in seconds.items()}


def _step_seconds(network: Network, levels: Levels, dtype: torch.dtype, device: torch.device) -> float:
    torch.manual_seed(0)
    model = network.build(levels).to(device, dtype).train()
    inputs = [_materialize(tensor, device) for tensor in network.inputs(1)]
    times = []
    for _ in range(_ROUNDS + 1):
        _synchronize(device)
        start = time.perf_counter()
        outputs = output_tensors(model(*inputs))
        torch.stack([part.float().square().mean() for part in outputs]).sum().backward()
        model.zero_grad(set_to_none=True)
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _materialize(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on ``device`` with the shape and dtype of one on the meta device."""
    if tensor.is_floating_point():
        return torch.rand(tensor.shape, dtype=tensor.dtype, device=device)
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _pareto_front(options: Iterable[RecomputeOption]) -> list[RecomputeOption]:
    # No checkpointing stays first, even if timing noise gives another option the same cost.
    ordered: Sequence[RecomputeOption] = sorted(
        options, key=lambda option: (len(option.levels) > 0, option.cost, option.activations, len(option.levels))
    )
    front: list[RecomputeOption] = []
    for option in ordered:  # costs ascend
        if all(option.activations[i] < better.activations[i] for better in front for i in (0, 1)):
            front.append(option)
    return front
