"""Published weights: outputs and keys equal the public implementation; mismatches are rejected."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from simcast_hpc.config import SimVPConfig
from simcast_hpc.models import build_model
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
SMALL: dict[str, Any] = {
    "in_shape": [5, 1, 16, 16],
    "hid_S": 8,
    "hid_T": 16,
    "N_S": 2,
    "N_T": 2,
    "model_type": "IncepU",
}


def golden_files():
    folder = shared("golden/simvp")
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no golden tensors in {folder}"
    return files


def read_golden(path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


def public_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {key: torch.randn(shape, generator=generator) for key, shape in public_keys("simvp", config).items()}


def test_simvp_equals_golden():
    for path in golden_files():
        config, golden = read_golden(path)
        model = load_public("simvp", config, part(golden, "state/")).eval()
        frames = golden["input"].clone().requires_grad_()
        output = model(frames)
        loss = (output - golden["target"]).square().mean()
        loss.backward()

        assert relative_error(output.detach(), golden["output"]) < TOLERANCE
        assert relative_error(loss.detach(), golden["loss"]) < TOLERANCE
        assert frames.grad is not None
        assert relative_error(frames.grad, golden["input_grad"]) < TOLERANCE
        norms = {to_public("simvp", name): p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
        expected = part(golden, "grad_norm/")
        assert norms.keys() == expected.keys()
        errors = {key: relative_error(norms[key], expected[key]) for key in expected}
        assert max(errors.values()) < TOLERANCE, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("frames_out", [2, 5, 12])
def test_simvp_golden_at_other_horizons(frames_out):
    for path in golden_files():
        config, golden = read_golden(path)
        one_block = load_public("simvp", config, part(golden, "state/")).eval()
        model = load_public("simvp", {**config, "aft_seq_length": frames_out}, part(golden, "state/")).eval()
        with torch.no_grad():
            output = model(golden["input"])
            frames = min(frames_out, 5)
            assert relative_error(output[:, :frames], golden["output"][:, :frames]) < TOLERANCE
            if frames_out > 5:
                second = one_block(golden["output"])
                third = one_block(second)
                assert relative_error(output, torch.cat([golden["output"], second, third[:, :2]], dim=1)) < TOLERANCE


def test_sevir_keys_equal_published_keys():
    published = json.loads(shared("golden/simvp/sevir_state_dict.json").read_text())
    keys = public_keys("simvp", published["config"])
    assert keys == {key: tuple(shape) for key, shape in published["state_dict"].items()}
    assert sum(torch.Size(shape).numel() for shape in keys.values()) == published["parameters"] == 9_254_209


def test_released_configuration_has_sevir_size():
    assert public_keys("simvp", released_config("simvp")) == public_keys(
        "simvp", {"in_shape": [13, 1, 384, 384], "hid_S": 64, "hid_T": 256, "N_S": 2, "N_T": 4, "model_type": "IncepU"}
    )
    assert forecaster_spec("simvp", released_config("simvp")).frames_out == 12


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_rejects_integer_weights(dtype):
    weights = public_weights(SMALL)
    weights["dec.readout.weight"] = weights["dec.readout.weight"].to(dtype)
    with pytest.raises(TypeError, match=rf"dec\.readout\.weight of the state dict has dtype {dtype}; weights must"):
        load_public("simvp", SMALL, weights)


def test_default_configuration_has_sevir_size():
    with torch.device("meta"):
        model = build_model(SimVPConfig(), frames_in=13, frames_out=12)
    assert sum(p.numel() for p in model.parameters()) == 9_254_209


def test_keys_translate_in_both_directions():
    with torch.device("meta"):
        own = list(build_model(SimVPConfig(spatial_blocks=4), frames_in=13, frames_out=12).state_dict())
    public = [to_public("simvp", key) for key in own]
    assert len(set(public)) == len(own)
    assert [from_public("simvp", key) for key in public] == own


def test_weights_are_copied():
    weights = public_weights(SMALL)
    model = load_public("simvp", SMALL, weights)
    weights["dec.readout.weight"].zero_()
    assert model.get_parameter("head.weight").abs().max() > 0


def test_bf16_weights_load_as_fp32():
    weights = {key: tensor.bfloat16() for key, tensor in public_weights(SMALL).items()}
    model = load_public("simvp", SMALL, weights)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.get_parameter("head.weight"), weights["dec.readout.weight"].float())


def test_ignores_fields_of_public_trainer():
    config = {**SMALL, "method": "SimVP", "lr": 5e-3, "drop_path": 0.1, "batch_size": 8}
    assert public_keys("simvp", config) == public_keys("simvp", SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hid_S": 16}, "hid_S=16 in the configuration but 8 in the state dict"),
        ({"hid_T": 32}, "hid_T=32 in the configuration but 16 in the state dict"),
        ({"N_S": 4}, "N_S=4 in the configuration but 2 in the state dict"),
        ({"N_T": 3}, "N_T=3 in the configuration but 2 in the state dict"),
        ({"in_shape": [6, 1, 16, 16]}, "in_shape T=6 in the configuration but 5 in the state dict"),
        ({"in_shape": [5, 2, 16, 16]}, "in_shape C=2 in the configuration but 1 in the state dict"),
        ({"spatio_kernel_enc": 5, "spatio_kernel_dec": 5}, "spatio_kernel_enc=5 in the configuration but 3 in"),
        ({"incep_ker": [3, 5]}, r"incep_ker=\(3, 5\) in the configuration but \(3, 5, 7, 11\) in the state dict"),
        ({"groups": 4}, "groups=4 in the configuration but 8 in the state dict"),
    ],
)
def test_mismatch_names_exactly_the_fields_that_explain_it(change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_public("simvp", {**SMALL, **change}, public_weights(SMALL))
    lines = [line for line in str(error.value).splitlines() if " in the configuration but " in line]
    assert {line.split("=")[0].split()[0] for line in lines} == set(change)


def test_mismatch_lists_missing_and_unexpected_keys_and_shapes():
    weights = public_weights(SMALL)
    weights["dec.out.weight"] = weights.pop("dec.readout.weight")
    weights["dec.readout.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        load_public("simvp", SMALL, weights)
    text = str(error.value)
    assert "1 missing, first dec.readout.weight [1, 8, 1, 1]" in text
    assert "1 unexpected, first dec.out.weight [1, 8, 1, 1]" in text
    assert "first dec.readout.bias: [1] in the configuration, [3] in the state dict" in text
    assert "no configuration field explains this" in text


def test_mismatch_names_prefix_of_training_wrapper():
    weights = {f"model.{key}": tensor for key, tensor in public_weights(SMALL).items()}
    with pytest.raises(
        ValueError, match=r"every key starts with 'model\.', which a training wrapper added; remove this"
    ):
        load_public("simvp", SMALL, weights)


def test_rejects_empty_state_dict():
    with pytest.raises(ValueError, match="missing, first"):
        load_public("simvp", SMALL, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SMALL, "model_type": "gSTA"}, "model_type='gSTA'"),
        ({key: value for key, value in SMALL.items() if key != "model_type"}, "the public default is 'gSTA'"),
        ({key: value for key, value in SMALL.items() if key != "in_shape"}, r"in_shape=None .* must be \[T, C, H, W\]"),
        ({**SMALL, "spatio_kernel_enc": 5}, "spatio_kernel_enc=5 and spatio_kernel_dec=3 must be equal"),
        ({**SMALL, "N_S": 1}, "N_S=1 gives an encoder without blocks"),
        ({**SMALL, "N_T": "4"}, "N_T='4' must be an integer of at least 1"),
        ({**SMALL, "in_shape": 5}, "in_shape=5 of the public SimVP must be"),
        ({**SMALL, "incep_ker": 3}, "incep_ker=3 must be a list of at least one entry"),
        ({**SMALL, "incep_ker": [3, 0]}, r"incep_ker=\[3, 0\] must be integers of at least 1"),
    ],
)
def test_rejects_unsupported_configuration(config, message):
    with pytest.raises(ValueError, match=message):
        public_keys("simvp", config)


def test_odd_number_of_spatial_blocks_is_one_fewer_as_in_the_public_constructor():
    assert public_keys("simvp", {**SMALL, "N_S": 3}) == public_keys("simvp", SMALL)
    load_public("simvp", {**SMALL, "N_S": 3}, public_weights(SMALL))


def test_rejects_unknown_names():
    with pytest.raises(KeyError, match="'simvq'; choose autoencoder, casformer, earthformer, simvp"):
        load_public("simvq", SMALL, {})
    with pytest.raises(KeyError, match=r"'hid\.enc\.0\.block\.norm1\.weight' is not a key of the public simvp"):
        from_public("simvp", "hid.enc.0.block.norm1.weight")
