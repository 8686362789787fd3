"""Published weights in: a public project's configuration and key names to one of our models, and back.

Each architecture is one ``PublicArchitecture``: a table of names, a reader of the public configuration, and a reader
of a state dict's shapes that tells which field of the configuration does not agree with them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simcast_hpc.config import SimVPConfig

from . import build_model

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PublicArchitecture:
    """How one published architecture becomes ours.

    Attributes:
        source: the public project, commit and class whose names these are.
        names: pairs (ours, theirs) of key templates. ``{i}`` and ``{j}`` stand for block numbers, ``{leaf}`` for the
            last part of a key (``weight``, ``bias``); every key matches exactly one template of its side.
        build: from a public configuration to our model, freshly initialised.
        stated: the fields of a public configuration that shapes depend on, defaults filled in.
        measured: the same fields as far as the shapes of a state dict show them.
    """

    source: str
    names: tuple[tuple[str, str], ...]
    build: Callable[[Mapping[str, Any]], nn.Module]
    stated: Callable[[Mapping[str, Any]], dict[str, Any]]
    measured: Callable[[Mapping[str, Shape]], dict[str, Any]]


def load_public(name: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our model of a public configuration and give it published weights.

    Args:
        name: the architecture: ``simvp``.
        config: the public project's own configuration. Fields that do not shape the network (learning rate, drop
            path where the translator has none) are ignored, as the public constructor ignores them.
        state_dict: tensors under the public project's own keys; copied, any floating dtype.

    Returns:
        Our model on the CPU, fp32, in training mode.

    Raises:
        KeyError: the architecture is unknown.
        ValueError: the configuration is not one that we build, or the state dict does not fit it. The message names
            the first missing and unexpected keys, the shapes, and the field that would explain them.
    """
    architecture = _architecture(name)
    expected = public_keys(name, config)
    _refuse_misfit(architecture, config, expected, state_dict)
    model = architecture.build(config)
    model.load_state_dict({from_public(name, key): tensor for key, tensor in state_dict.items()})
    return model


def public_keys(name: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the public keys and shapes that ``config`` asks for, without allocating a weight.

    Raises:
        KeyError, ValueError: as :func:`load_public`, for the architecture and the configuration.
    """
    architecture = _architecture(name)
    with torch.device("meta"):
        model = architecture.build(config)
    return {to_public(name, key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def to_public(name: str, key: str) -> str:
    """Return the public project's name of our state-dict key.

    Raises:
        KeyError: the architecture is unknown, or has no such key of ours.
    """
    return _translated(key, _architecture(name).names, where=f"our {name}")


def from_public(name: str, key: str) -> str:
    """Return our name of a public project's state-dict key.

    Raises:
        KeyError: the architecture is unknown, or its public form has no such key.
    """
    pairs = [(theirs, ours) for ours, theirs in _architecture(name).names]
    return _translated(key, pairs, where=f"the public {name}")


def _architecture(name: str) -> PublicArchitecture:
    if name not in _ARCHITECTURES:
        raise KeyError(f"no published architecture {name!r}; known are {', '.join(sorted(_ARCHITECTURES))}")
    return _ARCHITECTURES[name]


def _translated(key: str, pairs: Iterable[tuple[str, str]], *, where: str) -> str:
    for template, wanted in pairs:
        found = _pattern(template).fullmatch(key)
        if found:
            return wanted.format(**found.groupdict())
    raise KeyError(f"{key!r} is not a key of {where}")


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{leaf\}", r"(?P<leaf>[a-z_]+)")
    return re.compile(re.sub(r"\\\{([a-z])\\\}", r"(?P<\1>[0-9]+)", escaped))


def _refuse_misfit(
    architecture: PublicArchitecture,
    config: Mapping[str, Any],
    expected: Mapping[str, Shape],
    state_dict: Mapping[str, Tensor],
) -> None:
    given = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    misshapen = [key for key in expected if key in given and given[key] != expected[key]]
    if not (missing or unexpected or misshapen):
        return
    lines = [f"the state dict does not fit this configuration of {architecture.source}:"]
    if missing:
        lines.append(f"  {len(missing)} missing, first {missing[0]} {list(expected[missing[0]])}")
    if unexpected:
        lines.append(f"  {len(unexpected)} unexpected, first {unexpected[0]} {list(given[unexpected[0]])}")
    if misshapen:
        key = misshapen[0]
        lines.append(
            f"  {len(misshapen)} of another shape, first {key}: the configuration gives {list(expected[key])}, "
            f"the state dict has {list(given[key])}"
        )
    lines += [f"  {line}" for line in _explanations(architecture, config, expected, given)]
    raise ValueError("\n".join(lines))


def _explanations(
    architecture: PublicArchitecture,
    config: Mapping[str, Any],
    expected: Mapping[str, Shape],
    given: Mapping[str, Shape],
) -> list[str]:
    prefix = _shared_prefix(expected, given)
    if prefix:
        return [f"every key begins with {prefix!r}, which a training wrapper adds: remove it"]
    stated, measured = architecture.stated(config), architecture.measured(given)
    differing = [
        f"{field}={stated[field]!r} in the configuration, {value!r} by the shapes of the state dict"
        for field, value in measured.items()
        if stated[field] != value
    ]
    return differing or ["no field of the configuration explains this: the file may be cut short or of another model"]


def _shared_prefix(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> str:
    """Return the prefix that turns every given key into an expected one, or the empty string."""
    first = next(iter(expected))
    for key in given:
        if key != first and key.endswith(first):
            prefix = key.removesuffix(first)
            if all(other.startswith(prefix) and other.removeprefix(prefix) in expected for other in given):
                return prefix
    return ""


# OpenSTL's SimVP_Model with its IncepU translator. Its constructor fixes the inception kernels and the groups.
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


def _simvp_stated(config: Mapping[str, Any]) -> dict[str, Any]:
    in_shape = config.get("in_shape")
    if in_shape is None or len(in_shape) != 4:
        raise ValueError(f"in_shape={in_shape!r} of the public SimVP must be [T, C, H, W], such as [13, 1, 384, 384]")
    stated = {field: config.get(field, default) for field, default in _SIMVP_DEFAULTS.items()}
    stated["incep_ker"] = tuple(stated["incep_ker"])
    return {"in_shape T": in_shape[0], "in_shape C": in_shape[1], **stated}


def _simvp_measured(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    def blocks(template: str) -> int:
        pattern = _pattern(template)
        return sum(1 for key in shapes if pattern.fullmatch(key))

    measured: dict[str, Any] = {
        "N_S": blocks("enc.enc.{i}.conv.norm.weight"),
        "N_T": blocks("hid.enc.{i}.conv1.weight"),
    }
    first = shapes.get("enc.enc.0.conv.conv.weight", ())
    up = shapes.get("dec.dec.0.conv.conv.0.weight", ())
    reduce = shapes.get("hid.enc.0.conv1.weight", ())
    branches = [shapes.get(f"hid.enc.0.layers.{j}.conv.weight", ()) for j in range(len(shapes))]
    branches = [shape for shape in branches if len(shape) == 4]
    if len(first) == 4:
        measured |= {"hid_S": first[0], "in_shape C": first[1], "spatio_kernel_enc": first[2]}
    if len(up) == 4:
        measured["spatio_kernel_dec"] = up[2]
    if len(reduce) == 4 and len(first) == 4 and reduce[1] % first[0] == 0:
        measured["in_shape T"] = reduce[1] // first[0]
    if branches:
        measured |= {"hid_T": branches[0][0], "incep_ker": tuple(shape[2] for shape in branches)}
    if branches and len(reduce) == 4:
        measured["groups"] = reduce[0] // branches[0][1]
    return measured


def _build_simvp(config: Mapping[str, Any]) -> nn.Module:
    stated = _simvp_stated(config)
    translator = config.get("model_type") or "gSTA"
    if translator.lower() != "incepu":
        raise ValueError(
            f"model_type={translator!r} (the public default is 'gSTA') is another translator; ours is 'IncepU', "
            "the one of SimCast"
        )
    if stated["spatio_kernel_enc"] != stated["spatio_kernel_dec"]:
        raise ValueError(
            f"spatio_kernel_enc={stated['spatio_kernel_enc']} and spatio_kernel_dec={stated['spatio_kernel_dec']} "
            "must be equal: ours has one kernel size for encoder and decoder"
        )
    own = SimVPConfig(
        hidden_spatial=stated["hid_S"],
        hidden_temporal=stated["hid_T"],
        spatial_blocks=stated["N_S"],
        temporal_blocks=stated["N_T"],
        spatial_kernel=stated["spatio_kernel_enc"],
        inception_kernels=stated["incep_ker"],
        groups=stated["groups"],
    )
    frames_in = stated["in_shape T"]
    frames_out = config.get("aft_seq_length", frames_in)
    return build_model(own, frames_in=frames_in, frames_out=frames_out, channels=stated["in_shape C"])


_ARCHITECTURES: dict[str, PublicArchitecture] = {
    "simvp": PublicArchitecture(
        source="SimVP_Model (IncepU) of chengtan9907/OpenSTL, commit c74deb5",
        names=(
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
        build=_build_simvp,
        stated=_simvp_stated,
        measured=_simvp_measured,
    ),
}
