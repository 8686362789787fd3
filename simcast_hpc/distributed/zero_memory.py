"""What a rank holds of a model in training, by ZeRO's own account and by what DeepSpeed adds to it."""

from dataclasses import dataclass

from simcast_hpc.config import EngineConfig

_FP32 = 4
_MOMENTS = 2
MOST_IN_BUCKET, MOST_GATHERED = 500_000_000, 1_000_000_000
"""Elements of DeepSpeed's bucket of gradients, and of weights that ZeRO 3 keeps gathered at most (its defaults)."""


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Bytes on one rank's device: weights, gradients, and what Adam keeps (fp32 masters and two moments)."""

    weights: int
    gradients: int
    optimizer: int


@dataclass(frozen=True, kw_only=True)
class WorkingBytes:
    """Bytes on one rank besides: what DeepSpeed works with on the device, and what offload keeps on the host.

    Attributes:
        buckets: gradients on their way to be reduced.
        gathered: whole weights that ZeRO 3 has brought together.
        hierarchical: this rank's part of the second copy of the weights, of hpZ.
        host: masters, moments, gradients and staged weights under offload.
    """

    buckets: int
    gathered: int
    hierarchical: int
    host: int


def rank_bytes(parameters: int, *, engine: EngineConfig, world_size: int) -> RankBytes:
    """Return what each of ``world_size`` ranks holds of a model in training, on its device.

    Stage 1 shares out what Adam keeps, stage 2 the gradients too, stage 3 the weights too. Micro batches are summed
    in fp32. Offload moves what Adam keeps to the host, and the sums of gradients where they are in the weights' own
    dtype, or where ZeRO 3 shares them out. What stands in :func:`working_bytes`, activations and what the allocator
    holds back are not in it.

    Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
    (arXiv 1910.02054), section 3 and figure 1, with fp32 gradients; Ren et al., "ZeRO-Offload" (arXiv 2101.06840).
    """
    stage, own = engine.zero_stage, -(-parameters // world_size)
    wide, moved = _wide(engine), engine.offload != "none"
    master = 0 if stage == 0 else _FP32  # without ZeRO the fp32 weights are their own masters
    gradients = own if stage >= 2 or moved else parameters
    if moved and (stage == 3 or engine.precision == "fp32"):
        gradients = 0
    weights = own if stage >= 3 else parameters
    return RankBytes(
        weights=0 if engine.offload == "parameters" else wide * weights,
        gradients=_FP32 * gradients,
        optimizer=0 if moved else (master + _MOMENTS * _FP32) * (own if stage >= 1 else parameters),
    )


def working_bytes(parameters: int, *, engine: EngineConfig, world_size: int) -> WorkingBytes:
    """Return what DeepSpeed 0.19.8 holds besides :func:`rank_bytes` at the end of a backward pass, as seen there.

    Its bucket holds as many gradients as there are, 5e8 at most (``distributed/engine.py`` sets it so). In bf16 with
    stage 1 the gradients themselves stand beside their fp32 sums. ZeRO 3 keeps up to 1e9 weights gathered from
    forward to backward. The host holds masters, moments, fp32 gradients and weights on their way to the device.
    """
    stage, own, wide = engine.zero_stage, -(-parameters // world_size), _wide(engine)
    moved = engine.offload != "none"
    buckets = wide * min(parameters, MOST_IN_BUCKET)
    if stage == 1 and not moved:  # in fp32 the gradients stand in the bucket, and this rank's sums beside them
        buckets = wide * parameters if engine.precision == "bf16" else _FP32 * own
    host = 0
    if moved:
        host = (_FP32 * (1 + _MOMENTS + 1) + (_FP32 if stage == 3 else wide)) * own
    if engine.offload == "parameters":
        host += wide * own
    hierarchical = 0
    if engine.zero_hpz_partition_size > 1:
        hierarchical = wide * -(-parameters // engine.zero_hpz_partition_size)
        if engine.offload == "parameters":
            host, hierarchical = host + hierarchical, 0
    return WorkingBytes(
        buckets=buckets,
        gathered=wide * min(parameters, MOST_GATHERED) if stage == 3 else 0,
        hierarchical=hierarchical,
        host=host,
    )


def _wide(engine: EngineConfig) -> int:
    return _FP32 if engine.precision == "fp32" else 2
