"""From noise to clean latents: the network and one fused launch, step after step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simcast_hpc.config import SimcastError
from simcast_kernels.sampler_step import Coefficients, sampler_step

from .counter_noise import Rows
from .samplers import Step

Denoiser = Callable[[Tensor, Tensor], Tensor]


class NonFiniteLatentError(SimcastError, RuntimeError):
    """Sampling came to latents that are infinite or NaN."""


@dataclass(frozen=True)
class Drawn:
    """What sampling gave, all of it on the device, so that nothing waits for it.

    Attributes:
        latents: clean latents ``[rows, ...]``.
        clip_rate: the share of elements that were clipped, of the clean latents of all steps; float scalar.
        broken: how many rows are not finite, int64 scalar.
    """

    latents: Tensor
    clip_rate: Tensor
    broken: Tensor


def reject_broken(broken: Tensor, rows: int) -> None:
    """Refuse latents of ``rows`` rows of which ``broken`` are not finite. Waits for the device.

    Raises:
        NonFiniteLatentError: says how many.
    """
    count = int(broken)
    if count:
        raise NonFiniteLatentError(
            f"{count} of {rows} sampled latents are not finite: look at the condition and at the weights, or "
            "sample in fp32"
        )


def sample(steps: Sequence[Step], conditional: Denoiser, start: Tensor, **options: Any) -> Drawn:
    """Return the clean latents that ``steps`` lead to from ``start``; as :func:`walk`, but refused if not finite.

    Raises:
        ValueError: as :func:`walk`.
        NonFiniteLatentError: what came out is not finite. Waits for the device.
    """
    drawn = walk(steps, conditional, start, **options)
    reject_broken(drawn.broken, len(start))
    return drawn


def walk(
    steps: Sequence[Step],
    conditional: Denoiser,
    start: Tensor,
    *,
    unconditional: Denoiser | None = None,
    guidance: float = 1.0,
    clip: float | None = None,
    rows: Rows | None = None,
    noise: Callable[[int], Tensor] | None = None,
    after_step: Callable[[int, Tensor], None] | None = None,
) -> Drawn:
    """Return the clean latents that ``steps`` lead to from ``start``, finite or not.

    Nothing in it waits for the device or has a shape that depends on values, so that a CUDA graph can hold it.

    Args:
        steps: the sampler's steps, from ``samplers.plan_steps``.
        conditional: (x_t, timesteps int64 ``[rows]``) to the prediction under each row's condition, in x_t's dtype.
        start: pure noise ``[rows, ...]``, float32 or float64; see ``Rows.start``.
        unconditional: the same without a condition; needed unless ``guidance`` is 1.
        guidance: the weight of classifier-free guidance.
        clip: bound of the clean latent's magnitude; None does not clip.
        rows: counters of the noise that stochastic samplers add.
        noise: given noise in their place: step number to a tensor of ``start``'s shape.
        after_step: called with the step's number and the latent after it.

    Raises:
        ValueError: guidance without an unconditional network, or a stochastic sampler without a source of noise.
    """
    if guidance != 1.0 and unconditional is None:
        raise ValueError(f"guidance={guidance} needs the network without a condition as well")
    if rows is None and noise is None and any(step.coefficients.noise for step in steps):
        raise ValueError("this sampler adds noise: give rows (counters) or noise")
    hits = torch.zeros((), dtype=torch.int64, device=start.device)
    latent, history = start, None
    for number, step in enumerate(steps):
        told = torch.full((len(latent),), step.timestep, dtype=torch.int64, device=latent.device)
        given = noise if step.coefficients.noise else None
        forms = _without_noise(step.coefficients) if given is not None else step.coefficients
        following = steps[number + 1] if number + 1 < len(steps) else None
        latent, history = sampler_step(
            latent,
            conditional(latent, told),
            unconditional=None if unconditional is None or guidance == 1.0 else unconditional(latent, told),
            guidance=guidance,
            history=history if step.uses_history else None,
            coefficients=forms,
            clip=clip,
            hits=hits,
            counters=None if rows is None or not forms.noise else rows.counters(number),
            with_clean=following is not None and following.uses_history,
        )
        if given is not None:
            latent = latent + step.coefficients.noise * given(number)
        if after_step is not None:
            after_step(number, latent)
    broken = (~torch.isfinite(latent.flatten(1)).all(dim=1)).sum()
    return Drawn(latent, hits / (len(steps) * latent.numel()), broken)


def _without_noise(coefficients: Coefficients) -> Coefficients:
    return coefficients._replace(noise=0.0)
