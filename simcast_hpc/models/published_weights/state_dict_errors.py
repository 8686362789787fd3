"""Why a state dict does not fit a configuration, in words."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .architecture import PublicArchitecture, Shape


def reject_misfit(
    architecture: PublicArchitecture,
    config: Mapping[str, Any],
    expected: Mapping[str, Shape],
    state_dict: Mapping[str, Tensor],
) -> None:
    """Say what does not fit: missing and unexpected keys, shapes, and the field that would explain them.

    Raises:
        ValueError: ``state_dict`` has other keys or shapes than ``expected``.
    """
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


def reject_other_constants(constants: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Refuse stored constants that are not those of the configuration.

    Raises:
        ValueError: a tensor of ``state_dict`` differs from the one of that key in ``constants``.
    """
    for key, wanted in constants.items():
        # Tables of floats are computed, and two libraries' sines differ in the last bit.
        near = torch.allclose if wanted.is_floating_point() else torch.equal
        if not near(state_dict[key].to(wanted), wanted):
            raise ValueError(
                f"{key} of the state dict differs from what the configuration fixes: the tables that it indexes are "
                "laid out in another way, and the weights would be read wrongly"
            )


def reject_integers(constants: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no floating-point numbers, as a quantised file holds them.

    Raises:
        TypeError: names the first such key and its dtype.
    """
    for key, tensor in state_dict.items():
        if key not in constants and not tensor.is_floating_point():
            raise TypeError(f"{key} of the state dict is {tensor.dtype}; weights are floating-point, such as float32")


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
