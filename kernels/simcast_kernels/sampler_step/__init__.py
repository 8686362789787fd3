"""``sampler_step``: one step of a diffusion sampler after the network, in one launch.

Source: classifier-free guidance: Ho and Salimans (2022), Eq. 6; the updates of DDPM, DDIM and DPM-Solver++ are
linear combinations, given with equation numbers in ``simcast_hpc.diffusion.samplers``.
"""

from torch import Tensor

from .checks import check
from .operators import step_operator
from .reference import Coefficients, Counters

__all__ = ["Coefficients", "Counters", "sampler_step"]


def sampler_step(
    noisy: Tensor,
    prediction: Tensor,
    *,
    coefficients: Coefficients,
    hits: Tensor,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    history: Tensor | None = None,
    earlier: Tensor | None = None,
    clip: float | None = None,
    counters: Counters | None = None,
    with_clean: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the latent of the next step and, with ``with_clean``, the clean latent of this step.

    With ``p = u + guidance (prediction - u)`` the clean latent is ``clip(clean_from_noisy x + clean_from_prediction
    p)``, and the next latent a linear combination of x, p, the clean latent, the clean latents of the two previous
    steps and noise (see :class:`Coefficients`). Computed in float32, float64 input in float64 (always by the
    reference). The op has no gradient. Autocast does not affect it.

    Args:
        noisy: latent x of this step, float32, bfloat16 or float64, ``[rows, ...]``.
        prediction: conditional output of the network; shape and dtype of ``noisy``.
        coefficients: linear combinations of this step.
        hits: int64 scalar on the same device; the number of clipped elements is added to it.
        unconditional: unconditional output of the network; None without guidance.
        guidance: guidance weight w; 1 gives the conditional prediction.
        history: clean latent of the previous step, for multistep samplers.
        earlier: clean latent of the step before that one, for multistep samplers of third order.
        clip: bound of the clean latent's magnitude; None disables clipping. NaN stays NaN.
        counters: key, sample and member of each row and step, which determine the noise; None adds no noise.
        with_clean: whether to return the clean latent.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, no elements, a clip that is not positive, counters out of range, or
            coefficients for noise, history or earlier without the argument.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    tensors = {"prediction": prediction, "unconditional": unconditional, "history": history, "earlier": earlier}
    check(noisy, tensors, coefficients=coefficients, hits=hits, clip=clip, counters=counters)
    key, sample, member, step = (0, None, None, 0) if counters is None else counters
    out, clean = step_operator(
        noisy,
        prediction,
        unconditional,
        history,
        earlier,
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
