"""The moving average of the weights: its recursion, its distribution over ranks, and restoring it."""

import pytest
import torch

from simcast_hpc.config import EMAConfig
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.train.ema import EMA

NAMES = ("a", "b", "c")


class _Engine:
    """A stand-in for an engine without ZeRO: parameters of two elements, whose values a test sets."""

    def __init__(self):
        self.module = torch.nn.ParameterDict({name: torch.zeros(2) for name in NAMES})
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.0)
        self.set(0.0)

    def set(self, value: float) -> None:
        for number, name in enumerate(NAMES):
            self.module[name].data.fill_(value + number)


def _ranks(rank: int = 0, ranks: int = 1) -> TorchRanks:
    return TorchRanks(rank, ranks, torch.device("cpu"))


@pytest.fixture
def weights() -> _Engine:
    return _Engine()


def test_recursion_equals_float64(weights):
    average = EMA(EMAConfig(decay=0.6), weights, _ranks())
    expected = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    for step in range(1, 21):
        weights.set(float(step % 5))
        average(step, {})
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step % 5 + torch.arange(3, dtype=torch.float64))
    got = torch.stack([average.tensors[name][0] for name in NAMES]).double()
    assert torch.allclose(got, expected, rtol=1e-6, atol=0)


def test_updates_every_n_steps_only(weights):
    average = EMA(EMAConfig(decay=0.9, every_steps=3), weights, _ranks())
    weights.set(5.0)
    average(1, {})
    average(2, {})
    assert average.tensors["a"][0] == 0.0
    average(3, {})
    assert average.tensors["a"][0] > 0.0


def test_ranks_partition_the_names(weights):
    shares = [set(EMA(EMAConfig(decay=0.9), weights, _ranks(rank, 2)).tensors) for rank in range(2)]
    assert shares[0] | shares[1] == set(NAMES) and not shares[0] & shares[1]


def test_restores_the_share_of_this_rank(weights):
    average = EMA(EMAConfig(decay=0.9), weights, _ranks(1, 2))
    requested = []

    def lookup(name: str, start: int, length: int) -> torch.Tensor:
        requested.append((name, start, length))
        return torch.full((length,), 7.0)

    average.restore(lookup)
    assert requested == [(name, 0, 2) for name in average.tensors] and requested
    assert all(tensor.tolist() == [7.0, 7.0] for tensor in average.tensors.values())


def test_complete_average_has_the_shapes_of_the_parameters(weights):
    weights.module["b"] = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    average = EMA(EMAConfig(decay=0.9), weights, _ranks())
    complete = dict(average.complete())
    assert complete["b"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and list(complete) == list(weights.module)
    complete["a"].fill_(9.0)
    assert average.tensors["a"].tolist() == [0.0, 0.0]


def test_does_not_alias_the_weights(weights):
    average = EMA(EMAConfig(decay=0.9), weights, _ranks())
    weights.set(1.0)
    assert average.tensors["a"].tolist() == [0.0, 0.0]
