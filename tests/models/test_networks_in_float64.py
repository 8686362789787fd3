"""Earthformer and SimVP cast to float64 compute in float64: outputs, and gradients equal to finite differences."""

import pytest
import torch
from torch.func import functional_call

from simcast_hpc.config import ConvStem, EarthformerConfig, GlobalVectorConfig, ModelConfig, SimVPConfig, StackConvStem
from simcast_hpc.models import build_model

STACK = StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
EARTHFORMER = EarthformerConfig(
    grid=(12, 8), width=8, heads=2, encoder_depth=(1, 1), decoder_depth=(1, 1), stem=STACK, activation="gelu"
)
SHARED = GlobalVectorConfig(count=3, separate_projections=False, in_decoder=True, in_cross_attention=True)
CASES: dict[str, ModelConfig] = {
    "axial": EARTHFORMER,
    "shifted, masked padding": EARTHFORMER.model_copy(
        update={"encoder_pattern": "video_swin_2x4", "decoder_pattern": "video_swin_2x4", "padding": "ignore"}
    ),
    "resampled padding": EARTHFORMER.model_copy(
        update={"encoder_pattern": "spatial_lg_4", "cross_pattern": "cross_4x4_heter", "padding": "nearest"}
    ),
    "shared projections": EARTHFORMER.model_copy(update={"global_vectors": SHARED, "gated": True}),
    "convolutional stem": EARTHFORMER.model_copy(
        update={"stem": ConvStem(scale=2, convolutions=1, head_convolutions=1), "width": 16}
    ),
    "simvp": SimVPConfig(hidden_spatial=4, hidden_temporal=8, temporal_blocks=2, groups=2),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_gradients_equal_finite_differences(config):
    torch.manual_seed(1)
    model = build_model(config, frames_in=3, frames_out=2).eval()
    frames = torch.rand(1, 3, 1, 12, 8)
    with torch.no_grad():
        single = model(frames).double()
    model.double()
    tensors = {"": frames.double(), **{name: parameter.detach() for name, parameter in model.named_parameters()}}
    sizes = [tensor.numel() for tensor in tensors.values()]

    def forecast(numbers: torch.Tensor) -> torch.Tensor:
        parts = zip(numbers.split(sizes), tensors.items(), strict=True)
        values = {name: part.view(tensor.shape) for part, (name, tensor) in parts}
        given = values.pop("")
        return functional_call(model, values, (given,))

    # One vector, so that one pair of passes checks the frames and all weights along a random direction.
    numbers = torch.cat([tensor.flatten() for tensor in tensors.values()]).requires_grad_()
    double = forecast(numbers).detach()
    assert double.dtype == torch.float64
    assert 0 < (single - double).abs().max() / double.abs().max() < 1e-5, "float32 differs by its rounding only"
    assert torch.autograd.gradcheck(forecast, numbers, fast_mode=True)
