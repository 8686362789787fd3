"""Autoencoder and CasFormer compared with the released CasCast: outputs, gradients, samples, keys."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from simcast_hpc.config import AutoencoderConfig, CasFormerConfig
from simcast_hpc.diffusion import add_noise, make_schedule, plan_steps, sample, spaced_timesteps
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.models.published_weights import (
    forecaster_spec,
    from_public,
    load_public,
    public_keys,
    released_config,
    to_public,
)
from tests.shared_data import shared

TOLERANCE = 1e-4
TOLERANCE_AFTER_20_STEPS = 1e-3


def read_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(shared(f"golden/cascast/{name}_small.safetensors"), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, {key: json.loads(value) for key, value in file.metadata().items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def load(name: str) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    golden, metadata = read_golden(name)
    return load_public(name, metadata["config"], part(golden, "state/")).eval(), golden, metadata


def error(got: Tensor, want: Tensor) -> float:
    """Return the maximum difference divided by the maximum of the golden."""
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


def test_autoencoder_equals_golden():
    model, golden, _ = load("autoencoder")
    with torch.no_grad():
        reconstruction, posterior = model(golden["input"])
    got = {
        "posterior_mean": posterior.mean,
        "posterior_logvar": posterior.log_variance,
        "latent": posterior.mean,
        "reconstruction": reconstruction,
    }
    assert {key: error(value, golden[key]) for key, value in got.items() if error(value, golden[key]) > TOLERANCE} == {}


def test_casformer_equals_golden():
    model, golden, _ = load("casformer")
    noisy = golden["noisy"].clone().requires_grad_()
    output = model(noisy, golden["timesteps"], golden["condition"])
    loss = (output - golden["noise"]).square().mean()
    loss.backward()
    got = {"output": output.detach(), "loss": loss.detach(), "input_grad": noisy.grad}
    wrong = {key: error(value, golden[key]) for key, value in got.items() if error(value, golden[key]) > TOLERANCE}
    norms = part(golden, "grad_norm/")
    gradients = {to_public("casformer", name): p.grad.norm() for name, p in model.named_parameters()}
    assert gradients.keys() == norms.keys()
    wrong |= {key: error(gradients[key], norms[key]) for key in norms if error(gradients[key], norms[key]) > TOLERANCE}
    assert wrong == {}


def test_forward_process_equals_golden():
    _, golden, metadata = load("casformer")
    sampler = metadata["sampler"]
    schedule = make_schedule(
        sampler["schedule"],
        timesteps=sampler["train_timesteps"],
        beta_start=sampler["beta_start"],
        beta_end=sampler["beta_end"],
    )
    noisy = add_noise(schedule, golden["clean"], golden["noise"], golden["timesteps"])
    assert error(noisy, golden["noisy"]) < TOLERANCE


def test_guided_ddim_equals_golden():
    model, golden, metadata = load("casformer")
    settings = metadata["sampler"]
    schedule = make_schedule(settings["schedule"], beta_start=settings["beta_start"], beta_end=settings["beta_end"])
    timesteps = spaced_timesteps(schedule, settings["steps"], settings["timestep_spacing"])
    assert timesteps == settings["timesteps"]
    steps = plan_steps("ddim", schedule, timesteps, prediction=settings["prediction"], eta=settings["eta"])
    condition, latents = golden["condition"], {}
    with torch.no_grad():
        result = sample(
            steps,
            lambda x, t: model(x, t, condition),
            golden["sample/initial"],
            unconditional=lambda x, t: model(x, t, torch.zeros_like(condition)),
            guidance=settings["guidance"],
            clip=settings["clip_sample_range"],
            after_step=lambda number, x: latents.update({number: x}),
        )
    assert error(latents[0], golden["sample/after_step_0"]) < TOLERANCE
    assert error(latents[1], golden["sample/after_step_1"]) < TOLERANCE
    assert error(result.latents, golden["sample/final"]) < TOLERANCE_AFTER_20_STEPS
    assert result.clip_rate.item() > 0, "a random network reaches the clip"


def published(name: str) -> dict[str, Any]:
    return json.loads(shared("golden/cascast/sevir_state_dicts.json").read_text())[name]


@pytest.mark.parametrize(("name", "parameters"), [("casformer", 309_246_016), ("autoencoder", 83_649_253)])
def test_full_size_keys_equal_published_keys(name, parameters):
    full = published(name)
    keys = public_keys(name, full.get("config", released_config(name)))
    assert keys == public_keys(name, released_config(name))
    assert keys == {key: tuple(shape) for key, shape in full["state_dict"].items()}
    weights = [torch.Size(shape) for key, shape in keys.items() if key != "model.pos_embed"]
    assert sum(shape.numel() for shape in weights) == parameters == full["parameters"]


def shapes(model: nn.Module, name: str) -> dict[str, tuple[int, ...]]:
    return {to_public(name, key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def test_default_configurations_are_the_published_ones():
    with torch.device("meta"):
        models = {
            "autoencoder": Autoencoder(AutoencoderConfig()),
            "casformer": CasFormer(CasFormerConfig(), frames=12, channels=4),
        }
    for name, model in models.items():
        expected = {key: tuple(shape) for key, shape in published(name)["state_dict"].items()}
        expected.pop("model.pos_embed", None)
        assert shapes(model, name) == expected
        assert [from_public(name, key) for key in shapes(model, name)] == list(model.state_dict())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("casformer", {"enc_depth": 3}, "enc_depth=3 in the configuration but 2"),
        ("casformer", {"hidden_size": 128}, "hidden_size=128 in the configuration but 64"),
        ("casformer", {"input_size": 32}, "input_size=32 in the configuration but 16"),
        ("casformer", {"learn_sigma": True}, "learn_sigma"),
        ("casformer", {"out_channels": 12}, "out_channels=12"),
        ("autoencoder", {"layers_per_block": 1}, "layers_per_block=1 in the configuration but 2"),
        ("autoencoder", {"block_out_channels": [8, 16, 32, 64]}, "block_out_channels"),
        ("autoencoder", {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "AttnUpDecoderBlock2D"),
        ("autoencoder", {"out_channels": 3}, "out_channels=3"),
    ],
)
def test_rejects_mismatching_configuration(name, change, message):
    golden, metadata = read_golden(name)
    with pytest.raises(ValueError, match=message):
        load_public(name, {**metadata["config"], **change}, part(golden, "state/"))


def test_component_of_generative_model_has_no_forecaster_spec():
    with pytest.raises(ValueError, match="'casformer' is not a forecasting model"):
        forecaster_spec("casformer", released_config("casformer"))


def test_rejects_different_position_table():
    golden, metadata = read_golden("casformer")
    state = part(golden, "state/")
    with pytest.raises(ValueError, match=r"model\.pos_embed of the state dict differs"):
        load_public("casformer", metadata["config"], state | {"model.pos_embed": state["model.pos_embed"] + 0.1})
