"""Search ZeRO stage, offload, activation checkpointing and micro-batch that fit into GPU memory, without allocating."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from simcast_hpc.config import BatchConfig, ConfigError, EngineConfig, ParallelConfig
from simcast_hpc.distributed.partitions import stored_elements
from simcast_hpc.distributed.zero_memory import rank_bytes, working_bytes

from .flops import Levels, Network
from .recompute import RecomputeOption, recompute_options

CONTEXT_BYTES, FRAGMENTATION = 2**30, 0.10
"""Assumed bytes of CUDA, cuBLAS and NCCL, and assumed share of activations and buffers lost to fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """``gpus`` GPUs in total on ``nodes`` nodes, each GPU with ``memory`` bytes.

    Raises:
        ConfigError: the GPUs are not divisible by the nodes.
    """

    gpus: int
    memory: float
    nodes: int = 1

    def __post_init__(self):
        if self.gpus % self.nodes:
            raise ConfigError(
                f"--gpus {self.gpus} is not divisible by --nodes {self.nodes}; --gpus is the total over all nodes"
            )

    @property
    def gpus_per_node(self) -> int:
        """Number of GPUs per node."""
        return self.gpus // self.nodes


@dataclass(frozen=True, kw_only=True)
class ModelMemory:
    """Memory requirements of a model that do not depend on the plan.

    Attributes:
        sizes: number of elements of each parameter, in the order of the module.
        ema: whether an exponential moving average of the weights is kept.
        auxiliary: bytes of networks outside the engine: a teacher, or a discriminator and its optimizer.
        recompute_options: choices of activation checkpointing, cheapest first.
        spatial: ranks per sample (``parallel.spatial``); ``recompute_options`` are those of one rank.
    """

    sizes: tuple[int, ...]
    ema: bool
    auxiliary: int
    recompute_options: tuple[RecomputeOption, ...]
    spatial: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Engine options, activation checkpointing and micro-batch."""

    engine: EngineConfig
    recompute: RecomputeOption
    micro_batch: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a plan on each GPU by part, and on the host of each node."""

    plan: Plan
    parts: dict[str, int]
    host_per_node: int

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """Name of the largest part."""
        return max(self.parts, key=lambda part: self.parts[part])


def model_memory(
    network: Network,
    *,
    dtype: torch.dtype,
    ema: bool,
    auxiliary: int = 0,
    auxiliary_activations: int = 0,
    costs: Mapping[Levels, float] | None = None,
    spatial: int = 1,
) -> ModelMemory:
    """Return the memory requirements of a network, by running it on the meta device.

    Args:
        network: the network.
        dtype: dtype of weights and activations.
        ema: whether an exponential moving average of the weights is kept.
        auxiliary: bytes of other networks on the device.
        auxiliary_activations: activation bytes of those networks per sample.
        costs: cost of each choice of levels, see ``recompute.measured_costs``; by default counted in FLOPs.
        spatial: ranks that share a sample of ``network``, whose part of the rows is that of one rank.
    """
    model = network.on_meta(None, dtype)
    sizes = tuple(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    options = recompute_options(network, dtype=dtype, costs=costs, extra_bytes=auxiliary_activations)
    return ModelMemory(sizes=sizes, ema=ema, auxiliary=auxiliary, recompute_options=options, spatial=spatial)


def estimate_memory(model: ModelMemory, plan: Plan, machine: Machine) -> MemoryEstimate:
    """Return the memory that a plan needs."""
    count, ranks = sum(model.sizes), machine.gpus
    states = rank_bytes(count, engine=plan.engine, world_size=ranks)
    working = working_bytes(count, engine=plan.engine, world_size=ranks)
    activations = plan.recompute.bytes_at(plan.micro_batch)
    buffers = working.buckets + working.gathered + working.hierarchical
    average = 4 * stored_elements(model.sizes, plan.engine, ranks)
    parts = {
        "weights": states.weights,
        "gradients": states.gradients,
        "optimizer": states.optimizer,
        "ema": average if model.ema else 0,
        "auxiliary": model.auxiliary,
        "activations": activations,
        "buffers": buffers,
        "margin": CONTEXT_BYTES + int(FRAGMENTATION * (activations + buffers)),
    }
    return MemoryEstimate(plan=plan, parts=parts, host_per_node=working.host * machine.gpus_per_node)


def estimate_plans(
    model: ModelMemory, machine: Machine, batch: BatchConfig, engine: EngineConfig
) -> list[MemoryEstimate]:
    """Return an estimate per combination of engine options and checkpointing.

    Each has the largest micro-batch that fits, or 1 if none fits. They are in order of preference: no offload first,
    then the lowest recomputation cost, then the lowest ZeRO stage, which communicates least. On several nodes, stage 3
    with a secondary partition within each node (hpZ) is preferred to plain stage 3.

    Raises:
        ConfigError: the global batch is not divisible by the GPUs, or the GPUs not by those that share a sample.
    """
    micros = micro_batches(batch, machine, spatial=model.spatial)
    estimates = []
    for candidate in _engines(engine, machine, spatial=model.spatial):
        for recompute in model.recompute_options:
            best = None
            for micro in micros:
                plan = Plan(engine=candidate, recompute=recompute, micro_batch=micro)
                estimate = estimate_memory(model, plan, machine)
                if best is None or estimate.total <= machine.memory:
                    best = estimate
            assert best is not None
            estimates.append(best)
    order = ("none", "optimizer", "parameters")
    return sorted(estimates, key=lambda item: (order.index(item.plan.engine.offload), item.plan.recompute.cost))


def micro_batches(batch: BatchConfig, machine: Machine, *, spatial: int = 1) -> list[int]:
    """Return the micro-batch sizes that divide the global batch over all GPUs, ascending.

    ``spatial`` GPUs share a sample.

    Raises:
        ConfigError: there is none.
    """
    groups = ParallelConfig(spatial=spatial).groups(machine.gpus)
    per_gpu = batch.global_size // groups
    if not per_gpu or batch.global_size % groups:
        divisors = [spatial * size for size in range(1, batch.global_size + 1) if batch.global_size % size == 0]
        shared = f" x parallel.spatial={spatial}" if spatial > 1 else ""
        raise ConfigError(
            f"--gpus {machine.gpus} does not divide batch.global_size={batch.global_size}{shared}; "
            f"choose {', '.join(map(str, divisors))} GPUs, or another parallel.spatial"
        )
    return [micro for micro in range(1, per_gpu + 1) if per_gpu % micro == 0]


def first_fit(estimates: Sequence[MemoryEstimate], machine: Machine) -> MemoryEstimate | None:
    """Return the first estimate that fits into the memory."""
    return next((estimate for estimate in estimates if estimate.total <= machine.memory), None)


def smallest_gpu_count(model: ModelMemory, machine: Machine, batch: BatchConfig, engine: EngineConfig) -> int | None:
    """Return the smallest number of GPUs, at most one per sample, on which a plan fits; None if there is none."""
    most = batch.global_size * model.spatial
    for gpus in range(machine.gpus_per_node, most + 1, machine.gpus_per_node):
        if most % gpus == 0 and gpus % model.spatial == 0:
            larger = Machine(gpus=gpus, nodes=gpus // machine.gpus_per_node, memory=machine.memory)
            if first_fit(estimate_plans(model, larger, batch, engine), larger):
                return gpus
    return None


def _engines(engine: EngineConfig, machine: Machine, *, spatial: int) -> Iterator[EngineConfig]:
    """Yield every combination of ZeRO stage, offload and secondary partition for this precision."""
    per_node = machine.gpus_per_node
    partitions = [per_node, 1] if machine.nodes > 1 and per_node > 1 and spatial == 1 else [1]
    for stage in range(1 if engine.precision == "bf16" else 0, 4):
        for offload in ("none", "optimizer", "parameters"):
            if (offload == "parameters" and stage < 3) or (offload == "optimizer" and stage == 0):
                continue
            for partition in partitions if stage == 3 else [1]:
                update = {"zero_stage": stage, "offload": offload, "zero_hpz_partition_size": partition}
                yield engine.model_copy(update=update)
