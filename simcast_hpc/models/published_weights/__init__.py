"""Load published weights: convert the configuration and keys of a public project to ours, and keys back.

Each architecture is one ``PublicArchitecture``: a table of keys, a reader of the public configuration, and a reader of
the shapes of a state dict, which finds the configuration fields that disagree with them.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import ForecasterSpec, ModelSpec, PublicArchitecture, Shape, translate_key
from .cascast_weights import AUTOENCODER, CASFORMER
from .earthformer_weights import EARTHFORMER
from .simvp_weights import SIMVP
from .state_dict_errors import check_constants, check_finite, check_floating_point, check_keys_and_shapes

__all__ = [
    "ARCHITECTURES",
    "ForecasterSpec",
    "forecaster_spec",
    "from_public",
    "load_public",
    "model_spec",
    "public_keys",
    "recognize",
    "released_config",
    "to_public",
    "wrapper_of",
]

_ARCHITECTURES: dict[str, PublicArchitecture] = {
    "autoencoder": AUTOENCODER,
    "casformer": CASFORMER,
    "earthformer": EARTHFORMER,
    "simvp": SIMVP,
}
ARCHITECTURES = ("earthformer", "simvp", "autoencoder", "casformer")
_FORECASTERS = ("earthformer", "simvp")  # networks that forecast alone


def load_public(name: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our model of a public configuration with published weights.

    Args:
        name: the architecture: ``autoencoder`` or ``casformer`` (both CasCast's), ``earthformer`` or ``simvp``.
        config: configuration of the public project. For SimVP, fields that do not affect the network (learning rate,
            drop path of a translator without one) are ignored, as in the public constructor. For Earthformer, every
            field is required and unknown fields are rejected.
        state_dict: tensors under the keys of the public project; copied, any floating dtype. CasCast's keys begin with
            the name of a wrapper (``net.`` or ``model.``), which may be missing in all of them, as in PreDiff's.

    Returns:
        Our model on the CPU, fp32, in training mode.

    Raises:
        KeyError: the architecture is unknown.
        TypeError: a tensor is not floating point.
        ValueError: the configuration is not supported, a weight is not finite, or the state dict does not match the
            configuration. The message contains the first missing and unexpected keys, the shapes, and the fields that
            explain the difference.
    """
    architecture = _architecture(name)
    expected = public_keys(name, config)
    state_dict = architecture.with_wrapper(state_dict, expected)
    check_keys_and_shapes(architecture, config, expected, state_dict)
    model = architecture.to_spec(config).build()
    constants = architecture.constants(model)
    check_constants(constants, state_dict)
    check_floating_point(constants, state_dict)
    check_finite(state_dict)
    weights = {key: tensor for key, tensor in state_dict.items() if key not in constants}
    model.load_state_dict({from_public(name, key): tensor for key, tensor in weights.items()})
    return model


def public_keys(name: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the public keys and shapes of ``config``, including constants, without allocating weights.

    Raises:
        KeyError, ValueError: the architecture or the configuration is invalid, as in :func:`load_public`.
    """
    architecture = _architecture(name)
    with torch.device("meta"):
        model = architecture.to_spec(config).build()
        constants = architecture.constants(model)
    weights = {to_public(name, key): tensor for key, tensor in model.state_dict().items()}
    return {key: tuple(tensor.shape) for key, tensor in {**weights, **constants}.items()}


def wrapper_of(name: str) -> str:
    """Return the prefix of all public keys that other publications of the network lack, or the empty text.

    Raises:
        KeyError: the architecture is unknown.
    """
    return _architecture(name).wrapper


def recognize(keys: Collection[str]) -> str | None:
    """Return the architecture that at least nine of ten ``keys`` of a state dict belong to, after any prefix."""
    counts = {name: architecture.recognized(keys) for name, architecture in _ARCHITECTURES.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if keys and counts[best] >= 0.9 * len(keys) else None


def model_spec(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """Return our configuration of a published network.

    Raises:
        KeyError, ValueError: the architecture or the configuration is invalid, as in :func:`load_public`.
    """
    return _architecture(name).to_spec(config)


def forecaster_spec(name: str, config: Mapping[str, Any]) -> ForecasterSpec:
    """Return our configuration of a published forecasting model.

    Raises:
        KeyError, ValueError: the architecture or the configuration is invalid, as in :func:`load_public`.
        ValueError: the architecture is a component of a generative model and cannot forecast.
    """
    spec = model_spec(name, config)
    if not isinstance(spec, ForecasterSpec):
        raise ValueError(f"{name!r} is not a forecasting model; choose {' or '.join(_FORECASTERS)}")
    return spec


def released_config(name: str) -> dict[str, Any]:
    """Return the public configuration of the weights published for SEVIR.

    Raises:
        KeyError: the architecture is unknown.
    """
    return dict(_architecture(name).released)


def to_public(name: str, key: str) -> str:
    """Return the public key of one of our state-dict keys.

    Raises:
        KeyError: the architecture is unknown, or our model has no such key.
    """
    return translate_key(key, _architecture(name).key_pairs, where=f"our {name}")


def from_public(name: str, key: str) -> str:
    """Return our key of a public state-dict key.

    Raises:
        KeyError: the architecture is unknown, or the public model has no such key.
    """
    pairs = [(public, own) for own, public in _architecture(name).key_pairs]
    return translate_key(key, pairs, where=f"the public {name}")


def _architecture(name: str) -> PublicArchitecture:
    if name not in _ARCHITECTURES:
        raise KeyError(f"unknown published architecture {name!r}; choose {', '.join(sorted(_ARCHITECTURES))}")
    return _ARCHITECTURES[name]
