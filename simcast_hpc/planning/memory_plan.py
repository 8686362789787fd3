"""Which ZeRO stage, offload, recomputation and micro batch fit into a GPU's memory: computed, nothing is allocated."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from simcast_hpc.config import BatchConfig, ConfigError, EngineConfig
from simcast_hpc.distributed.zero_memory import rank_bytes, working_bytes

from .flops import Levels, Subject
from .recompute import Recomputation, recomputations

CONTEXT_BYTES, FRAGMENTATION = 2**30, 0.10
"""Assumed: what CUDA, cuBLAS and NCCL take, and what the allocator loses of activations and buffers."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """``gpus`` ranks on ``nodes`` nodes, each with ``memory`` bytes.

    Raises:
        ConfigError: the nodes do not share the GPUs evenly.
    """

    gpus: int
    memory: float
    nodes: int = 1

    def __post_init__(self):
        if self.gpus % self.nodes:
            raise ConfigError(
                f"--gpus {self.gpus} do not fall evenly on --nodes {self.nodes}; --gpus is the sum over all nodes"
            )

    @property
    def gpus_of_a_node(self) -> int:
        """GPUs on each node."""
        return self.gpus // self.nodes


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is the same whatever the choice.

    Attributes:
        sizes: elements of each parameter, in the module's order.
        averaged: whether an average of the weights is kept.
        beside: bytes of networks beside the engine's: a teacher, a discriminator and its optimizer.
        ways: to keep activations or compute them again, the cheapest first.
    """

    sizes: tuple[int, ...]
    averaged: bool
    beside: int
    ways: tuple[Recomputation, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the model is held: the engine's options, what is computed again, and the micro batch."""

    engine: EngineConfig
    again: Recomputation
    micro: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes of a choice on each GPU, by part, and on the host of each node."""

    choice: Choice
    parts: dict[str, int]
    host_of_a_node: int

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """The largest part."""
        return max(self.parts, key=lambda part: self.parts[part])


def facts_of(
    subject: Subject,
    *,
    dtype: torch.dtype,
    averaged: bool,
    beside: int = 0,
    more_activations: int = 0,
    costs: Mapping[Levels, float] | None = None,
) -> Facts:
    """Return the facts of a network, by running it on the meta device.

    Args:
        subject: the network.
        dtype: of weights and activations.
        averaged: whether an average is kept.
        beside: bytes of other networks on the device.
        more_activations: bytes that those need for a sample.
        costs: of what is computed again, see ``recompute.measured_costs``; by default counted in operations.
    """
    model = subject.on_meta(None, dtype)
    sizes = tuple(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    ways = recomputations(subject, dtype=dtype, costs=costs, more=more_activations)
    return Facts(sizes=sizes, averaged=averaged, beside=beside, ways=ways)


def need_of(facts: Facts, choice: Choice, machine: Machine) -> Need:
    """Return what a choice needs."""
    count, ranks = sum(facts.sizes), machine.gpus
    held = rank_bytes(count, engine=choice.engine, world_size=ranks)
    working = working_bytes(count, engine=choice.engine, world_size=ranks)
    activations = choice.again.bytes_at(choice.micro)
    buffers = working.buckets + working.gathered + working.hierarchical
    # Each rank keeps the average of whole tensors, dealt out in turn (train/ema.py).
    average = 4 * max(sum(facts.sizes[rank::ranks]) for rank in range(min(ranks, len(facts.sizes))))
    parts = {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "average": average if facts.averaged else 0,
        "beside": facts.beside,
        "activations": activations,
        "buffers": buffers,
        "margin": CONTEXT_BYTES + int(FRAGMENTATION * (activations + buffers)),
    }
    return Need(choice=choice, parts=parts, host_of_a_node=working.host * machine.gpus_of_a_node)


def needs(facts: Facts, machine: Machine, batch: BatchConfig, engine: EngineConfig) -> list[Need]:
    """Return, of each way to hold the model, the largest micro batch that fits, or the need of 1 where none does.

    In the order in which they are to be preferred: on the device before on the host, what costs least to compute again,
    and the lower ZeRO stage, which talks less; several nodes prefer stage 3 with its second copy inside a node.

    Raises:
        ConfigError: the GPUs cannot share the global batch.
    """
    micros = micro_batches(batch, machine)
    found = []
    for held in _engines(engine, machine):
        for again in facts.ways:
            best = None
            for micro in micros:
                need = need_of(facts, Choice(engine=held, again=again, micro=micro), machine)
                if best is None or need.total <= machine.memory:
                    best = need
            assert best is not None
            found.append(best)
    order = ("none", "optimizer", "parameters")
    return sorted(found, key=lambda need: (order.index(need.choice.engine.offload), need.choice.again.cost))


def micro_batches(batch: BatchConfig, machine: Machine) -> list[int]:
    """Return the micro batches that divide the global one on all GPUs, ascending.

    Raises:
        ConfigError: there is none.
    """
    share = batch.global_size // machine.gpus
    if not share or batch.global_size % machine.gpus:
        fits = [gpus for gpus in range(1, batch.global_size + 1) if batch.global_size % gpus == 0]
        raise ConfigError(
            f"batch.global_size={batch.global_size} does not fall evenly on --gpus {machine.gpus}; "
            f"it does on {', '.join(map(str, fits))}, or set another batch.global_size, which is science"
        )
    return [micro for micro in range(1, share + 1) if share % micro == 0]


def first_fit(found: Sequence[Need], machine: Machine) -> Need | None:
    """Return the first need that the memory covers."""
    return next((need for need in found if need.total <= machine.memory), None)


def gpus_that_fit(facts: Facts, machine: Machine, batch: BatchConfig, engine: EngineConfig) -> int | None:
    """Return the smallest number of such GPUs, up to one a sample, on which something fits; None where none does."""
    for gpus in range(machine.gpus_of_a_node, batch.global_size + 1, machine.gpus_of_a_node):
        if batch.global_size % gpus == 0:
            more = Machine(gpus=gpus, nodes=gpus // machine.gpus_of_a_node, memory=machine.memory)
            if first_fit(needs(facts, more, batch, engine), more):
                return gpus
    return None


def _engines(engine: EngineConfig, machine: Machine) -> Iterator[EngineConfig]:
    """Yield every way to hold the model in this precision."""
    per_node = machine.gpus_of_a_node
    sizes = [per_node, 1] if machine.nodes > 1 and per_node > 1 else [1]
    for stage in range(1 if engine.precision == "bf16" else 0, 4):
        for offload in ("none", "optimizer", "parameters"):
            if (offload == "parameters" and stage < 3) or (offload == "optimizer" and stage == 0):
                continue
            for size in sizes if stage == 3 else [1]:
                update = {"zero_stage": stage, "offload": offload, "zero_hpz_partition_size": size}
                yield engine.model_copy(update=update)
