"""``sampler_step``: one step of a diffusion sampler, everything that follows the network, in one launch.

Source: guidance Ho and Salimans, Classifier-free diffusion guidance (2022), Eq. 6; the updates of DDPM, DDIM and
DPM-Solver++(2M) are the linear forms that ``simcast_hpc.diffusion.samplers`` gives, with their equation numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_kernels.dispatch import body_for

from .reference import Coefficients, Counters, sampler_step_reference

__all__ = ["Coefficients", "Counters", "sampler_step"]

_OP = "sampler_step"


def sampler_step(
    noisy: Tensor,
    prediction: Tensor,
    *,
    coefficients: Coefficients,
    hits: Tensor,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    history: Tensor | None = None,
    clip: float | None = None,
    counters: Counters | None = None,
    with_clean: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the latent of the next step, and the clean latent of this one if ``with_clean``.

    With ``p = u + guidance (prediction - u)`` the clean latent is ``clip(clean_from_noisy x + clean_from_prediction
    p)``, and the next latent a linear form of x, p, the clean latent, the clean latent of the step before and noise
    (see :class:`Coefficients`). Computed in float32, float64 input in float64 (by the twin everywhere). It has no
    gradient: call it without one. Autocast does not touch the op.

    Args:
        noisy: the latent x of this step, float32, bfloat16 or float64, ``[rows, ...]``.
        prediction: what the network says under its condition; shape and dtype of ``noisy``.
        coefficients: the linear forms of this step.
        hits: int64 scalar on the same device; the number of elements that were clipped is added to it.
        unconditional: what the network says without a condition; None without guidance.
        guidance: the weight w; 1 is the conditional prediction alone.
        history: the clean latent of the step before, where the sampler uses it.
        clip: bound of the clean latent's magnitude; None does not clip. NaN stays NaN.
        counters: key, sample and member of each row, and step that the noise is a function of; None adds none.
        with_clean: whether the clean latent is written.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, no elements, a clip that is not positive, counters out of range, or
            noise and history that coefficients and arguments do not agree on.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    _check_tensors(noisy, prediction=prediction, unconditional=unconditional, history=history)
    _check_numbers(coefficients, hits=hits, noisy=noisy, history=history, clip=clip, counters=counters)
    key, sample, member, step = (0, None, None, 0) if counters is None else counters
    out, clean = torch.ops.simcast_kernels.sampler_step(
        noisy,
        prediction,
        unconditional,
        history,
        sample,
        member,
        hits,
        list(coefficients),
        float(guidance),
        None if clip is None else float(clip),
        key,
        step,
        with_clean,
    )
    return out, clean if with_clean else None


@torch.library.custom_op("simcast_kernels::sampler_step", mutates_args=("hits",))
def _step(
    noisy: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    history: Tensor | None,
    sample: Tensor | None,
    member: Tensor | None,
    hits: Tensor,
    coefficients: Sequence[float],
    guidance: float,
    clip: float | None,
    key: int,
    step: int,
    with_clean: bool,
) -> tuple[Tensor, Tensor]:
    forms = Coefficients(*coefficients)
    counters = None if sample is None or member is None else Counters(key, sample, member, step)
    if body_for(_OP, noisy.device) == "triton" and noisy.dtype != torch.float64:
        from . import kernel  # late: the twin needs no Triton

        out, clean = kernel.step(
            noisy,
            prediction,
            unconditional,
            history,
            hits,
            coefficients=forms,
            guidance=guidance,
            clip=clip,
            counters=counters,
            with_clean=with_clean,
        )
        return out, noisy.new_empty(0) if clean is None else clean
    out, clean, clipped = sampler_step_reference(
        noisy,
        prediction,
        unconditional,
        history,
        coefficients=forms,
        guidance=guidance,
        clip=clip,
        counters=counters,
    )
    hits += clipped
    return out.contiguous(), clean.contiguous() if with_clean else noisy.new_empty(0)


@_step.register_fake
def _(noisy, prediction, unconditional, history, sample, member, hits, coefficients, guidance, clip, key, step, clean):
    out = torch.empty(noisy.shape, dtype=noisy.dtype, device=noisy.device)
    return out, torch.empty(noisy.shape if clean else (0,), dtype=noisy.dtype, device=noisy.device)


def _check_tensors(noisy: Tensor, **others: Tensor | None) -> None:
    if noisy.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise TypeError(f"{_OP}: noisy is {noisy.dtype}; it must be float32, bfloat16 or float64")
    if noisy.ndim < 2 or noisy.numel() == 0:
        raise ValueError(f"{_OP}: noisy has shape {tuple(noisy.shape)}; it must be [rows, ...] and hold something")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.dtype != noisy.dtype:
            raise TypeError(f"{_OP}: {name} is {tensor.dtype}, noisy {noisy.dtype}; they must agree")
        if tensor.shape != noisy.shape or tensor.device != noisy.device:
            raise ValueError(
                f"{_OP}: {name} is {tuple(tensor.shape)} on {tensor.device}, noisy {tuple(noisy.shape)} on "
                f"{noisy.device}; they must agree"
            )


def _check_numbers(
    coefficients: Coefficients,
    *,
    hits: Tensor,
    noisy: Tensor,
    history: Tensor | None,
    clip: float | None,
    counters: Counters | None,
) -> None:
    if hits.dtype != torch.int64 or hits.ndim or hits.device != noisy.device:
        raise ValueError(
            f"{_OP}: hits is {hits.dtype} {tuple(hits.shape)} on {hits.device}; it must be an int64 scalar on "
            f"{noisy.device}"
        )
    if clip is not None and not clip > 0:
        raise ValueError(f"{_OP}: clip={clip} must be positive, or None")
    if coefficients.from_history and history is None:
        raise ValueError(f"{_OP}: coefficients use the clean latent of the step before, but history is None")
    if coefficients.noise and counters is None:
        raise ValueError(f"{_OP}: coefficients add noise, but counters is None")
    if counters is None:
        return
    if not (0 <= counters.key < 2**63 and 0 <= counters.step < 2**32):
        raise ValueError(
            f"{_OP}: counters.key={counters.key} must lie in [0, 2^63), counters.step={counters.step} in [0, 2^32)"
        )
    for name, tensor in (("sample", counters.sample), ("member", counters.member)):
        if tensor.dtype != torch.int64 or tensor.shape != noisy.shape[:1] or tensor.device != noisy.device:
            raise ValueError(
                f"{_OP}: counters.{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; it must be int64 "
                f"[{len(noisy)}] on {noisy.device}"
            )
