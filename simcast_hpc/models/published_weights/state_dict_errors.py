"""Checks of a published state dict against its configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .architecture import PublicArchitecture, Shape


def check_keys_and_shapes(
    architecture: PublicArchitecture,
    config: Mapping[str, Any],
    expected: Mapping[str, Shape],
    state_dict: Mapping[str, Tensor],
) -> None:
    """Check the keys and shapes of a state dict.

    Raises:
        ValueError: ``state_dict`` does not have the keys and shapes of ``expected``. The message contains the first
            missing and unexpected keys, the shapes, and the configuration fields that explain the difference.
    """
    actual = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    missing = [key for key in expected if key not in actual]
    unexpected = [key for key in actual if key not in expected]
    different = [key for key in expected if key in actual and actual[key] != expected[key]]
    if not (missing or unexpected or different):
        return
    lines = [f"the state dict does not match this configuration of {architecture.source}:"]
    if missing:
        lines.append(f"  {len(missing)} missing, first {missing[0]} {list(expected[missing[0]])}")
    if unexpected:
        lines.append(f"  {len(unexpected)} unexpected, first {unexpected[0]} {list(actual[unexpected[0]])}")
    if different:
        key = different[0]
        lines.append(
            f"  {len(different)} of different shape, first {key}: {list(expected[key])} in the configuration, "
            f"{list(actual[key])} in the state dict"
        )
    lines += [f"  {line}" for line in _explanations(architecture, config, expected, actual)]
    raise ValueError("\n".join(lines))


def check_constants(constants: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Check that stored constants equal those of the configuration.

    Raises:
        ValueError: a tensor of ``state_dict`` differs from that of the same key in ``constants``.
    """
    for key, constant in constants.items():
        if not _equal(state_dict[key], constant):
            raise ValueError(
                f"{key} of the state dict differs from the value that the configuration determines; the weights have a "
                "different layout and cannot be loaded"
            )


def _equal(stored: Tensor, constant: Tensor) -> bool:
    if not (constant.is_floating_point() and stored.is_floating_point()):
        return torch.equal(stored.to(constant), constant)
    # Computed tables of floats differ in the last bit between libraries, and the file may store fewer bits.
    rounding = max(torch.finfo(stored.dtype).eps, torch.finfo(constant.dtype).eps)
    return torch.allclose(stored.double(), constant.double(), rtol=0, atol=64 * rounding)


def check_floating_point(constants: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Check that all weights are floating point, unlike those of a quantized file.

    Raises:
        TypeError: a weight is not; the message contains the first such key and its dtype.
    """
    for key, tensor in state_dict.items():
        if key not in constants and not tensor.is_floating_point():
            raise TypeError(
                f"{key} of the state dict has dtype {tensor.dtype}; weights must be floating point, such as float32"
            )


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Check that fp32 represents all weights: none is NaN or infinite, and no float64 exceeds its range.

    Raises:
        ValueError: a weight is not; the message contains the first such key.
    """
    for key, tensor in state_dict.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{key} of the state dict has values that are NaN or infinite in fp32")


def _explanations(
    architecture: PublicArchitecture,
    config: Mapping[str, Any],
    expected: Mapping[str, Shape],
    actual: Mapping[str, Shape],
) -> list[str]:
    prefix = _shared_prefix(expected, actual)
    if prefix:
        return [f"every key starts with {prefix!r}, which a training wrapper added; remove this prefix"]
    fields = architecture.config_fields(config)
    differences = [
        f"{field}={fields[field]!r} in the configuration but {value!r} in the state dict"
        for field, value in architecture.shape_fields(actual).items()
        if fields[field] != value
    ]
    return differences or ["no configuration field explains this; the file may be truncated or of another model"]


def _shared_prefix(expected: Mapping[str, Shape], actual: Mapping[str, Shape]) -> str:
    """Return the prefix whose removal turns every actual key into an expected one, or the empty string."""
    first = next(iter(expected))
    for key in actual:
        if key != first and key.endswith(first):
            prefix = key.removesuffix(first)
            if all(other.startswith(prefix) and other.removeprefix(prefix) in expected for other in actual):
                return prefix
    return ""
