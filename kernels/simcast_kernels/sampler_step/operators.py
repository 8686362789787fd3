"""Custom operator of ``sampler_step``: implementation and fake tensors; the op has no gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_kernels.direct_call import custom_operator
from simcast_kernels.dispatch import select_implementation

from .reference import Coefficients, Counters, sampler_step_reference


@custom_operator("simcast_kernels::sampler_step", mutates_args=("hits",))
def step_operator(
    noisy: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    history: Tensor | None,
    earlier: Tensor | None,
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
    """Return the next latent and the clean latent (empty without ``with_clean``); add clipped elements to ``hits``."""
    forms = Coefficients(*coefficients)
    counters = None if sample is None or member is None else Counters(key, sample, member, step)
    if select_implementation("sampler_step", noisy.device) == "triton" and noisy.dtype != torch.float64:
        from . import kernel  # imports Triton

        out, clean = kernel.step(
            noisy,
            prediction,
            unconditional,
            history,
            earlier,
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
        earlier,
        coefficients=forms,
        guidance=guidance,
        clip=clip,
        counters=counters,
    )
    hits += clipped
    return out.contiguous(), clean.contiguous() if with_clean else noisy.new_empty(0)


@step_operator.register_fake
def _(
    noisy, prediction, unconditional, history, earlier, sample, member, hits, forms, guidance, clip, key, step, clean
):
    out = torch.empty(noisy.shape, dtype=noisy.dtype, device=noisy.device)
    return out, torch.empty(noisy.shape if clean else (0,), dtype=noisy.dtype, device=noisy.device)
