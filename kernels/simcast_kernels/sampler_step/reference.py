"""Reference implementation of ``sampler_step`` in PyTorch: the definition for the kernel, and the CPU path."""

from typing import NamedTuple

import torch
from torch import Tensor

from simcast_kernels.philox import normals


class Coefficients(NamedTuple):
    """The two linear combinations that define one step of a sampler.

    ``clean = clip(clean_from_noisy x + clean_from_prediction p)`` and
    ``next = from_noisy x + from_prediction p + from_clean clean + from_history h + from_earlier e + noise z``, with x
    the noisy latent, p the guided prediction, h and e the clean latents of the previous step and of the one before it,
    and z standard normal noise.
    """

    clean_from_noisy: float
    clean_from_prediction: float
    from_noisy: float
    from_prediction: float
    from_clean: float
    from_history: float = 0.0
    noise: float = 0.0
    from_earlier: float = 0.0


class Counters(NamedTuple):
    """Counters that determine the noise of a step: ``sample`` and ``member`` are int64 ``[rows]``."""

    key: int
    sample: Tensor
    member: Tensor
    step: int


def sampler_step_reference(
    noisy: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    history: Tensor | None,
    earlier: Tensor | None = None,
    *,
    coefficients: Coefficients,
    guidance: float,
    clip: float | None,
    counters: Counters | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next latent, the clean latent and the number of clipped elements (int64 scalar).

    Arguments as :func:`simcast_kernels.sampler_step.sampler_step`; computed in float32, float64 input in float64.
    """
    dtype = torch.float64 if noisy.dtype == torch.float64 else torch.float32
    x, p = noisy.to(dtype), prediction.to(dtype)
    if unconditional is not None:
        u = unconditional.to(dtype)
        p = u + guidance * (p - u)
    raw = coefficients.clean_from_noisy * x + coefficients.clean_from_prediction * p
    clean, hits = raw, torch.zeros((), dtype=torch.int64, device=noisy.device)
    if clip is not None:
        clean = raw.clamp(-clip, clip)
        hits = (raw.abs() > clip).sum()
    result = coefficients.from_noisy * x + coefficients.from_prediction * p + coefficients.from_clean * clean
    if history is not None:
        result = result + coefficients.from_history * history.to(dtype)
    if earlier is not None:
        result = result + coefficients.from_earlier * earlier.to(dtype)
    if counters is not None:
        z = normals(
            counters.key,
            counters.sample,
            counters.member,
            step=counters.step,
            elements=noisy[0].numel(),
            dtype=dtype,
        )
        result = result + coefficients.noise * z.view(noisy.shape)
    return result.to(noisy.dtype), clean.to(noisy.dtype), hits
