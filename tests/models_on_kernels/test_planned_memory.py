"""Memory planned on the meta device is that of the kernels: the same bytes are saved for the backward pass."""

import pytest

pytest.importorskip("simcast_hpc")

import torch

from simcast_hpc.config import EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.models import group_norm_silu, simvp
from simcast_hpc.planning.cuda_operators import cuda_operators
from simcast_hpc.planning.flops import Network, forecaster, saved_bytes
from simcast_kernels.dispatch import VARIABLE

STEM = StackConvStem(widths=(4, 16), scales=(2, 1), convolutions=(1, 1))
SIMVP = SimVPConfig(hidden_spatial=8, hidden_temporal=16, temporal_blocks=2, groups=2, inception_kernels=(3, 5))
EARTHFORMER = EarthformerConfig(
    grid=(8, 8), width=16, heads=1, stem=STEM, attention_dropout=0.0, projection_dropout=0.0, feed_forward_dropout=0.0
)


def network(name: str) -> Network:
    config = SIMVP if name == "simvp" else EARTHFORMER
    return forecaster(config, frames_in=2, frames_out=2, grid=(8, 8), dtype=torch.float32)


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["simvp", "earthformer"])
def test_planned_saved_bytes_equal_those_with_the_kernels(name, kernel_device, monkeypatch):
    one = network(name)
    planned = saved_bytes(one.on_meta(None, torch.float32), *one.inputs(1))
    for module in (group_norm_silu, simvp):  # a CPU takes the paths of CUDA
        monkeypatch.setattr(module, "follows_cuda", lambda tensor: True)
    model = one.build(None).train().to(kernel_device)
    assert planned == saved_bytes(model, *(torch.rand_like(x, device=kernel_device) for x in one.inputs(1)))


def test_planned_memory_is_that_of_the_operators_in_use(monkeypatch):
    """The kernel of group norm and activation saves one tensor less per branch of SimVP."""
    one, planned = network("simvp"), {}
    for implementation in ("", "reference"):
        monkeypatch.setenv(VARIABLE, implementation)
        planned[implementation] = saved_bytes(one.on_meta(None, torch.float32), *one.inputs(1))
    assert planned[""] < 0.95 * planned["reference"]


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_saves_a_byte_per_element(inplace):
    x = torch.empty(1000, device="meta", requires_grad=True)
    saved = saved_bytes(torch.nn.Dropout(0.1, inplace=inplace), x if not inplace else x * 1)
    assert saved == (4000 if inplace else 1000)
    with cuda_operators():
        assert torch.nn.Dropout(0.1)(torch.ones(1000)).unique().numel() == 2, "tensors with data are not affected"
