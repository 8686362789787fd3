"""Estimate what spatial sharding adds to a step: exchanges of rows between the GPUs that share a sample.

Numbers and bytes of the exchanges are those of ``simcast_hpc/planning/row_shard_cost.py``, counted on the meta device.
:class:`SentRowShards` counts what a rank really sends.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.scaling_model import Cluster
from simcast_hpc.distributed.row_shards import RowShards
from simcast_hpc.planning.flops import Network
from simcast_hpc.planning.peak_memory import peak_bytes
from simcast_hpc.planning.row_shard_cost import CountedRowShards, row_sharded

KINDS = ("halo", "all-to-all", "all-reduce", "all-gather")


@dataclass(frozen=True)
class Exchanges:
    """What a rank exchanges with its group in the forward and backward pass of a micro-batch, by kind.

    Attributes:
        calls: number of exchanges.
        sent_bytes: bytes that the rank sends; all-reduces are rings.
    """

    calls: Counter[str] = field(default_factory=Counter)
    sent_bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def all_bytes(self) -> float:
        """Bytes of all kinds."""
        return sum(self.sent_bytes.values())


class KindsOfRowShards(CountedRowShards):
    """The rows of an interior rank, which counts its exchanges by kind and sends nothing."""

    def __init__(self, size: int):
        super().__init__(size)
        self.found = Exchanges()

    def _exchange(self, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]) -> None:
        self._of_kind("halo", super()._exchange, sends, receives)

    def _all_to_all(self, chunks: Tensor) -> Tensor:
        return self._of_kind("all-to-all", super()._all_to_all, chunks)

    def _all_reduced(self, x: Tensor, *, maximum: bool = False) -> Tensor:
        return self._of_kind("all-reduce", super()._all_reduced, x)

    def _all_gathered(self, own: Tensor) -> Tensor:
        return self._of_kind("all-gather", super()._all_gathered, own)

    def _of_kind(self, kind: str, exchange: Any, *arguments: Any) -> Any:
        before = self.sent_bytes
        result = exchange(*arguments)
        self.found.calls[kind] += 1
        self.found.sent_bytes[kind] += self.sent_bytes - before
        return result


class SentRowShards(RowShards):
    """The rows of a rank of a process group, which counts its exchanges by the tensors that it passes to torch."""

    def __init__(self, rank: int, size: int, group: Any):
        super().__init__(rank, size, group)
        self.found = Exchanges()

    def _exchange(self, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]) -> None:
        self._add("halo", sum(buffer.nbytes for _, buffer in sends))
        super()._exchange(sends, receives)

    def _all_to_all(self, chunks: Tensor) -> Tensor:
        self._add("all-to-all", sum(chunk.nbytes for rank, chunk in enumerate(chunks) if rank != self.rank))
        return super()._all_to_all(chunks)

    def _all_reduced(self, x: Tensor, *, maximum: bool = False) -> Tensor:
        self._add("all-reduce", 2 * (self.size - 1) / self.size * x.nbytes)
        return super()._all_reduced(x, maximum=maximum)

    def _all_gathered(self, own: Tensor) -> Tensor:
        self._add("all-gather", (self.size - 1) * own.nbytes)
        return super()._all_gathered(own)

    def _add(self, kind: str, sent: float) -> None:
        self.found.calls[kind] += 1
        self.found.sent_bytes[kind] += sent


def exchanges(network: Network, *, spatial: int, dtype: torch.dtype, micro_batch: int = 1) -> Exchanges:
    """Return the exchanges of an interior rank of ``spatial`` ranks, without activation checkpointing.

    Raises:
        ConfigError: the network does not support spatial sharding, or the rows of the frames cannot be divided.
    """
    shards = KindsOfRowShards(spatial)
    sharded = row_sharded(network, shards)
    peak_bytes(sharded.on_meta(None, dtype), *sharded.inputs(micro_batch))
    return shards.found


def messages(kind: str, spatial: int) -> int:
    """Return the messages of an exchange that a rank sends one after another.

    Halos go to both neighbors at once. An all-reduce is a ring of 2 (p - 1) steps. In an all-gather and in a pairwise
    all-to-all a rank waits for p - 1 others.
    """
    return {"halo": 1, "all-to-all": spatial - 1, "all-reduce": 2 * (spatial - 1), "all-gather": spatial - 1}[kind]


def exchange_seconds(one: Exchanges, *, spatial: int, cluster: Cluster) -> float:
    """Return the time of the exchanges of a micro-batch, which nothing overlaps.

    A group of more GPUs than a node has uses the link between nodes for every exchange.
    """
    inside = spatial <= cluster.gpus_per_node
    rate, latency = (cluster.inside, cluster.latency_inside) if inside else (cluster.outside, cluster.latency_outside)
    waits = sum(number * messages(kind, spatial) for kind, number in one.calls.items())
    return waits * latency + one.all_bytes / rate
