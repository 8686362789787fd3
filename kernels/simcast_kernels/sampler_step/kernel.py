"""One step of a diffusion sampler in one pass: guidance, clean latent, clipping, update and counter-based noise.

Shapes: R rows (one member of one sample each) of E elements, all tensors contiguous ``[R, E]``, N = R E. A DDIM step
with guidance reads 3N elements and writes N; DPM-Solver++ of second order also reads the clean latent of the previous
step and writes its own, 6N in all, and of third order reads one more, 7N. Without guidance it is N less. Noise is
computed in registers and moves no memory. Clipped elements are counted by integer atomics, whose order does not matter.
"""

# Pyright does not understand Triton constexpr arguments and tuples in jitted functions.
# pyright: reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from simcast_kernels.device.philox_tile import normal_block
from simcast_kernels.dispatch import Launch

from .reference import Coefficients, Counters

# 8 elements per thread: 16 bytes of bf16, two fp32 accesses and two Philox calls, each of four numbers.
OPTIONS = {"BLOCK": 1024, "num_warps": 4}


# key and step change at every call: specialized on them, the kernel would be compiled for each.
@triton.jit(do_not_specialize=["key", "step"])
def _step_kernel(
    noisy,
    prediction,
    unconditional,
    history,
    earlier,
    sample,
    member,
    out,
    clean,
    hits,
    elements,
    blocks,
    coefficients,
    guidance,
    clip,
    key,
    step,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = program // blocks
    first = (program - row * blocks) * BLOCK
    element = first + tl.arange(0, BLOCK)
    valid = element < elements
    offset = row.to(tl.int64) * elements + element  # int64: 640 x 12 x 384 x 384 pixels are near 2**31
    # 1. Guided prediction
    x = tl.load(noisy + offset, mask=valid, other=0.0).to(tl.float32)
    p = tl.load(prediction + offset, mask=valid, other=0.0).to(tl.float32)
    if unconditional is not None:
        u = tl.load(unconditional + offset, mask=valid, other=0.0).to(tl.float32)
        p = u + guidance * (p - u)
    # 2. Clean latent, clipped
    x0 = coefficients[0] * x + coefficients[1] * p
    if hits is not None:
        beyond = tl.abs(x0) > clip
        # NaN stays NaN, as in the reference: a diverged network must not look like a clipped one.
        x0 = tl.where(beyond, tl.where(x0 > 0, clip, -clip), x0)
        count = tl.sum((beyond & valid).to(tl.int32))
        # No other access depends on this counter; the default order, acquire and release, is a fence over all memory.
        tl.atomic_add(hits, count.to(tl.int64), sem="relaxed")
    # 3. Next latent: linear combination, history and noise
    result = coefficients[2] * x + coefficients[3] * p + coefficients[4] * x0
    if history is not None:
        result += coefficients[5] * tl.load(history + offset, mask=valid, other=0.0).to(tl.float32)
    if earlier is not None:
        result += coefficients[7] * tl.load(earlier + offset, mask=valid, other=0.0).to(tl.float32)
    if sample is not None:
        of, which = tl.load(sample + row), tl.load(member + row)
        result += coefficients[6] * normal_block(key, first, of, which, step, BLOCK)
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=valid)
    if clean is not None:
        tl.store(clean + offset, x0.to(clean.dtype.element_ty), mask=valid)


def step_launch(
    noisy: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    history: Tensor | None,
    earlier: Tensor | None,
    *,
    out: Tensor,
    clean: Tensor | None,
    hits: Tensor | None,
    coefficients: Coefficients,
    guidance: float,
    clip: float | None,
    counters: Counters | None,
) -> Launch:
    """Return the launch that writes ``out`` and ``clean`` and adds to ``hits``; the last two may be None."""
    rows = noisy.shape[0]
    elements = noisy.numel() // rows
    blocks = triton.cdiv(elements, OPTIONS["BLOCK"])
    return Launch(
        kernel=_step_kernel,
        grid=(rows * blocks,),
        arguments=(
            noisy,
            prediction,
            unconditional,
            history,
            earlier,
            None if counters is None else counters.sample,
            None if counters is None else counters.member,
            out,
            clean,
            hits,
            elements,
            blocks,
            tuple(map(float, coefficients)),
            float(guidance),
            0.0 if clip is None else float(clip),
            0 if counters is None else counters.key,
            0 if counters is None else counters.step,
        ),
        options=OPTIONS,
    )


def step(
    noisy: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    history: Tensor | None,
    earlier: Tensor | None,
    hits: Tensor | None,
    *,
    coefficients: Coefficients,
    guidance: float,
    clip: float | None,
    counters: Counters | None,
    with_clean: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`.reference.sampler_step_reference` in one launch; add the clipped elements to ``hits``."""
    noisy, prediction = noisy.contiguous(), prediction.contiguous()
    unconditional = None if unconditional is None else unconditional.contiguous()
    history = None if history is None else history.contiguous()
    earlier = None if earlier is None else earlier.contiguous()
    out = torch.empty_like(noisy)
    clean = torch.empty_like(noisy) if with_clean else None
    step_launch(
        noisy,
        prediction,
        unconditional,
        history,
        earlier,
        out=out,
        clean=clean,
        hits=hits if clip is not None else None,
        coefficients=coefficients,
        guidance=guidance,
        clip=clip,
        counters=counters,
    ).run()
    return out, clean
