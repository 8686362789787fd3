"""Memory and traffic of a network on row shards (``parallel.spatial``), counted on the meta device."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simcast_hpc.distributed.row_shards import RowShards, rows_per_rank
from simcast_hpc.models.row_sharding import row_multiple, shard_rows

from .flops import Levels, Network
from .peak_memory import peak_bytes


class ShardTraffic(NamedTuple):
    """What a rank exchanges with the others of its group.

    Attributes:
        sent_bytes: bytes that the rank sends; all-reduces are rings.
        exchanges: number of collectives and of exchanges with other ranks.
    """

    sent_bytes: float
    exchanges: int


class CountedRowShards(RowShards):
    """The rows of an interior rank; counts what it would send and sends nothing."""

    def __init__(self, size: int):
        super().__init__(min(1, size - 1), size, group="none", device="meta")
        self.sent_bytes, self.exchanges = 0.0, 0

    def _exchange(self, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]) -> None:
        self._count(sum(buffer.nbytes for _, buffer in sends))

    def _all_to_all(self, chunks: Tensor) -> Tensor:
        self._count((self.size - 1) / self.size * chunks.nbytes)
        return torch.empty_like(chunks)

    def _all_reduced(self, x: Tensor, *, maximum: bool = False) -> Tensor:
        self._count(2 * (self.size - 1) / self.size * x.nbytes)
        return x.detach().clone()

    def _all_gathered(self, own: Tensor) -> Tensor:
        self._count((self.size - 1) * own.nbytes)
        return own.new_empty((self.size, *own.shape))

    def _count(self, sent: float) -> None:
        self.sent_bytes += sent
        self.exchanges += 1


def row_sharded(network: Network, shards: CountedRowShards) -> Network:
    """Return a forecasting network as one rank of ``shards`` computes it.

    The base forecast of a network that has one is counted for the rows only, although it needs the whole frames.

    Raises:
        ConfigError: the network does not support spatial sharding, or the rows of the frames cannot be divided.
    """

    def build(levels: Levels | None) -> nn.Module:
        model = network.build(levels)
        (frames, *_) = network.inputs(1)
        rows_per_rank(frames.shape[-2], shards.size, row_multiple(model))
        shard_rows(model, shards)
        return model

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return tuple(shards.take(tensor).contiguous() for tensor in network.inputs(batch))

    return Network(build, inputs, network.levels)


def shard_traffic(
    network: Network, *, spatial: int, levels: Levels, micro_batch: int, dtype: torch.dtype
) -> ShardTraffic:
    """Return what a rank exchanges within its group in the forward and backward pass of a micro-batch.

    Args:
        network: forecasting network of whole frames.
        spatial: ranks per sample.
        levels: levels with activation checkpointing, whose exchanges of the forward pass are repeated.
        micro_batch: samples.
        dtype: of weights and activations.

    Raises:
        ConfigError: see :func:`row_sharded`.
    """
    shards = CountedRowShards(spatial)
    sharded = row_sharded(network, shards)
    peak_bytes(sharded.on_meta(levels, dtype), *sharded.inputs(micro_batch))
    return ShardTraffic(shards.sent_bytes, shards.exchanges)
