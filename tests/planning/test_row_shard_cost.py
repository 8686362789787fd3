"""Memory and traffic of row shards: by hand, and compared with whole frames."""

import pytest
import torch
from torch import nn

from simcast_hpc.config import BatchConfig, ConfigError, EarthformerConfig, EngineConfig, SimVPConfig, StackConvStem
from simcast_hpc.models import with_grid
from simcast_hpc.models.row_sharding import shard_layers
from simcast_hpc.planning.flops import Network, forecaster
from simcast_hpc.planning.memory_plan import Machine, estimate_plans, micro_batches, model_memory
from simcast_hpc.planning.peak_memory import peak_bytes
from simcast_hpc.planning.row_shard_cost import CountedRowShards, row_sharded, shard_traffic

SIMVP = SimVPConfig(hidden_spatial=4, hidden_temporal=16, temporal_blocks=2, groups=2)


def _network(config=SIMVP, rows: int = 64) -> Network:
    grid = (rows, 64)
    return forecaster(with_grid(config, grid), frames_in=4, frames_out=4, grid=grid, dtype=torch.float32)


def test_traffic_by_hand():
    shards = CountedRowShards(4)
    with torch.device("meta"):
        layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(2, 2))
    shard_layers(layers, shards)
    peak_bytes(layers, torch.empty(1, 1, 2, 5, device="meta"))
    halo = 2 * 5 * 4  # two rows; without gradient, because the input needs none
    statistics = 2 * 3 / 4 * (2 + 2 + 4) * 4  # mean and variance of two groups; two sums of each in backward
    assert (shards.sent_bytes, shards.exchanges) == (halo + statistics, 4)


@pytest.mark.parametrize("spatial", [2, 4])
def test_activations_of_a_rank_are_its_share_and_halos(spatial):
    whole = peak_bytes(_network().on_meta(None, torch.float32), *_network().inputs(1))
    own = row_sharded(_network(), CountedRowShards(spatial))
    part = peak_bytes(own.on_meta(None, torch.float32), *own.inputs(1))
    assert whole / spatial < part < 2 * whole / spatial


def test_recomputed_levels_exchange_twice_in_the_forward_pass():
    config = EarthformerConfig(width=8, heads=1, stem=StackConvStem(widths=(4, 8), scales=(2, 2), convolutions=(1, 1)))
    once, twice = (
        shard_traffic(_network(config), spatial=2, levels=levels, micro_batch=1, dtype=torch.float32)
        for levels in ((), (0, 1))
    )
    assert once.exchanges < twice.exchanges < 2 * once.exchanges
    more = shard_traffic(_network(config), spatial=2, levels=(), micro_batch=2, dtype=torch.float32)
    assert more.exchanges == once.exchanges and 1.5 * once.sent_bytes < more.sent_bytes <= 2 * once.sent_bytes


def test_rows_that_cannot_be_divided_are_rejected():
    with pytest.raises(ConfigError, match="next height that fits is 72"):
        row_sharded(_network(rows=66), CountedRowShards(4)).on_meta(None, torch.float32)


def test_more_gpus_than_samples_are_planned():
    machine, batch = Machine(gpus=32, memory=2**36, nodes=4), BatchConfig(global_size=8)
    assert micro_batches(batch, machine, spatial=4) == [1] and micro_batches(batch, machine, spatial=8) == [1, 2]
    with pytest.raises(ConfigError, match=r"choose 2, 4, 8, 16 GPUs, or another parallel\.spatial"):
        micro_batches(batch, machine, spatial=2)
    own = row_sharded(_network(), CountedRowShards(4))
    plans = estimate_plans(model_memory(own, dtype=torch.float32, ema=False, spatial=4), machine, batch, EngineConfig())
    assert {plan.plan.engine.zero_hpz_partition_size for plan in plans} == {1}
