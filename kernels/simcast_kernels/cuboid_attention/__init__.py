"""``cuboid_attention``: Earthformer's attention inside cuboids of space-time, with global vectors.

Source: Gao et al., Earthformer (2022), section 3.1 and 3.2, with the padding, shift, dilation and relative position
bias of its public implementation.
"""

from torch import Tensor

from .check import check
from .geometry import Triple
from .operators import attend
from .problem import Inputs, Options, make_problem
from .reference import resample, resampled

__all__ = ["cuboid_attention", "cuboid_cross_attention"]


def cuboid_attention(
    qkv: Tensor,
    *,
    heads: int,
    cuboid: Triple,
    strategy: tuple[str, str, str],
    shift: Triple,
    padding: str = "ignore",
    bias: Tensor | None = None,
    global_query: Tensor | None = None,
    global_key: Tensor | None = None,
    global_value: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Return the attention of every token to its cuboid's tokens and the global vectors, ``[B, T, H, W, D]``.

    The grid ``[T, H, W]`` is padded at the end of each axis to whole cuboids, rolled by ``-shift`` and cut; nothing of
    that moves data in the kernel, which reads ``qkv`` in place. A cuboid as long as its axis or longer becomes the
    whole axis, without a shift; a dilated axis is never shifted. L below counts the tokens of the cuboid clipped so.

    Only the inputs are kept for the backward, which computes the weights again. Result and gradients are the same to
    the bit at every call with the same input on the same device. Autocast does not touch the op. In the kernel a NaN in
    a value reaches the cuboids that share its tile (up to 16 tokens together), in the twin its own cuboid alone.

    Args:
        qkv: query, key and value along the last axis, ``[B, T, H, W, 3 D]``, each ``heads`` times the head size;
            float32 or bfloat16. The result has its dtype; inside, everything is float32.
        heads: heads; divides D.
        cuboid: tokens of a cuboid along T, H, W.
        strategy: for each axis ``"l"``, contiguous tokens, or ``"d"``, strided tokens (dilated).
        shift: for each axis, at least 0 and below the cuboid's length. After the roll the three stretches of an axis
            that are no neighbours do not see each other.
        padding: what the tokens are that whole cuboids need beyond the grid. ``"ignore"``: masked. ``"zeros"``: keys
            and values of zeros that stay in the softmax, with their bias. ``"nearest"``: queries, keys and values are
            resampled to whole cuboids by the nearest token, and the result back; this is never done by the kernel.
        bias: added to the scores, ``[heads, L, L]`` over query and key tokens of a cuboid, each counted (t, h, w) with
            w fastest; float32, or the dtype of ``qkv``.
        global_query: what attends to the global vectors, ``[B, T, H, W, D]``; the query itself if None.
        global_key: keys of G global vectors, ``[B, G, D]``. They have no bias and no mask.
        global_value: their values, ``[B, G, D]``.
        scale: what scores are multiplied with; by default ``head_size ** -0.5``.
        dropout: the share of weights that are set to 0 after the softmax, the others being divided by one minus it.
        seed: of the dropout, from 0 to below 2^63; the same seed drops the same weights.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes that do not fit, an unknown strategy or padding, or another value out of its range.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    inputs = Inputs(qkv, None, bias, global_query, global_key, global_value)
    return _attend(inputs, Options(heads, cuboid, strategy, shift, padding, scale, dropout, seed))


def cuboid_cross_attention(
    query: Tensor,
    key_value: Tensor,
    *,
    heads: int,
    cuboid: Triple,
    strategy: tuple[str, str, str],
    shift: Triple,
    padding: str = "ignore",
    bias: Tensor | None = None,
    global_query: Tensor | None = None,
    global_key: Tensor | None = None,
    global_value: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Return the attention of every query to all memory frames of its cuboid in H and W, ``[B, Tq, H, W, D]``.

    As :func:`cuboid_attention`, but keys and values come from a memory with as many rows and columns and any number of
    frames. A cuboid holds every frame of both: ``cuboid[0]`` must be at least ``max(Tq, Tm)`` and is clipped to each,
    so ``shift[0]`` and ``strategy[0]`` make no difference.

    Args:
        query: ``[B, Tq, H, W, D]``, float32 or bfloat16.
        key_value: key and value along the last axis, ``[B, Tm, H, W, 2 D]``, dtype of ``query``.
        heads: as there, and so are all others not listed here.
        cuboid: frames (at least ``max(Tq, Tm)``), and tokens along H and W.
        strategy: as there.
        shift: as there.
        padding: as there, along H and W.
        bias: ``[heads, Lq, Lm]`` over the query tokens and the memory tokens of a cuboid.
        global_query: ``[B, Tq, H, W, D]``; ``query`` if None.
        global_key: as there.
        global_value: as there.
        scale: as there.
        dropout: as there.
        seed: as there.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes that do not fit, an unknown strategy or padding, or another value out of its range.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    inputs = Inputs(query, key_value, bias, global_query, global_key, global_value)
    return _attend(inputs, Options(heads, cuboid, strategy, shift, padding, scale, dropout, seed))


def _attend(inputs: Inputs, options: Options) -> Tensor:
    check(inputs, options)
    if options.padding != "nearest":
        return attend(inputs, options)
    problem = make_problem(inputs, options)
    return resample(attend(resampled(inputs, problem), options), problem.query.size)
