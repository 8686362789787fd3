"""The sampling loop from noise to clean latents: one network call and one fused kernel per step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simcast_hpc.config import SimcastError
from simcast_kernels.sampler_step import sampler_step

from .counter_noise import BatchNoise
from .samplers import SamplerStep

Denoiser = Callable[[Tensor, Tensor], Tensor]


class NonFiniteLatentError(SimcastError, RuntimeError):
    """Sampling returned infinite or NaN latents."""


@dataclass(frozen=True)
class SamplingResult:
    """Result of sampling. All tensors stay on the device, so that the host does not synchronize.

    Attributes:
        latents: clean latents ``[rows, ...]``.
        clip_rate: fraction of clipped elements of the clean latents of all steps, float scalar.
        non_finite: number of rows that are not finite, int64 scalar.
    """

    latents: Tensor
    clip_rate: Tensor
    non_finite: Tensor


def check_finite(non_finite: Tensor, rows: int) -> None:
    """Check that no row is non-finite. Synchronizes with the device.

    Raises:
        NonFiniteLatentError: ``non_finite`` of ``rows`` rows are not finite.
    """
    count = int(non_finite)
    if count:
        raise NonFiniteLatentError(
            f"{count} of {rows} sampled latents are not finite; check the condition and the weights, or sample in fp32"
        )


def sample(steps: Sequence[SamplerStep], conditional: Denoiser, start: Tensor, **options: Any) -> SamplingResult:
    """Return the result of :func:`run_sampler` and check that it is finite. Synchronizes with the device.

    Raises:
        ValueError: as :func:`run_sampler`.
        NonFiniteLatentError: the result is not finite.
    """
    result = run_sampler(steps, conditional, start, **options)
    check_finite(result.non_finite, len(start))
    return result


def run_sampler(
    steps: Sequence[SamplerStep],
    conditional: Denoiser,
    start: Tensor,
    *,
    unconditional: Denoiser | None = None,
    guidance: float = 1.0,
    clip: float | None = None,
    batch_noise: BatchNoise | None = None,
    noise: Callable[[int], Tensor] | None = None,
    after_step: Callable[[int, Tensor], None] | None = None,
) -> SamplingResult:
    """Run the sampler from ``start`` to clean latents, which may be non-finite.

    It neither synchronizes with the device nor creates shapes that depend on values, so a CUDA graph can capture it.

    Args:
        steps: steps of the sampler, from ``samplers.plan_steps``.
        conditional: maps (x_t, timesteps int64 ``[rows]``) to the conditional prediction, in the dtype of x_t.
        start: initial noise ``[rows, ...]``, float32 or float64; see ``BatchNoise.initial``.
        unconditional: the unconditional prediction; required unless ``guidance`` is 1.
        guidance: weight of classifier-free guidance.
        clip: bound of the magnitude of the clean latent; None disables clipping.
        batch_noise: counter-based noise for stochastic samplers.
        noise: alternative source of noise, from step number to a tensor of the shape of ``start``.
        after_step: called with the step number and the latent after each step.

    Raises:
        ValueError: guidance without an unconditional network, or a stochastic sampler without a source of noise.
    """
    if guidance != 1.0 and unconditional is None:
        raise ValueError(f"guidance={guidance} requires an unconditional prediction")
    if batch_noise is None and noise is None and any(step.coefficients.noise for step in steps):
        raise ValueError("a stochastic sampler requires batch_noise or noise")
    clip_count = torch.zeros((), dtype=torch.int64, device=start.device)
    latent, previous = start, []  # clean latents of the last two steps, latest first
    for number, step in enumerate(steps):
        # 1. Predictions of the network
        timesteps = torch.full((len(latent),), step.timestep, dtype=torch.int64, device=latent.device)
        prediction = conditional(latent, timesteps)
        unconditional_prediction = None
        if unconditional is not None and guidance != 1.0:
            unconditional_prediction = unconditional(latent, timesteps)

        # 2. Fused update of the latent; given noise is added separately
        step_noise = noise if step.coefficients.noise else None
        coefficients = step.coefficients if step_noise is None else step.coefficients._replace(noise=0.0)
        kept = any(later.memory > ahead for ahead, later in enumerate(steps[number + 1 : number + 3]))
        history, earlier = (previous[k] if step.memory > k else None for k in range(2))
        latent, clean = sampler_step(
            latent,
            prediction,
            unconditional=unconditional_prediction,
            guidance=guidance,
            history=history,
            earlier=earlier,
            coefficients=coefficients,
            clip=clip,
            hits=clip_count,
            counters=None if batch_noise is None or not coefficients.noise else batch_noise.counters(number),
            with_clean=kept,
        )
        previous = [clean, *previous[:1]]
        if step_noise is not None:
            latent = latent + step.coefficients.noise * step_noise(number)
        if after_step is not None:
            after_step(number, latent)
    non_finite = (~torch.isfinite(latent.flatten(1)).all(dim=1)).sum()
    return SamplingResult(latent, clip_count / (len(steps) * latent.numel()), non_finite)
