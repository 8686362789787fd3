"""A model of the time of a training step on many GPUs: operations, bytes between ranks, speed of links. No measurement.

What every rank sends in a step follows from what DeepSpeed 0.19.8 does with each ZeRO stage, which is counted on the
wire (``benchmarks.scaling``). Stages 1 and 2 reduce by an all-reduce where the ZeRO paper has a reduce-scatter; stage 3
keeps up to 1e9 weights from forward to backward, and gathers a smaller model once a micro batch, not twice.

Rajbhandari et al., "ZeRO" (arXiv 1910.02054), section 7: twice the parameters for stages 0 to 2, three times for stage
3; Wang et al., "ZeRO++" (arXiv 2306.10209), section 3.2: one gather of stage 3 stays inside with hpZ.
"""

from dataclasses import dataclass
from math import log2

from simcast_hpc.config import EngineConfig
from simcast_hpc.distributed.zero_memory import MAX_GATHERED_ELEMENTS

HEADERS = 1514 / 1448
"""Bytes on an Ethernet link of 1,500-byte frames for each byte of TCP's payload, with time stamps."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs and links; every number is an assumption until it is measured.

    Attributes:
        gpus_of_a_node: which talk over the fast link.
        inside: bytes a second that a GPU sends inside a node.
        outside: bytes a second that a GPU sends to other nodes.
        latency: seconds that one step of a collective takes before its first byte.
        operations: a second, that a GPU does in training, all losses counted.
    """

    gpus_of_a_node: int = 8
    inside: float = 450e9
    outside: float = 50e9
    latency: float = 10e-6
    operations: float = 0.30 * 989e12


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a rank takes part in, in a step: bytes of whole tensors, by collective, and how many collectives.

    ``gathered_inside`` is gathered among the ranks of a hierarchical partition alone.
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
        parameters: of the model.
        engine: stage, precision and hierarchical partition.
        accumulation: micro batches a step.
        tensors: gathers of ZeRO 3 in a pass over the model.
        paper: as in the ZeRO paper, instead of as DeepSpeed 0.19.8 does it.
    """
    wide = (4 if engine.precision == "fp32" else 2) * parameters
    stage = engine.zero_stage
    if stage == 0:
        return Traffic(reduced=wide, collectives=1)
    if stage < 3:
        times = accumulation if stage == 2 else 1
        if paper:
            return Traffic(scattered=times * wide, gathered=wide, collectives=times + 1)
        return Traffic(reduced=times * wide, gathered=wide, collectives=times + 1)
    again = 1 if paper or parameters > MAX_GATHERED_ELEMENTS else 0
    inside = engine.zero_hpz_partition_size > 1
    return Traffic(
        scattered=accumulation * wide,
        gathered=accumulation * wide * (1 if inside else 1 + again),
        gathered_inside=accumulation * wide * again if inside else 0.0,
        collectives=accumulation * (1 + (1 + again) * tensors),
    )


def sent_by_a_rank(one: Traffic, *, ranks: int, partition: int = 1, gloo: bool = False) -> float:
    """Return the bytes that a rank sends in rings of all ranks, and of ``partition`` ranks for what stays inside.

    ``gloo`` scatters what it reduces by an all-reduce, of which each rank keeps its part (seen on the wire).
    """
    share = (ranks - 1) / ranks
    inside = (partition - 1) / partition
    scattered = (2 if gloo else 1) * one.scattered
    return share * (2 * one.reduced + scattered + one.gathered) + inside * one.gathered_inside


def seconds_of(one: Traffic, *, gpus: int, cluster: Cluster) -> float:
    """Return the time of the collectives, each in two levels: inside the nodes, and between those of equal rank.

    A reduce-scatter or gather of n bytes sends n (g - 1) / g inside a node of g GPUs and n / g (m - 1) / m between m
    nodes, by every GPU at once; an all-reduce both twice. Each collective waits for its latency log2(gpus) times.
    """
    inner = min(cluster.gpus_of_a_node, gpus)
    nodes = gpus / inner
    whole = 2 * one.reduced + one.scattered + one.gathered
    inside = (inner - 1) / inner * (whole + one.gathered_inside) / cluster.inside
    outside = (nodes - 1) / nodes * whole / inner / cluster.outside
    return inside + outside + one.collectives * cluster.latency * log2(max(2, gpus))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A step of the model: seconds of computing and of talking, which overlap fully, not at all, or in between."""

    compute: float
    talk: float

    @property
    def least(self) -> float:
        """Seconds if all talk hides behind computing."""
        return max(self.compute, self.talk)

    @property
    def most(self) -> float:
        """Seconds if none does."""
        return self.compute + self.talk

    @property
    def efficiency(self) -> tuple[float, float]:
        """Share of the step that is computing: without and with overlap."""
        return self.compute / self.most, self.compute / self.least


def predict(
    parameters: int,
    operations: float,
    *,
    engine: EngineConfig,
    accumulation: int,
    gpus: int,
    cluster: Cluster,
    tensors: int,
) -> Prediction:
    """Return the model's step of ``accumulation`` micro batches of ``operations`` each on every GPU."""
    said = traffic(parameters, engine=engine, accumulation=accumulation, tensors=tensors)
    talk = 0.0 if gpus == 1 else seconds_of(said, gpus=gpus, cluster=cluster)
    return Prediction(compute=accumulation * operations / cluster.operations, talk=talk)


def over_a_slowed_link(free_seconds: float, sent: float, *, megabits: float) -> float:
    """Return the time of a step over a link of so many megabits a second: that over a free one, and its bytes."""
    return free_seconds + sent * HEADERS * 8 / (megabits * 1e6)
