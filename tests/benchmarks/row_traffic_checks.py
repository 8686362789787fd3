"""Check on ranks that predicted exchanges of rows are those that a rank passes to torch.

Run by ``tests.multi_rank.row_shard_checks`` for :mod:`tests.benchmarks.test_scaling_spatial`.
"""

import torch

from benchmarks.scaling_spatial import Exchanges, SentRowShards, exchanges
from benchmarks.spatial_links import NETWORKS, SIZE, Module, network_of
from simcast_hpc.distributed.row_shards import RowShards


def _check(name: str, shards: RowShards) -> None:
    """An interior rank sends what is predicted, a rank at the edge less in halos."""
    counted = SentRowShards(shards.rank, shards.size, shards.group)
    Module(name, counted)(torch.randn(1, 12, 1, SIZE, SIZE)).backward()
    predicted: Exchanges = exchanges(network_of(name), spatial=shards.size, dtype=torch.float32)
    edge = shards.size > 2 and shards.rank in (0, shards.size - 1)
    assert counted.found.calls == predicted.calls, (counted.found, predicted)
    for kind, sent in predicted.sent_bytes.items():
        share = 0.5 if edge and kind == "halo" else 1.0
        assert abs(counted.found.sent_bytes[kind] - share * sent) <= 0.001 * sent, (kind, counted.found, predicted)


CHECKS = {name: lambda shards, name=name: _check(name, shards) for name in NETWORKS}
