"""Validate the arguments of ``sampler_step``; each error names the argument."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .reference import Coefficients, Counters

_OP = "sampler_step"


def check(
    noisy: Tensor,
    tensors: Mapping[str, Tensor | None],
    *,
    coefficients: Coefficients,
    hits: Tensor,
    clip: float | None,
    counters: Counters | None,
) -> None:
    """Validate a call; ``tensors`` are the prediction and tensors of its shape, by name.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: any other invalid argument.
    """
    _check_tensors(noisy, tensors)
    if hits.dtype != torch.int64 or hits.ndim or hits.device != noisy.device:
        raise ValueError(
            f"{_OP}: hits is {hits.dtype} {tuple(hits.shape)} on {hits.device}; it must be an int64 scalar on "
            f"{noisy.device}"
        )
    if clip is not None and not clip > 0:
        raise ValueError(f"{_OP}: clip={clip} must be positive, or None")
    if coefficients.from_history and tensors["history"] is None:
        raise ValueError(f"{_OP}: coefficients use the clean latent of the previous step, but history is None")
    if coefficients.from_earlier and tensors["earlier"] is None:
        raise ValueError(f"{_OP}: coefficients use the clean latent of two steps before, but earlier is None")
    if coefficients.noise and counters is None:
        raise ValueError(f"{_OP}: coefficients add noise, but counters is None")
    if counters is not None:
        _check_counters(noisy, counters)


def _check_tensors(noisy: Tensor, tensors: Mapping[str, Tensor | None]) -> None:
    if noisy.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise TypeError(f"{_OP}: noisy is {noisy.dtype}; it must be float32, bfloat16 or float64")
    if noisy.ndim < 2 or noisy.numel() == 0:
        raise ValueError(f"{_OP}: noisy has shape {tuple(noisy.shape)}; it must be [rows, ...] with no empty axis")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype != noisy.dtype:
            raise TypeError(f"{_OP}: {name} is {tensor.dtype} and noisy is {noisy.dtype}; they must agree")
        if tensor.shape != noisy.shape or tensor.device != noisy.device:
            raise ValueError(
                f"{_OP}: {name} is {tuple(tensor.shape)} on {tensor.device} and noisy is {tuple(noisy.shape)} on "
                f"{noisy.device}; they must agree"
            )


def _check_counters(noisy: Tensor, counters: Counters) -> None:
    if not (0 <= counters.key < 2**63 and 0 <= counters.step < 2**32):
        raise ValueError(
            f"{_OP}: counters.key={counters.key} must be in [0, 2^63) and counters.step={counters.step} in [0, 2^32)"
        )
    for name, tensor in (("sample", counters.sample), ("member", counters.member)):
        if tensor.dtype != torch.int64 or tensor.shape != noisy.shape[:1] or tensor.device != noisy.device:
            raise ValueError(
                f"{_OP}: counters.{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; it must be int64 "
                f"[{len(noisy)}] on {noisy.device}"
            )
