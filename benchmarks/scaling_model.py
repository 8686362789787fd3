"""Estimate the time of a training step on many GPUs from FLOPs, bytes between ranks and rates of links.

Bytes and numbers of collectives are those of ``simcast_hpc/planning/step_traffic.py``.
"""

from dataclasses import dataclass
from math import log2

from simcast_hpc.config import EngineConfig
from simcast_hpc.planning.step_traffic import Traffic, traffic

HEADERS = 1514 / 1448
"""Bytes on an Ethernet link (1,500-byte frames, TCP timestamps) per byte of payload."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Assumed GPUs and links.

    Attributes:
        gpus_per_node: GPUs connected by the fast link.
        inside: bytes/s that a GPU sends inside a node.
        outside: bytes/s that a GPU sends to other nodes.
        latency_inside: seconds per step of a collective between GPUs of a node.
        latency_outside: seconds per step of a collective between nodes.
        flops: FLOP/s of a GPU in training.
    """

    gpus_per_node: int = 8
    inside: float = 450e9
    outside: float = 50e9
    latency_inside: float = 1e-6
    latency_outside: float = 5e-6
    flops: float = 0.30 * 989e12


def seconds_of(one: Traffic, *, gpus: int, cluster: Cluster) -> float:
    """Return the time of the collectives, each in two levels: inside nodes, and between GPUs of equal local rank.

    In a reduce-scatter or gather of n bytes every GPU sends n (g - 1) / g inside a node of g GPUs and n / g (m - 1) / m
    between m nodes; an all-reduce sends both twice. NCCL implements gathers and reduce-scatters as rings, whose p - 1
    steps each have a latency, of which m - 1 are between nodes. An all-reduce is a tree between nodes: 2 log2(m) steps.
    """
    inner = min(cluster.gpus_per_node, gpus)
    nodes = gpus / inner
    total = 2 * one.reduced + one.scattered + one.gathered
    inside = (inner - 1) / inner * (total + one.gathered_inside) / cluster.inside
    outside = (nodes - 1) / nodes * total / inner / cluster.outside
    ring = (gpus - nodes) * cluster.latency_inside + (nodes - 1) * cluster.latency_outside
    tree = 2 * ((inner - 1) * cluster.latency_inside + log2(nodes) * cluster.latency_outside)
    return inside + outside + one.rings * ring + one.reductions * tree


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of computation and of communication of a step.

    ``communication`` is that of gradients and weights, which computation can overlap. ``exchange`` is that of the rows
    of a sample, for which the next layer waits.
    """

    compute: float
    communication: float
    exchange: float = 0.0

    @property
    def shortest(self) -> float:
        """Seconds if communication overlaps computation fully."""
        return max(self.compute + self.exchange, self.communication)

    @property
    def longest(self) -> float:
        """Seconds without overlap."""
        return self.compute + self.exchange + self.communication


def predict(
    parameters: int,
    flops: float,
    *,
    engine: EngineConfig,
    accumulation: int,
    gpus: int,
    cluster: Cluster,
    spatial: int = 1,
    exchange: float = 0.0,
) -> Prediction:
    """Return the estimated step of ``accumulation`` micro-batches of ``flops`` FLOPs each.

    ``spatial`` GPUs share a micro-batch equally; the exchange of its rows takes ``exchange`` seconds.
    """
    total = traffic(parameters, engine=engine, accumulation=accumulation)
    communication = 0.0 if gpus == 1 else seconds_of(total, gpus=gpus, cluster=cluster)
    compute = accumulation * flops / spatial / cluster.flops
    return Prediction(compute=compute, communication=communication, exchange=accumulation * exchange)


def seconds_over_slowed_link(free_seconds: float, sent: float, *, megabits: float) -> float:
    """Return the time of a step over a link of ``megabits`` Mbit/s: the time over a free link plus bytes / rate."""
    return free_seconds + sent * HEADERS * 8 / (megabits * 1e6)
