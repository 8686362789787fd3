"""From noise to clean latents: the network and one fused launch, step after step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simcast_hpc.config import SimcastError
from simcast_kernels.sampler_step import Coefficients, sampler_step

from .noise import Rows
from .samplers import Step

Denoiser = Callable[[Tensor, Tensor], Tensor]


class NonFiniteLatentError(SimcastError, RuntimeError):
    """Sampling came to latents that are infinite or NaN."""


@dataclass(frozen=True)
class Drawn:
    """What sampling gave: clean ``latents`` ``[rows, ...]`` and ``clip_rate``, the share of elements that were clipped.

    The rate counts the clean latents of all steps. It stays a tensor on the device, so that nothing waits for it.
    """

    latents: Tensor
    clip_rate: Tensor


def sample(
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
    """Return the clean latents that ``steps`` lead to from ``start``.

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
        NonFiniteLatentError: what came out is not finite. Waits for the device.
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
    bad = int((~torch.isfinite(latent.flatten(1)).all(dim=1)).sum())
    if bad:
        raise NonFiniteLatentError(
            f"{bad} of {len(latent)} sampled latents are not finite: look at the condition and at the weights, or "
            "sample in fp32"
        )
    return Drawn(latent, hits / (len(steps) * latent.numel()))


def _without_noise(coefficients: Coefficients) -> Coefficients:
    return coefficients._replace(noise=0.0)
