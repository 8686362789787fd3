"""The moving average of the weights: its recursion, its distribution over ranks, and restoring it."""

import pytest
import torch

from simcast_hpc.config import EMAConfig
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.train import ema as module
from simcast_hpc.train.ema import EMA

NAMES = ("a", "b", "c")


class _Weights:
    """A stand-in for an engine: three parameters whose values a test sets."""

    def __init__(self):
        self.value = 0.0

    def read(self):
        for number, name in enumerate(NAMES):
            yield name, torch.full((2,), self.value + number)


def _ranks(rank: int = 0, ranks: int = 1) -> TorchRanks:
    return TorchRanks(rank, ranks, torch.device("cpu"))


@pytest.fixture
def weights(monkeypatch):
    fake = _Weights()
    monkeypatch.setattr(module, "read_parameters", lambda _engine: fake.read())
    return fake


def test_recursion_equals_float64(weights):
    average = EMA(EMAConfig(decay=0.6), weights, _ranks())
    expected = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    for step in range(1, 21):
        weights.value = float(step % 5)
        average(step, {})
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (weights.value + torch.arange(3, dtype=torch.float64))
    got = torch.stack([average.tensors[name][0] for name in NAMES]).double()
    assert torch.allclose(got, expected, rtol=1e-6, atol=0)


def test_updates_every_n_steps_only(weights):
    average = EMA(EMAConfig(decay=0.9, every_steps=3), weights, _ranks())
    weights.value = 5.0
    average(1, {})
    average(2, {})
    assert average.tensors["a"][0] == 0.0
    average(3, {})
    assert average.tensors["a"][0] > 0.0


def test_ranks_partition_the_names(weights):
    shares = [set(EMA(EMAConfig(decay=0.9), weights, _ranks(rank, 2)).tensors) for rank in range(2)]
    assert shares[0] | shares[1] == set(NAMES) and not shares[0] & shares[1]


def test_restores_the_share_of_this_rank(weights):
    saved = {name: torch.full((2,), float(number)) for number, name in enumerate(NAMES)}
    average = EMA(EMAConfig(decay=0.9), weights, _ranks(1, 2))
    average.restore(lambda name: saved[name])
    assert average.tensors["b"].tolist() == [1.0, 1.0]


def test_does_not_alias_the_weights(monkeypatch):
    live = torch.zeros(2)
    monkeypatch.setattr(module, "read_parameters", lambda _engine: iter([("a", live)]))
    average = EMA(EMAConfig(decay=0.9), object(), _ranks())
    live.add_(1.0)
    assert average.tensors["a"].tolist() == [0.0, 0.0]
