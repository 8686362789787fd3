"""What of a network's activations to compute again in backward: what each way saves, and by how much it slows a step.

Which levels are computed again is a choice under a budget: of all ways that fit, the cheapest. Bytes are told on the
meta device; a way's cost is counted in operations, or measured as the time of real steps.
"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from simcast_hpc.config import ConfigError

from .flops import Levels, Subject, output_tensors, training_flops
from .peak_memory import peak_bytes

_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """One way: which levels are computed again, what activations then need, and what it costs.

    Attributes:
        levels: computed again, ascending; none of them keeps all. A network that knows all or nothing has level 0.
        activations: bytes at micro batch 1 and 2.
        cost: by which share a training step becomes longer than with all kept.
    """

    levels: Levels
    activations: tuple[int, int]
    cost: float

    def bytes_at(self, micro: int) -> int:
        """Return the peak at a micro batch, on the line through those of 1 and 2, and never under it."""
        one, two = self.activations
        return max(one + (two - one) * (micro - 1), one * micro)


def ways_of(subject: Subject) -> list[Levels]:
    """Return every choice of levels to compute again, that of none first."""
    counts = range(len(subject.levels) + 1)
    return [ways for count in counts for ways in itertools.combinations(subject.levels, count)]


def recomputations(
    subject: Subject, *, dtype: torch.dtype, costs: Mapping[Levels, float] | None = None, more: int = 0
) -> tuple[Recomputation, ...]:
    """Return the ways worth taking, to keep all first, then the cheapest: each needs less memory than those before it.

    Args:
        subject: the network.
        dtype: of weights and activations.
        costs: of each way; by default counted: operations of matrix products and convolutions of a step.
        more: bytes that other networks need for a sample besides.
    """
    found = []
    for levels in ways_of(subject):
        made = subject.on_meta(levels, dtype)
        one, two = (peak_bytes(made, *subject.inputs(micro)) + micro * more for micro in (1, 2))
        cost = float(training_flops(made, *subject.inputs(1))) if costs is None else costs[levels]
        found.append(Recomputation(levels=levels, activations=(one, two), cost=cost))
    if costs is None:
        kept = found[0].cost
        found = [Recomputation(levels=w.levels, activations=w.activations, cost=w.cost / kept - 1) for w in found]
    return tuple(_worth_taking(found))


def measured_costs(subject: Subject, *, dtype: torch.dtype, device: torch.device) -> dict[Levels, float]:
    """Return by which share each way makes a step of micro batch 1 longer, forward and backward, on ``device``.

    Medians of three steps after one that warms up, one way after the other; the update of the weights, which is the
    same in all, is left out. Differences below what the machine's own noise makes are none.

    Raises:
        ConfigError: a step does not fit into the device's memory.
    """
    seconds = {}
    for levels in ways_of(subject):
        try:
            seconds[levels] = _seconds(subject, levels, dtype, device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"--measure runs real steps, and one with levels {list(levels)} computed again does not fit into "
                f"{device}: leave --measure out, which counts operations instead"
            ) from error
    kept = seconds[()]
    return {levels: max(0.0, spent / kept - 1) for levels, spent in seconds.items()}


def _seconds(subject: Subject, levels: Levels, dtype: torch.dtype, device: torch.device) -> float:
    torch.manual_seed(0)
    model = subject.made(levels).to(device, dtype).train()
    inputs = [_real(tensor, device) for tensor in subject.inputs(1)]
    times = []
    for _ in range(_ROUNDS + 1):
        _wait(device)
        began = time.perf_counter()
        outputs = output_tensors(model(*inputs))
        torch.stack([part.float().square().mean() for part in outputs]).sum().backward()
        model.zero_grad(set_to_none=True)
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _real(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor with values where one on the meta device has none."""
    if tensor.is_floating_point():
        return torch.rand(tensor.shape, dtype=tensor.dtype, device=device)
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _worth_taking(ways: Iterable[Recomputation]) -> list[Recomputation]:
    # To keep all stays first, though by the noise of a clock another way may cost nothing either.
    ordered: Sequence[Recomputation] = sorted(
        ways, key=lambda way: (len(way.levels) > 0, way.cost, way.activations, len(way.levels))
    )
    kept: list[Recomputation] = []
    for way in ordered:  # each costs at least what those before it cost
        if all(way.activations[i] < better.activations[i] for better in kept for i in (0, 1)):
            kept.append(way)
    return kept
