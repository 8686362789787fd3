"""Published weights in: a public project's configuration and key names to one of our models, and back.

Each architecture is one ``PublicArchitecture``: a table of names, a reader of the public configuration, and a reader
of a state dict's shapes that tells which field of the configuration does not agree with them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import OurForm, PublicArchitecture, Shape, translated
from .cascast_weights import AUTOENCODER, CASFORMER
from .earthformer_weights import EARTHFORMER
from .simvp_weights import SIMVP
from .state_dict_errors import reject_integers, reject_misfit, reject_other_constants

__all__ = [
    "ARCHITECTURES",
    "OurForm",
    "from_public",
    "load_public",
    "our_form",
    "public_keys",
    "released_config",
    "to_public",
]

_ARCHITECTURES: dict[str, PublicArchitecture] = {
    "autoencoder": AUTOENCODER,
    "casformer": CASFORMER,
    "earthformer": EARTHFORMER,
    "simvp": SIMVP,
}
ARCHITECTURES = ("earthformer", "simvp")  # those that forecast, and so can be a run


def load_public(name: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our model of a public configuration and give it published weights.

    Args:
        name: the architecture: ``autoencoder`` or ``casformer`` (both CasCast's), ``earthformer`` or ``simvp``.
        config: the public project's own configuration. Fields of SimVP that do not shape the network (learning rate,
            drop path where the translator has none) are ignored, as the public constructor ignores them; of
            Earthformer, every field is wanted, and one that we do not know is refused.
        state_dict: tensors under the public project's own keys; copied, any floating dtype.

    Returns:
        Our model on the CPU, fp32, in training mode.

    Raises:
        KeyError: the architecture is unknown.
        TypeError: a tensor does not hold floating-point numbers.
        ValueError: the configuration is not one that we build, or the state dict does not fit it. The message names
            the first missing and unexpected keys, the shapes, and the field that would explain them.
    """
    architecture = _architecture(name)
    expected = public_keys(name, config)
    reject_misfit(architecture, config, expected, state_dict)
    model = architecture.ours(config).build()
    constants = architecture.constants(model)
    reject_other_constants(constants, state_dict)
    reject_integers(constants, state_dict)
    weights = {key: tensor for key, tensor in state_dict.items() if key not in constants}
    model.load_state_dict({from_public(name, key): tensor for key, tensor in weights.items()})
    return model


def public_keys(name: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the public keys and shapes that ``config`` asks for, constants too, without allocating a weight.

    Raises:
        KeyError, ValueError: as :func:`load_public`, for the architecture and the configuration.
    """
    architecture = _architecture(name)
    with torch.device("meta"):
        model = architecture.ours(config).build()
        constants = architecture.constants(model)
    weights = {to_public(name, key): tensor for key, tensor in model.state_dict().items()}
    return {key: tuple(tensor.shape) for key, tensor in {**weights, **constants}.items()}


def our_form(name: str, config: Mapping[str, Any]) -> OurForm:
    """Return our form of a public configuration of a model that forecasts.

    Raises:
        KeyError, ValueError: as :func:`load_public`, for the architecture and the configuration.
        ValueError: the architecture is a part of a generative model and forecasts nothing alone.
    """
    form = _architecture(name).ours(config)
    if not isinstance(form, OurForm):
        raise ValueError(f"{name} does not forecast alone; those that do are {', '.join(ARCHITECTURES)}")
    return form


def released_config(name: str) -> dict[str, Any]:
    """Return the public configuration of the weights that the project published for SEVIR.

    Raises:
        KeyError: the architecture is unknown.
    """
    return dict(_architecture(name).released)


def to_public(name: str, key: str) -> str:
    """Return the public project's name of our state-dict key.

    Raises:
        KeyError: the architecture is unknown, or has no such key of ours.
    """
    return translated(key, _architecture(name).names, where=f"our {name}")


def from_public(name: str, key: str) -> str:
    """Return our name of a public project's state-dict key.

    Raises:
        KeyError: the architecture is unknown, or its public form has no such key.
    """
    pairs = [(theirs, ours) for ours, theirs in _architecture(name).names]
    return translated(key, pairs, where=f"the public {name}")


def _architecture(name: str) -> PublicArchitecture:
    if name not in _ARCHITECTURES:
        raise KeyError(f"no published architecture {name!r}; known are {', '.join(sorted(_ARCHITECTURES))}")
    return _ARCHITECTURES[name]
