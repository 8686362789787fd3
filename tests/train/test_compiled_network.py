"""``engine.compile``: losses and gradients of compiled networks equal the eager ones, without graph breaks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from simcast_hpc.config import (
    AutoencoderConfig,
    CasFormerConfig,
    ConfigError,
    EarthformerConfig,
    SimVPConfig,
    from_mapping,
)
from simcast_hpc.models import build_model
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.train.adversarial import AutoencoderModule
from simcast_hpc.train.compiled_network import compile_network
from simcast_hpc.train.stages.diffusion_stage import DiffusionModule
from tests.archives import tiny_config
from tests.generative_runs import AUTOENCODER, DENOISER
from tests.train.conftest import SMALL_EARTHFORMER

FRAMES = torch.linspace(0, 1, 2 * 3 * 64).reshape(2, 3, 1, 8, 8)
SIMVP = {"hidden_spatial": 4, "hidden_temporal": 8, "temporal_blocks": 2, "inception_kernels": [3, 5], "groups": 2}


class SumOfForecast(nn.Module):
    def __init__(self, config: SimVPConfig | EarthformerConfig, *, frames_out: int = 2):
        super().__init__()
        self.model = build_model(config, frames_in=3, frames_out=frames_out)

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames).square().mean()


class SumOfOutputs(AutoencoderModule):
    def forward(self, frames: Tensor, noise: Tensor) -> Tensor:
        return torch.stack([output.float().square().mean() for output in super().forward(frames, noise)]).sum()


def simvp() -> tuple[nn.Module, tuple[Tensor, ...]]:
    # aot_eager of torch 2.13 computes wrong gradients of a channels-last rollout; inductor does not.
    return SumOfForecast(from_mapping(SimVPConfig, SIMVP | {"channels_last": False}), frames_out=5), (FRAMES,)


def correction() -> tuple[nn.Module, tuple[Tensor, ...]]:
    module = SumOfForecast(from_mapping(SimVPConfig, SIMVP | {"base": "extrapolation"}))
    nn.init.constant_(module.get_parameter("model.network.head.weight"), 0.5)  # zero at the start: no gradients
    return module, (FRAMES,)


def earthformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    options = {"grid": [8, 8], "checkpoint_levels": [0]}
    config = from_mapping(EarthformerConfig, SMALL_EARTHFORMER | options)
    return SumOfForecast(config), (FRAMES,)


def casformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    latents = torch.linspace(-1, 1, 2 * 2 * 4 * 16).reshape(2, 2, 4, 4, 4)
    model = CasFormer(from_mapping(CasFormerConfig, DENOISER), frames=2, channels=4)
    return DiffusionModule(model), (latents, torch.tensor([3, 900]), latents.flip(0), latents * 0.5)


def autoencoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = Autoencoder(from_mapping(AutoencoderConfig, AUTOENCODER["model"]))
    frames = FRAMES[:, 0]
    return SumOfOutputs(model), (frames, torch.zeros(2, 2, 4, 4))


NETWORKS = [simvp, correction, pytest.param(earthformer, marks=pytest.mark.slow), casformer, autoencoder]


def losses_and_gradients(module: nn.Module, sample: tuple[Tensor, ...]) -> tuple[list[float], list[Tensor]]:
    losses = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)  # of dropout
        loss = module(*sample)
        loss.backward()
        losses.append(loss.item())
    return losses, [p.grad for p in module.parameters() if p.grad is not None]


@pytest.fixture(autouse=True)
def reset_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("network", NETWORKS)
def test_compiled_networks_equal_eager_ones(network: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]):
    torch.manual_seed(0)
    module, sample = network()
    names = list(module.state_dict())
    expected, grads = losses_and_gradients(module, sample)
    module.zero_grad()
    counter = CompileCounterWithBackend("aot_eager")
    compile_network(module, backend=counter)
    losses, compiled_grads = losses_and_gradients(module, sample)
    assert list(module.state_dict()) == names
    assert 1 <= counter.frame_count <= 2, "one graph per compilation, and one more if the seed of dropout varies"
    assert losses == pytest.approx(expected, rel=1e-6)
    for found, want in zip(compiled_grads, grads, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_rollout_in_channels_last_equals_the_eager_one_with_inductor():
    torch.manual_seed(0)
    module = SumOfForecast(from_mapping(SimVPConfig, SIMVP), frames_out=5)
    expected, grads = losses_and_gradients(module, (FRAMES,))
    module.zero_grad()
    compile_network(module)
    losses, compiled_grads = losses_and_gradients(module, (FRAMES,))
    assert losses == pytest.approx(expected, rel=1e-5)
    for found, want in zip(compiled_grads, grads, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"compile": True, "zero_stage": 3}, r"engine\.compile=true requires engine\.zero_stage=0, 1 or 2 \(got 3\)"),
        ({"cuda_graph": True, "zero_stage": 3}, r"engine\.cuda_graph=true requires engine\.zero_stage=0, 1 or 2"),
        (
            {"cuda_graph": True, "zero_stage": 2, "offload": "optimizer"},
            r"engine\.cuda_graph=true requires engine\.offload=none \(got optimizer\)",
        ),
    ],
)
def test_layouts_that_cannot_be_compiled_or_captured_are_rejected(tmp_path, engine, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, engine=engine | {"precision": "fp32"})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": SMALL_EARTHFORMER}, r"engine\.cuda_graph=true is invalid with model\.attention_dropout=0\.1"),
        (
            {"model": SMALL_EARTHFORMER | {"attention_dropout": 0.0, "checkpoint_levels": [0]}},
            r"invalid with model\.checkpoint_levels=\[0\]",
        ),
        ({"stage": "autoencoder"}, r"engine\.cuda_graph=true is invalid in stage autoencoder"),
        (
            {"stage": "diffusion", "diffusion": {"casformer": {"checkpoint": True}}},
            r"invalid with diffusion\.casformer\.checkpoint=true",
        ),
    ],
)
def test_networks_that_cannot_be_captured_are_rejected(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, engine={"precision": "fp32", "cuda_graph": True}, **sections)
