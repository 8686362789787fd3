"""``cuboid_attention``: Earthformer's attention within space-time cuboids, with global vectors.

Source: Gao et al., Earthformer (2022), sections 3.1 and 3.2, with padding, shift, dilation and relative position bias
as in its public implementation.
"""

from torch import Tensor

from .checks import check
from .geometry import Inputs, Options, Triple, make_problem
from .operators import attend
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
    offset: Triple = (0, 0, 0),
    domain: Triple | None = None,
) -> Tensor:
    """Return the attention of every token to the tokens of its cuboid and to the global vectors, ``[B, T, H, W, D]``.

    The grid ``[T, H, W]`` is padded at the end of each axis to a multiple of the cuboid, rolled by ``-shift`` and split
    into cuboids. The kernel does this by index arithmetic and reads ``qkv`` in place. A cuboid at least as long as its
    axis covers the complete axis, without a shift; a dilated axis is never shifted. L below is the number of tokens of
    the cuboid after this clipping.

    Only the inputs are saved for the backward pass, which recomputes the weights. Result and gradients are bitwise
    reproducible on one device. Autocast does not affect the op. In the kernel a NaN in a value reaches the cuboids that
    share its tile (up to 16 tokens together), in the reference only its own cuboid.

    Args:
        qkv: query, key and value along the last axis, ``[B, T, H, W, 3 D]``, each ``heads`` times the head size;
            float32, bfloat16 or float64. The result has its dtype; computation is in float32, of float64 in float64 and
            always by the reference.
        heads: number of heads; divides D.
        cuboid: tokens of a cuboid along T, H, W.
        strategy: for each axis ``"l"``, contiguous tokens (local), or ``"d"``, strided tokens (dilated).
        shift: for each axis, at least 0 and less than the length of the cuboid. After the roll, tokens of an axis that
            were not adjacent before do not attend to each other.
        padding: treatment of the tokens added by padding. ``"ignore"``: masked. ``"zeros"``: keys and values of zeros
            that stay in the softmax, with their bias. ``"nearest"``: queries, keys and values are resampled to the
            padded size by nearest neighbor and the result back; always computed by the reference.
        bias: added to the scores, ``[heads, L, L]`` over query and key tokens of a cuboid, numbered (t, h, w) with
            w fastest; float32, or the dtype of ``qkv``.
        global_query: query for the global vectors, ``[B, T, H, W, D]``; default: the query itself.
        global_key: keys of G global vectors, ``[B, G, D]``. They have no bias and no mask.
        global_value: values of the global vectors, ``[B, G, D]``.
        scale: factor of the scores; default ``head_size ** -0.5``.
        dropout: fraction of the weights set to 0 after the softmax; the others are divided by ``1 - dropout``.
        seed: of the dropout, in [0, 2^63); the same seed drops the same weights.
        offset: position of the first token of this grid in ``domain``, along T, H, W. With the grid of a shard, the
            dropout of its weights is that of the complete domain, if its cuboids are cuboids of the domain.
        domain: tokens along T, H, W of the grid of which this one is a part; default: this grid.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes that do not match, an unknown strategy or padding, or another value out of range.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    inputs = Inputs(qkv, None, bias, global_query, global_key, global_value)
    return _attend(inputs, Options(heads, cuboid, strategy, shift, padding, scale, dropout, seed, offset, domain))


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
    offset: Triple = (0, 0, 0),
    domain: Triple | None = None,
) -> Tensor:
    """Return the attention of every query to all memory frames of its cuboid in H and W, ``[B, Tq, H, W, D]``.

    As :func:`cuboid_attention`, with keys and values from a memory with the same H and W and any number of frames. A
    cuboid contains every frame of both: ``cuboid[0]`` must be at least ``max(Tq, Tm)`` and is clipped to each, so
    ``shift[0]`` and ``strategy[0]`` have no effect.

    Args:
        query: ``[B, Tq, H, W, D]``, float32, bfloat16 or float64.
        key_value: key and value along the last axis, ``[B, Tm, H, W, 2 D]``, dtype of ``query``.
        heads: as in :func:`cuboid_attention`.
        cuboid: frames (at least ``max(Tq, Tm)``), and tokens along H and W.
        strategy: as in :func:`cuboid_attention`.
        shift: as in :func:`cuboid_attention`.
        padding: as in :func:`cuboid_attention`, along H and W.
        bias: ``[heads, Lq, Lm]`` over the query tokens and the memory tokens of a cuboid.
        global_query: ``[B, Tq, H, W, D]``; default: ``query``.
        global_key: as in :func:`cuboid_attention`.
        global_value: as in :func:`cuboid_attention`.
        scale: as in :func:`cuboid_attention`.
        dropout: as in :func:`cuboid_attention`.
        seed: as in :func:`cuboid_attention`.
        offset: as in :func:`cuboid_attention`, of the queries.
        domain: as in :func:`cuboid_attention`, of the queries.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes that do not match, an unknown strategy or padding, or another value out of range.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    inputs = Inputs(query, key_value, bias, global_query, global_key, global_value)
    return _attend(inputs, Options(heads, cuboid, strategy, shift, padding, scale, dropout, seed, offset, domain))


def _attend(inputs: Inputs, options: Options) -> Tensor:
    check(inputs, options)
    if options.padding != "nearest":
        return attend(inputs, options)
    problem = make_problem(inputs, options)
    return resample(attend(resampled(inputs, problem), options), problem.query.size)
