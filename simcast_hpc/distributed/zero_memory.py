"""Memory per rank of a model in training: the partitions of ZeRO, and the buffers that DeepSpeed adds."""

from dataclasses import dataclass

from simcast_hpc.config import EngineConfig
from simcast_hpc.config.deepspeed_fields import zero_option

_FP32 = 4
_MOMENTS = 2
MAX_BUCKET_ELEMENTS, MAX_GATHERED_ELEMENTS = 500_000_000, 1_000_000_000
"""Maximum elements of DeepSpeed's gradient bucket, and of the weights that ZeRO 3 keeps gathered (its defaults)."""


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Bytes on the device of one rank: weights, gradients and Adam's state (fp32 master weights and two moments)."""

    weights: int
    gradients: int
    optimizer: int


@dataclass(frozen=True, kw_only=True)
class WorkingBytes:
    """Further bytes of one rank: DeepSpeed's buffers on the device, and what offload keeps on the host.

    Attributes:
        buckets: gradients that are being reduced.
        gathered: full weights that ZeRO 3 has gathered.
        hierarchical: this rank's partition of the secondary copy of the weights (hpZ).
        host: master weights, moments, gradients and staged weights under offload.
    """

    buckets: int
    gathered: int
    hierarchical: int
    host: int


def rank_bytes(parameters: int, *, engine: EngineConfig, world_size: int) -> RankBytes:
    """Return the bytes of a model in training on the device of each of ``world_size`` ranks.

    Stage 1 partitions Adam's state, stage 2 also the gradients, stage 3 also the weights. Gradients are accumulated in
    fp32. Offload moves Adam's state to the host, and the accumulated gradients too if they have the dtype of the
    weights or are partitioned (ZeRO 3). Not included: :func:`working_bytes`, activations, the allocator's cache.

    Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
    (arXiv 1910.02054), section 3 and figure 1, with fp32 gradients; Ren et al., "ZeRO-Offload" (arXiv 2101.06840).
    """
    stage, own = engine.zero_stage, -(-parameters // world_size)
    element, offloaded = _element_bytes(engine), engine.offload != "none"
    master = 0 if stage == 0 else _FP32  # without ZeRO the weights are fp32 and need no master copy
    gradients = own if stage >= 2 or offloaded else parameters
    if offloaded and (stage == 3 or engine.precision == "fp32"):
        gradients = 0
    weights = own if stage >= 3 else parameters
    return RankBytes(
        weights=0 if engine.offload == "parameters" else element * weights,
        gradients=_FP32 * gradients,
        optimizer=0 if offloaded else (master + _MOMENTS * _FP32) * (own if stage >= 1 else parameters),
    )


def working_bytes(parameters: int, *, engine: EngineConfig, world_size: int) -> WorkingBytes:
    """Return the bytes that DeepSpeed 0.19.8 uses in addition to :func:`rank_bytes` at the end of a backward pass.

    The bucket has as many elements as there are gradients, at most 5e8 or
    ``engine.deepspeed.zero_optimization.reduce_bucket_size``. For its reduction stage 2, and stage 1 with offload, copy
    it to one flat tensor, and in bf16 with an fp32 reduction to fp32 too; stage 3 has it in the dtype of the reduction.
    Stage 1 in fp32 copies the gradients bucket by bucket. In bf16 with stage 1 the gradients exist next to their fp32
    sums. ZeRO 3 keeps up to 1e9 weights gathered between forward and backward. The host holds master weights, moments,
    fp32 gradients and weights that are being transferred.
    """
    stage, own, element = engine.zero_stage, -(-parameters // world_size), _element_bytes(engine)
    offloaded = engine.offload != "none"
    reduced = _FP32 if engine.gradient_reduction == "fp32" else element
    per_element, bucket = element, min(parameters, bucket_elements(engine))
    if stage == 3:
        per_element = reduced
    elif stage == 2 or (stage == 1 and offloaded):
        per_element = 2 * element + (reduced if stage == 2 and reduced != element else 0)
    buckets = per_element * bucket
    if stage == 1 and not offloaded:  # in fp32 a flat copy is followed by the sums of this rank
        buckets = element * parameters if engine.precision == "bf16" else _FP32 * max(own, bucket)
    host = 0
    if offloaded:
        host = (_FP32 * (1 + _MOMENTS + 1) + (_FP32 if stage == 3 else element)) * own
    if engine.offload == "parameters":
        host += element * own
    hierarchical = 0
    if engine.zero_hpz_partition_size > 1:
        hierarchical = element * -(-parameters // engine.zero_hpz_partition_size)
        if engine.offload == "parameters":
            host, hierarchical = host + hierarchical, 0
    return WorkingBytes(
        buckets=buckets,
        gathered=element * min(parameters, MAX_GATHERED_ELEMENTS) if stage == 3 else 0,
        hierarchical=hierarchical,
        host=host,
    )


def bucket_elements(engine: EngineConfig) -> int:
    """Return the largest number of elements in DeepSpeed's gradient bucket."""
    return int(zero_option(engine.deepspeed, "reduce_bucket_size", MAX_BUCKET_ELEMENTS))


def _element_bytes(engine: EngineConfig) -> int:
    """Return the bytes of a weight in the precision of training."""
    return _FP32 if engine.precision == "fp32" else 2
