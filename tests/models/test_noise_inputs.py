"""Networks with noise channels: members as rows of the batch, with and without a base forecast; invalid noise."""

import pytest
import torch

from simcast_hpc.config import EarthformerConfig, SimVPConfig
from simcast_hpc.models import BaseForecast, build_model, noise_shape
from simcast_hpc.models.advection import extrapolate

SIMVP = {"hidden_spatial": 4, "hidden_temporal": 8, "temporal_blocks": 2, "inception_kernels": (3, 5), "groups": 2}
EARTHFORMER = {
    "width": 8, "heads": 1, "grid": (16, 16),
    "stem": {"widths": (4, 8), "scales": (2, 2), "convolutions": (1, 1)},
}  # fmt: skip


def _config(kind: str, **over) -> SimVPConfig | EarthformerConfig:
    return SimVPConfig(**SIMVP, **over) if kind == "simvp" else EarthformerConfig.model_validate(EARTHFORMER | over)


def _model(kind: str = "simvp", *, frames_in: int = 3, frames_out: int = 4, **over) -> BaseForecast:
    torch.manual_seed(0)
    model = build_model(_config(kind, **over), frames_in=frames_in, frames_out=frames_out).eval()
    assert isinstance(model, BaseForecast)
    return model


@pytest.mark.parametrize("kind", ["simvp", "earthformer"])
@pytest.mark.parametrize("base", ["none", "persistence"])
@pytest.mark.parametrize(("frames_in", "frames_out"), [(3, 4), (4, 2)])
def test_each_member_is_a_function_of_the_frames_and_its_noise(kind, base, frames_in, frames_out):
    model = _model(kind, base=base, noise_channels=2, frames_in=frames_in, frames_out=frames_out)
    torch.nn.init.normal_(next(iter(model.network.get_submodule("head").parameters())), std=0.1)
    shape = noise_shape(_config(kind, noise_channels=2), frames_in=frames_in, frames_out=frames_out, grid=(16, 16))
    assert shape == (4, 2, 16, 16)
    frames, noise = torch.rand(2, frames_in, 1, 16, 16), torch.randn(2, 3, *shape)
    with torch.no_grad():
        members = model(frames, noise)
        assert members.shape == (2, 3, frames_out, 1, 16, 16) and members.dtype == torch.float32
        for sample, member in ((0, 2), (1, 0)):
            single = model(frames[sample : sample + 1], noise[sample : sample + 1, member : member + 1])
            torch.testing.assert_close(single[0, 0], members[sample, member], atol=1e-5, rtol=1e-5)
        assert (members[:, 0] - members[:, 1]).abs().max() > 1e-4
        same = model(frames, noise[:, :1].expand(-1, 3, -1, -1, -1, -1))
    torch.testing.assert_close(same[:, 0], same[:, 2], atol=1e-6, rtol=0)


def test_members_of_an_untrained_network_are_the_base_forecast():
    model = _model(base="extrapolation", noise_channels=1)
    frames = torch.rand(2, 3, 1, 16, 16)
    frames[0, 2, 0, :4] = torch.nan
    valid = ~torch.isnan(frames[:, :, 0])
    base = extrapolate(torch.nan_to_num(frames[:, :, 0]), 4, valid)
    with torch.no_grad():
        members = model(frames, torch.randn(2, 3, 4, 1, 16, 16))
    assert torch.equal(members[:, :, :, 0], base[:, None].expand(-1, 3, -1, -1, -1))


def test_first_training_step_of_equal_members_makes_them_differ():
    """The output layer is zero at first; its gradient is not, although all members are equal."""
    model = _model(base="persistence", noise_channels=2).train()
    frames, noise, target = torch.rand(2, 3, 1, 16, 16), torch.randn(2, 2, 4, 2, 16, 16), torch.rand(2, 4, 1, 16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (model(frames, noise) - target[:, None]).abs().mean().backward()
    optimizer.step()
    members = model(frames, noise)
    assert (members[:, 0] - members[:, 1]).abs().max() > 0


def test_rejects_noise_of_another_shape():
    frames = torch.rand(2, 3, 1, 16, 16)
    model = _model(noise_channels=2)
    with pytest.raises(ValueError, match=r"model\.noise_channels=2 needs noise for each member"):
        model(frames)
    for shape in ((2, 3, 4, 1, 16, 16), (1, 3, 4, 2, 16, 16), (2, 4, 2, 16, 16), (2, 3, 3, 2, 16, 16)):
        with pytest.raises(ValueError, match=r"\[2, M, 4, 2, 16, 16\] is needed"):
            model(frames, torch.randn(shape))
    with pytest.raises(ValueError, match=r"\[2, M, 4, 0, 16, 16\] is needed"):
        _model(base="persistence")(frames, torch.randn(2, 3, 4, 2, 16, 16))
    with pytest.raises(ValueError, match=r"model.noise_channels=2 requires frames of 1 channel, got 3"):
        build_model(_config("simvp", noise_channels=2), frames_in=3, frames_out=4, channels=3)
