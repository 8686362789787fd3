"""What a rank holds of a model in training, by ZeRO's own account."""

from dataclasses import dataclass

from simcast_hpc.config import EngineConfig

_FP32 = 4
_MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Bytes on one rank: weights that forward reads, gradients, and what Adam keeps (fp32 masters and two moments)."""

    weights: int
    gradients: int
    optimizer: int


def rank_bytes(parameters: int, *, engine: EngineConfig, world_size: int) -> RankBytes:
    """Return what each of ``world_size`` ranks holds of a model in training.

    Stage 1 shares out what Adam keeps, stage 2 the gradients too, stage 3 the weights too. Micro batches are summed
    in fp32. Buffers of communication, activations and what the allocator holds back are not in it.

    Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
    (arXiv 1910.02054), section 3 and figure 1, with fp32 gradients.
    """
    stage, own = engine.zero_stage, -(-parameters // world_size)
    wide = _FP32 if engine.precision == "fp32" else 2
    master = 0 if stage == 0 else _FP32  # without ZeRO the fp32 weights are their own masters
    return RankBytes(
        weights=wide * (own if stage >= 3 else parameters),
        gradients=_FP32 * (own if stage >= 2 else parameters),
        optimizer=(master + _MOMENTS * _FP32) * (own if stage >= 1 else parameters),
    )
