"""Checks of networks on row shards: outputs and gradients of every parameter against the whole field on one rank."""

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import SimVPConfig
from simcast_hpc.distributed.row_shards import RowShards
from simcast_hpc.models import SimVP
from simcast_hpc.models.group_norm_silu import group_norm_silu
from simcast_hpc.models.row_sharding import RowShardedConv2d, RowShardedDropout, shard_layers, shard_rows
from tests.multi_rank.row_shard_checks import equal, random, weights_like


class NormSiLU(nn.Module):
    """A group norm and SiLU by the function of the networks."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        return group_norm_silu(x, self.norm)


def compare_network(
    shards: RowShards, network: nn.Module, inputs: Tensor, convert: Callable[[nn.Module, RowShards], None]
) -> None:
    """Compare a network after ``convert`` on this rank's rows with itself before on the whole field."""
    network.zero_grad()
    own, inputs = copy.deepcopy(network), inputs.clone().requires_grad_()
    convert(own, shards)
    assert list(own.state_dict()) == list(network.state_dict())
    # 1. One rank
    torch.manual_seed(5)
    expected = network(inputs)
    (expected * weights_like(expected)).sum().backward()
    # 2. This rank; gradients of parameters are summed over the ranks
    local = shards.take(inputs.detach()).clone().requires_grad_()
    torch.manual_seed(5)
    actual = own(local)
    equal(actual, shards.take(expected.detach()))
    (actual * shards.take(weights_like(expected))).sum().backward()
    assert local.grad is not None and inputs.grad is not None
    equal(local.grad, shards.take(inputs.grad))
    for (name, parameter), reference in zip(own.named_parameters(), network.parameters(), strict=True):
        assert (parameter.grad is None) == (reference.grad is None), name
        if parameter.grad is not None:  # the last update of Earthformer's global vectors is unused
            equal(shards.sum(parameter.grad), reference.grad)


def check_convolutions(shards: RowShards) -> None:
    """Kernels of many sizes, strides, dilations and groups; larger than the rows of a rank too."""
    for kernel, stride, padding, dilation, groups in (
        (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (5, 2, 2, 1, 2), (11, 1, 5, 1, 2), (1, 2, 0, 1, 1), (3, 1, 2, 2, 1),
        (2, 2, 0, 1, 1), (4, 2, 1, 1, 1), (1, 1, 0, 1, 1), ((5, 3), (1, 2), (2, 1), 1, 1),
    ):  # fmt: skip
        layer = nn.Conv2d(2, 4, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups).double()
        compare_network(shards, nn.Sequential(layer), random(2, 2, 4 * shards.size, 7), shard_layers)
    for layer in (
        nn.Conv2d(1, 1, 3),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, 2, padding=1),
    ):
        try:
            RowShardedConv2d(layer, shards)
        except ValueError as error:
            assert "kernel_size" in str(error)
        else:
            raise AssertionError(f"{layer} was converted")


def check_norm(shards: RowShards) -> None:
    """Statistics of all rows; a large mean, where one pass would lose the variance; no affine parameters."""
    x = random(2, 6, 2 * shards.size, 3) + torch.linspace(0, 50, 2 * shards.size, dtype=torch.float64)[:, None]
    for affine in (True, False):
        norm = nn.GroupNorm(3, 6, affine=affine).double()
        for index, parameter in enumerate(norm.parameters()):
            parameter.data = random(6, seed=index)
        compare_network(shards, nn.Sequential(norm), x, shard_layers)
        compare_network(shards, NormSiLU(norm), x, shard_layers)
    for dtype, mean in ((torch.float32, 1e4), (torch.bfloat16, 8.0)):
        large = (x + mean).to(dtype)
        layer = nn.Sequential(nn.GroupNorm(3, 6).to(dtype))
        expected = F.group_norm(large.double(), 3)
        shard_layers(layer, shards)
        error = (layer(shards.take(large)).double() - shards.take(expected)).abs().max()
        assert error < (2e-3 if dtype == torch.float32 else 2e-2), (dtype, error)


def check_dropout(shards: RowShards) -> None:
    """The mask of one rank, in training only, also for rows on another axis."""
    network = nn.Sequential(nn.Conv2d(2, 2, 1).double(), nn.Dropout(0.4))
    compare_network(shards, network, random(2, 2, 3 * shards.size, 5), shard_layers)
    layer, x = RowShardedDropout(nn.Dropout(0.4), shards, dim=1), random(2, 3 * shards.size, 4)
    torch.manual_seed(2)
    own = layer(shards.take(x, 1))
    torch.manual_seed(2)
    equal(own, shards.take(F.dropout(x, 0.4), 1))
    assert torch.equal(layer.eval()(x), x)


def check_simvp(shards: RowShards) -> None:
    """The whole network; odd numbers of rows per rank after downsampling; T' above and below T; both layouts."""
    for kernels, frames_out, rows, channels_last in (((3, 5, 7, 11), 3, 4, True), ((3,), 5, 12, False)):
        config = SimVPConfig(
            hidden_spatial=4, hidden_temporal=8, spatial_blocks=4, temporal_blocks=2, groups=2,
            inception_kernels=kernels, channels_last=channels_last,
        )  # fmt: skip
        torch.manual_seed(1)
        network = SimVP(config, frames_in=4, frames_out=frames_out).double()
        _randomize(network.parameters())
        compare_network(shards, network, random(2, 4, 1, rows * shards.size, 8).sigmoid(), shard_rows)


def _randomize(parameters: Iterable[nn.Parameter]) -> None:
    """Give norms weights and biases that differ between channels."""
    for index, parameter in enumerate(parameters):
        if parameter.ndim == 1:
            parameter.data = 1.0 + 0.3 * random(*parameter.shape, seed=index)


CHECKS = [check_convolutions, check_norm, check_dropout, check_simvp]
