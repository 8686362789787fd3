"""Spatial sharding in the scaling model: exchanges by hand, on real ranks, and their time."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks import spatial_links
from benchmarks.scaling_model import Cluster, Prediction, seconds_over_slowed_link
from benchmarks.scaling_spatial import Exchanges, KindsOfRowShards, exchange_seconds, exchanges, messages
from simcast_hpc.models.row_sharding import shard_layers
from simcast_hpc.planning.peak_memory import peak_bytes
from tests.multi_rank.runs import environment


def test_kinds_of_exchanges_by_hand():
    shards = KindsOfRowShards(4)
    with torch.device("meta"):
        layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(2, 2))
    shard_layers(layers, shards)
    peak_bytes(layers, torch.empty(1, 1, 2, 5, device="meta"))
    assert shards.found.calls == {"halo": 1, "all-reduce": 3}
    assert shards.found.sent_bytes == {"halo": 2 * 5 * 4, "all-reduce": 2 * 3 / 4 * (2 + 2 + 4) * 4}


@pytest.mark.multi
@pytest.mark.parametrize(
    ("network", "size"),
    [
        ("earthformer", 4),
        pytest.param("simvp", 2, marks=pytest.mark.slow),
        pytest.param("simvp", 4, marks=pytest.mark.slow),
    ],
)
def test_predicted_exchanges_are_those_of_ranks(network, size):
    command = [sys.executable, "-m", "tests.multi_rank.row_shard_checks", str(size)]
    command += ["tests.benchmarks.row_traffic_checks", network]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


def test_number_of_exchanges_does_not_depend_on_the_ranks():
    two, four = (
        exchanges(spatial_links.network_of("earthformer"), spatial=size, dtype=torch.float32) for size in (2, 4)
    )
    assert two.calls == four.calls
    # An interior rank of four sends to both neighbors; an all-to-all keeps 1/p of the rows of a rank, which are 1/p.
    assert four.sent_bytes["halo"] == 2 * two.sent_bytes["halo"]
    assert four.sent_bytes["all-to-all"] == pytest.approx(3 / 4 / 4 / (1 / 2 / 2) * two.sent_bytes["all-to-all"])


def test_time_of_exchanges_by_hand():
    cluster = Cluster(gpus_per_node=4, inside=100.0, outside=10.0, latency_inside=1.0, latency_outside=5.0, flops=1.0)
    one = Exchanges(Counter({"halo": 3, "all-reduce": 2}), {"halo": 300.0, "all-reduce": 20.0})
    assert [messages(kind, 4) for kind in ("halo", "all-to-all", "all-reduce", "all-gather")] == [1, 3, 6, 3]
    assert exchange_seconds(one, spatial=4, cluster=cluster) == pytest.approx(3 + 2 * 6 + 320 / 100)
    assert exchange_seconds(one, spatial=8, cluster=cluster) == pytest.approx(5 * (3 + 2 * 14) + 320 / 10)


def test_exchanges_overlap_nothing():
    step = Prediction(compute=2.0, communication=3.0, exchange=0.5)
    assert (step.shortest, step.longest) == (3.0, 5.5)
    assert Prediction(compute=2.0, communication=1.0, exchange=0.5).shortest == 2.5


def test_measured_steps_are_compared_with_the_model():
    case = {"network": "simvp", "ranks": 2, "spatial": 2}
    rows = [{**case, "megabits": None, "seconds": 1.0}, {**case, "megabits": 8.0, "seconds": 2.0}]
    spatial_links.add_model(rows)
    predicted = seconds_over_slowed_link(1.0, rows[1]["computed_bytes"], megabits=8.0)
    assert rows[1]["model_seconds"] == predicted and rows[1]["model_error"] == predicted / 2.0 - 1
    assert rows[1]["computed_bytes"] > rows[1]["computed_row_bytes"] > 0 and "model_seconds" not in rows[0]
