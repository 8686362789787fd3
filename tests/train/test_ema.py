"""The moving average of the weights: its recursion, its share of the names, and its way through a checkpoint."""

import pytest
import torch

from simcast_hpc.config import EMAConfig
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.train import ema as module
from simcast_hpc.train.ema import EMA

NAMES = ("a", "b", "c")


class _Weights:
    """Stands for an engine: three parameters whose values a test sets."""

    def __init__(self):
        self.value = 0.0

    def read(self):
        for number, name in enumerate(NAMES):
            yield name, torch.full((2,), self.value + number)


def _world(rank: int = 0, ranks: int = 1) -> TorchRanks:
    return TorchRanks(rank, ranks, torch.device("cpu"))


@pytest.fixture
def weights(monkeypatch):
    stand_in = _Weights()
    monkeypatch.setattr(module, "read_parameters", lambda _engine: stand_in.read())
    return stand_in


def test_the_recursion_against_float64(weights):
    average = EMA(EMAConfig(decay=0.6), weights, _world())
    want = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    for step in range(1, 21):
        weights.value = float(step % 5)
        average(step, {})
        decay = min(0.6, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * (weights.value + torch.arange(3, dtype=torch.float64))
    got = torch.stack([average.tensors[name][0] for name in NAMES]).double()
    assert torch.allclose(got, want, rtol=1e-6, atol=0)


def test_only_every_so_many_steps_count(weights):
    average = EMA(EMAConfig(decay=0.9, every_steps=3), weights, _world())
    weights.value = 5.0
    average(1, {})
    average(2, {})
    assert average.tensors["a"][0] == 0.0
    average(3, {})
    assert average.tensors["a"][0] > 0.0


def test_ranks_share_the_names(weights):
    shares = [set(EMA(EMAConfig(decay=0.9), weights, _world(rank, 2)).tensors) for rank in range(2)]
    assert shares[0] | shares[1] == set(NAMES) and not shares[0] & shares[1]


def test_it_is_restored_whatever_rank_wrote_it(weights):
    saved = {name: torch.full((2,), float(number)) for number, name in enumerate(NAMES)}
    average = EMA(EMAConfig(decay=0.9), weights, _world(1, 2))
    average.restore(lambda name: saved[name])
    assert average.tensors["b"].tolist() == [1.0, 1.0]


def test_it_does_not_alias_the_weights(monkeypatch):
    live = torch.zeros(2)
    monkeypatch.setattr(module, "read_parameters", lambda _engine: iter([("a", live)]))
    average = EMA(EMAConfig(decay=0.9), object(), _world())
    live.add_(1.0)
    assert average.tensors["a"].tolist() == [0.0, 0.0]
