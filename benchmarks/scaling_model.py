"""Estimate the time of a training step on many GPUs from FLOPs, bytes between ranks and rates of links.

The bytes per rank and step follow the behavior of DeepSpeed 0.19.8, counted on the wire (``benchmarks.scaling``).
Stages 1 and 2 reduce by an all-reduce instead of the ZeRO paper's reduce-scatter; stage 3 keeps up to 1e9 weights from
forward to backward, so a smaller model is gathered once per micro-batch, not twice.

Rajbhandari et al., "ZeRO" (arXiv 1910.02054), section 7: twice the parameters for stages 0 to 2, three times for stage
3; Wang et al., "ZeRO++" (arXiv 2306.10209), section 3.2: with hpZ one gather of stage 3 stays inside the partition.
"""

from dataclasses import dataclass
from math import log2

from simcast_hpc.config import EngineConfig
from simcast_hpc.distributed.zero_memory import MAX_GATHERED_ELEMENTS

HEADERS = 1514 / 1448
"""Bytes on an Ethernet link (1,500-byte frames, TCP timestamps) per byte of payload."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Assumed GPUs and links.

    Attributes:
        gpus_per_node: GPUs connected by the fast link.
        inside: bytes/s that a GPU sends inside a node.
        outside: bytes/s that a GPU sends to other nodes.
        latency: seconds before the first byte of one step of a collective.
        flops: FLOP/s of a GPU in training.
    """

    gpus_per_node: int = 8
    inside: float = 450e9
    outside: float = 50e9
    latency: float = 10e-6
    flops: float = 0.30 * 989e12


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of full tensors by collective in which a rank takes part in a step, and the number of collectives.

    ``gathered_inside`` is gathered only among the ranks of a hierarchical partition.
    """

    reduced: float = 0.0
    scattered: float = 0.0
    gathered: float = 0.0
    gathered_inside: float = 0.0
    collectives: float = 0.0


def traffic(
    parameters: int, *, engine: EngineConfig, accumulation: int, tensors: int = 1, paper: bool = False
) -> Traffic:
    """Return the collectives of an optimizer step.

    Args:
        parameters: number of parameters of the model.
        engine: stage, precision and hierarchical partition.
        accumulation: micro-batches per step.
        tensors: gathers of ZeRO stage 3 per pass over the model.
        paper: follow the ZeRO paper instead of DeepSpeed 0.19.8.
    """
    size = (4 if engine.precision == "fp32" else 2) * parameters
    stage = engine.zero_stage
    if stage == 0:
        return Traffic(reduced=size, collectives=1)
    if stage < 3:
        times = accumulation if stage == 2 else 1
        if paper:
            return Traffic(scattered=times * size, gathered=size, collectives=times + 1)
        return Traffic(reduced=times * size, gathered=size, collectives=times + 1)
    second_gather = 1 if paper or parameters > MAX_GATHERED_ELEMENTS else 0
    inside = engine.zero_hpz_partition_size > 1
    return Traffic(
        scattered=accumulation * size,
        gathered=accumulation * size * (1 if inside else 1 + second_gather),
        gathered_inside=accumulation * size * second_gather if inside else 0.0,
        collectives=accumulation * (1 + (1 + second_gather) * tensors),
    )


def sent_bytes_per_rank(one: Traffic, *, ranks: int, partition: int = 1, gloo: bool = False) -> float:
    """Return the bytes that a rank sends in rings of all ranks, or of ``partition`` ranks for ``gathered_inside``.

    With ``gloo`` a reduce-scatter is an all-reduce of which each rank keeps its part (counted on the wire).
    """
    share = (ranks - 1) / ranks
    inside = (partition - 1) / partition
    scattered = (2 if gloo else 1) * one.scattered
    return share * (2 * one.reduced + scattered + one.gathered) + inside * one.gathered_inside


def seconds_of(one: Traffic, *, gpus: int, cluster: Cluster) -> float:
    """Return the time of the collectives, each in two levels: inside nodes, and between GPUs of equal local rank.

    In a reduce-scatter or gather of n bytes every GPU sends n (g - 1) / g inside a node of g GPUs and n / g (m - 1) / m
    between m nodes; an all-reduce sends both twice. Each collective has log2(gpus) latencies.
    """
    inner = min(cluster.gpus_per_node, gpus)
    nodes = gpus / inner
    total = 2 * one.reduced + one.scattered + one.gathered
    inside = (inner - 1) / inner * (total + one.gathered_inside) / cluster.inside
    outside = (nodes - 1) / nodes * total / inner / cluster.outside
    return inside + outside + one.collectives * cluster.latency * log2(max(2, gpus))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of computation and of communication of a step."""

    compute: float
    communication: float

    @property
    def shortest(self) -> float:
        """Seconds if communication overlaps computation fully."""
        return max(self.compute, self.communication)

    @property
    def longest(self) -> float:
        """Seconds without overlap."""
        return self.compute + self.communication


def predict(
    parameters: int,
    flops: float,
    *,
    engine: EngineConfig,
    accumulation: int,
    gpus: int,
    cluster: Cluster,
    tensors: int,
) -> Prediction:
    """Return the estimated step of ``accumulation`` micro-batches of ``flops`` FLOPs each on every GPU."""
    total = traffic(parameters, engine=engine, accumulation=accumulation, tensors=tensors)
    communication = 0.0 if gpus == 1 else seconds_of(total, gpus=gpus, cluster=cluster)
    return Prediction(compute=accumulation * flops / cluster.flops, communication=communication)


def seconds_over_slowed_link(free_seconds: float, sent: float, *, megabits: float) -> float:
    """Return the time of a step over a link of ``megabits`` Mbit/s: the time over a free link plus bytes / rate."""
    return free_seconds + sent * HEADERS * 8 / (megabits * 1e6)
