"""SimVP as published by OpenSTL."""

from collections.abc import Mapping
from typing import Any

from simcast_hpc.config import SimVPConfig

from .architecture import ForecasterSpec, PublicArchitecture, Shape, check_integers, check_lists, count_keys

# Defaults of OpenSTL's SimVP_Model with the IncepU translator; its constructor fixes inception kernels and groups.
_SIMVP_DEFAULTS: dict[str, Any] = {
    "hid_S": 16,
    "hid_T": 256,
    "N_S": 4,
    "N_T": 4,
    "spatio_kernel_enc": 3,
    "spatio_kernel_dec": 3,
    "incep_ker": (3, 5, 7, 11),
    "groups": 8,
}


def _simvp_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    in_shape = config.get("in_shape")
    if not isinstance(in_shape, list | tuple) or len(in_shape) != 4:
        raise ValueError(f"in_shape={in_shape!r} of the public SimVP must be [T, C, H, W], such as [13, 1, 384, 384]")
    fields = {field: config.get(field, default) for field, default in _SIMVP_DEFAULTS.items()}
    kernels = fields["incep_ker"]
    fields["incep_ker"] = tuple(kernels) if isinstance(kernels, list | tuple) else kernels
    check_lists(fields, ("incep_ker",))
    fields |= {"in_shape T": in_shape[0], "in_shape C": in_shape[1]}
    check_integers(fields, fields)
    # The public constructor makes pairs of blocks: an odd number gives the network of one block fewer.
    fields["N_S"] -= fields["N_S"] % 2
    if fields["N_S"] == 0:
        raise ValueError("N_S=1 gives an encoder without blocks, on which the public model fails; N_S is at least 2")
    return fields


def _simvp_shape_fields(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "N_S": count_keys("enc.enc.{i}.conv.norm.weight", shapes),
        "N_T": count_keys("hid.enc.{i}.conv1.weight", shapes),
    }
    first = shapes.get("enc.enc.0.conv.conv.weight", ())
    up = shapes.get("dec.dec.0.conv.conv.0.weight", ())
    reduce = shapes.get("hid.enc.0.conv1.weight", ())
    branches = [shapes.get(f"hid.enc.0.layers.{j}.conv.weight", ()) for j in range(len(shapes))]
    branches = [shape for shape in branches if len(shape) == 4]
    if len(first) == 4:
        fields |= {"hid_S": first[0], "in_shape C": first[1], "spatio_kernel_enc": first[2]}
    if len(up) == 4:
        fields["spatio_kernel_dec"] = up[2]
    if len(reduce) == 4 and len(first) == 4 and reduce[1] % first[0] == 0:
        fields["in_shape T"] = reduce[1] // first[0]
    if branches:
        fields |= {"hid_T": branches[0][0], "incep_ker": tuple(shape[2] for shape in branches)}
    if branches and len(reduce) == 4:
        fields["groups"] = reduce[0] // branches[0][1]
    return fields


def _simvp_spec(config: Mapping[str, Any]) -> ForecasterSpec:
    fields = _simvp_fields(config)
    translator = config.get("model_type") or "gSTA"
    if translator.lower() != "incepu":
        raise ValueError(
            f"model_type={translator!r} (the public default is 'gSTA') is not supported; only the translator of "
            "SimCast, 'IncepU', is"
        )
    if fields["spatio_kernel_enc"] != fields["spatio_kernel_dec"]:
        raise ValueError(
            f"spatio_kernel_enc={fields['spatio_kernel_enc']} and spatio_kernel_dec={fields['spatio_kernel_dec']} "
            "must be equal, because encoder and decoder share one kernel size here"
        )
    model = SimVPConfig(
        hidden_spatial=fields["hid_S"],
        hidden_temporal=fields["hid_T"],
        spatial_blocks=fields["N_S"],
        temporal_blocks=fields["N_T"],
        spatial_kernel=fields["spatio_kernel_enc"],
        inception_kernels=fields["incep_ker"],
        groups=fields["groups"],
    )
    frames_in = fields["in_shape T"]
    frames_out = config.get("aft_seq_length", frames_in)
    return ForecasterSpec(model=model, frames_in=frames_in, frames_out=frames_out, channels=fields["in_shape C"])


SIMVP = PublicArchitecture(
    source="SimVP_Model (IncepU) of chengtan9907/OpenSTL, commit c74deb5",
    key_pairs=(
        ("encoder.blocks.{i}.conv.{leaf}", "enc.enc.{i}.conv.conv.{leaf}"),
        ("encoder.blocks.{i}.norm.{leaf}", "enc.enc.{i}.conv.norm.{leaf}"),
        ("translator.encoder.{i}.reduce.{leaf}", "hid.enc.{i}.conv1.{leaf}"),
        ("translator.encoder.{i}.branches.{j}.conv.{leaf}", "hid.enc.{i}.layers.{j}.conv.{leaf}"),
        ("translator.encoder.{i}.branches.{j}.norm.{leaf}", "hid.enc.{i}.layers.{j}.norm.{leaf}"),
        ("translator.decoder.{i}.reduce.{leaf}", "hid.dec.{i}.conv1.{leaf}"),
        ("translator.decoder.{i}.branches.{j}.conv.{leaf}", "hid.dec.{i}.layers.{j}.conv.{leaf}"),
        ("translator.decoder.{i}.branches.{j}.norm.{leaf}", "hid.dec.{i}.layers.{j}.norm.{leaf}"),
        ("decoder.blocks.{i}.expand.{leaf}", "dec.dec.{i}.conv.conv.0.{leaf}"),
        ("decoder.blocks.{i}.conv.{leaf}", "dec.dec.{i}.conv.conv.{leaf}"),
        ("decoder.blocks.{i}.norm.{leaf}", "dec.dec.{i}.conv.norm.{leaf}"),
        ("head.{leaf}", "dec.readout.{leaf}"),
    ),
    to_spec=_simvp_spec,
    released={
        "in_shape": [13, 1, 384, 384],
        "aft_seq_length": 12,
        "hid_S": 64,
        "hid_T": 256,
        "N_S": 2,
        "N_T": 4,
        "model_type": "IncepU",
    },
    config_fields=_simvp_fields,
    shape_fields=_simvp_shape_fields,
)
