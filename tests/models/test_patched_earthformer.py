"""Layers of ``simcast_kernels.modules`` in the public Earthformer's place: golden outputs and a public checkout.

The checkout is optional: ``EARTHFORMER_CHECKOUT=FOLDER`` names the root of a clone of
amazon-science/earth-forecasting-transformer.
"""

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simcast_hpc.models.earthformer import attention
from simcast_hpc.models.published_weights import load_public, to_public
from simcast_kernels import cuboid_layers
from simcast_kernels.cuboid_attention.reference import cuboid_attention_reference, cuboid_cross_attention_reference
from simcast_kernels.layer_norm_linear.reference import layer_norm_linear_reference
from simcast_kernels.modules import CuboidCrossAttention, CuboidSelfAttention, patch_earthformer
from tests.models.test_earthformer_golden import CASES, read_golden

# A last bit of the stem grows a thousandfold in one case; see test_earthformer_golden.
TOLERANCE = 5e-4


def state_of(golden: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    prefix = f"state/{prefix}"
    return {key.removeprefix(prefix): tensor for key, tensor in golden.items() if key.startswith(prefix)}


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


def layer_like(ours: nn.Module, state: dict[str, Tensor], config: dict) -> nn.Module:
    """Return the layer of ``simcast_kernels.modules`` for an attention of the project, with the public weights."""
    width, cuboid = state["norm.weight"].shape[0], ours.public_cuboid
    options = {
        "num_heads": config["num_heads"],
        "padding_type": config["padding_type"],
        "strategy": cuboid.strategy,
        "use_relative_pos": config["use_relative_pos"],
    }
    if isinstance(ours, attention.CuboidSelfAttention):
        layer = CuboidSelfAttention(
            width,
            cuboid_size=cuboid.size,
            shift_size=cuboid.shift,
            use_global_vector="global_vec_norm.weight" in state,
            use_global_self_attn=config["use_global_self_attn"],
            separate_global_qkv=config["separate_global_qkv"],
            **options,
        )
    else:
        layer = CuboidCrossAttention(
            width,
            cuboid_hw=cuboid.size[1:],
            shift_hw=cuboid.shift[1:],
            cross_last_n_frames=config["dec_cross_last_n_frames"],
            max_temporal_relative=config["input_shape"][0] + config["target_shape"][0],
            use_global_vector=config["use_dec_cross_global"] and config["num_global_vectors"] > 0,
            separate_global_qkv="l2g_q_net.weight" in state,
            **options,
        )
    layer.load_state_dict(state)
    return Adapter(layer)


class Adapter(nn.Module):
    """A layer with the interface of the project's attentions."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x, *others, seed):
        result = self.layer(x, *others)
        if isinstance(self.layer, CuboidCrossAttention):
            return result
        return result if isinstance(result, tuple) else (result, None)


@pytest.mark.parametrize("case", CASES)
def test_layers_reproduce_the_golden_output(case, monkeypatch):
    for kind in (attention.CuboidSelfAttention, attention.CuboidCrossAttention):

        def init(self, *args, original=kind.__init__, cuboid, **options):
            original(self, *args, cuboid=cuboid, **options)
            self.public_cuboid = cuboid

        monkeypatch.setattr(kind, "__init__", init)
    config, golden, _ = read_golden(case)
    model = load_public("earthformer", config, state_of(golden)).eval()
    kinds = (attention.CuboidSelfAttention, attention.CuboidCrossAttention)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    assert names
    for name in names:
        prefix = to_public("earthformer", f"{name}.norm.weight").removesuffix("norm.weight")
        layer = layer_like(model.get_submodule(name), state_of(golden, prefix), config)
        model.set_submodule(name, layer.eval())
    with torch.no_grad():
        output = model(golden["input"].permute(0, 1, 4, 2, 3).contiguous())
    assert relative_error(output, golden["output"].permute(0, 1, 4, 2, 3)) < TOLERANCE


@pytest.fixture
def public_model():
    """The model class of a public checkout."""
    if not (root := os.environ.get("EARTHFORMER_CHECKOUT")):
        pytest.skip("no public checkout; set EARTHFORMER_CHECKOUT to the root of earth-forecasting-transformer")
    sys.path.insert(0, str(Path(root) / "src"))
    try:
        yield importlib.import_module("earthformer.cuboid_transformer.cuboid_transformer").CuboidTransformerModel
    finally:
        sys.path.pop(0)


def forward_and_gradients(model, golden) -> dict[str, Tensor]:
    model.zero_grad()
    frames = golden["input"].double().requires_grad_()
    output = model(frames)
    loss = (output - golden["target"]).square().mean()
    loss.backward()
    norms = {f"grad_norm/{name}": p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "input_grad": frames.grad, "loss": loss.detach(), **norms}


@pytest.mark.parametrize("case", CASES)
def test_patched_public_model_equals_the_public_model(case, public_model, monkeypatch):
    """In float64, by the reference implementations: one case amplifies float32 rounding a thousandfold."""
    monkeypatch.setattr(cuboid_layers, "cuboid_attention", cuboid_attention_reference)
    monkeypatch.setattr(cuboid_layers, "cuboid_cross_attention", cuboid_cross_attention_reference)
    monkeypatch.setattr(cuboid_layers, "layer_norm_linear", layer_norm_linear_reference)
    config, golden, _ = read_golden(case)
    with contextlib.redirect_stdout(io.StringIO()):
        model = public_model(**config)
    model.load_state_dict(state_of(golden))
    model.eval().double()
    before, parameters = forward_and_gradients(model, golden), dict(model.named_parameters())
    assert patch_earthformer(model) > 0 and patch_earthformer(model) == 0
    assert not [module for module in model.modules() if type(module).__name__.endswith("AttentionLayer")]
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model.state_dict().keys() == state_of(golden).keys() and not model.training
    after = forward_and_gradients(model, golden)
    assert before.keys() <= after.keys() and before.keys() >= {key for key in golden if key.startswith("grad_norm/")}
    assert not any(after[key] for key in after.keys() - before.keys()), "unused parameters get zero gradients"
    for key, want in before.items():
        error = (after[key] - want).abs().max() / want.abs().max().clamp_min(1e-6)
        assert error < 1e-8, f"{key}: relative difference {error:.1e}"
