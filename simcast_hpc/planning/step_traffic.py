"""Bytes and collectives of an optimizer step between ranks, from the number of parameters and the ZeRO stage.

They follow the behavior of DeepSpeed 0.19.8, counted by ``benchmarks.collective_counts`` and on the wire by
``benchmarks.scaling``. Stages 1 and 2 reduce by an all-reduce instead of the ZeRO paper's reduce-scatter; stage 3 keeps
up to 1e9 weights from forward to backward, so a smaller model is gathered once per micro-batch, not twice.

Rajbhandari et al., "ZeRO" (arXiv 1910.02054), section 7: twice the parameters for stages 0 to 2, three times for stage
3; Wang et al., "ZeRO++" (arXiv 2306.10209), section 3.2: with hpZ one gather of stage 3 stays inside the partition.
"""

from dataclasses import dataclass
from math import ceil

from simcast_hpc.config import EngineConfig
from simcast_hpc.config.deepspeed_fields import zero_option
from simcast_hpc.distributed.zero_memory import MAX_GATHERED_ELEMENTS, bucket_elements

_PREFETCHED_ELEMENTS = 50_000_000
"""Elements that ZeRO 3 gathers at once, DeepSpeed's default of ``stage3_prefetch_bucket_size``."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of full tensors by collective in which a rank takes part in a step, and the number of collectives.

    ``gathered_inside`` is gathered only among the ranks of a hierarchical partition. ``rings`` is the number of
    all-gathers and reduce-scatters, ``reductions`` that of all-reduces.
    """

    reduced: float = 0.0
    scattered: float = 0.0
    gathered: float = 0.0
    gathered_inside: float = 0.0
    rings: int = 0
    reductions: int = 0


def traffic(parameters: int, *, engine: EngineConfig, accumulation: int, paper: bool = False) -> Traffic:
    """Return the collectives of an optimizer step.

    Args:
        parameters: number of parameters of the model.
        engine: stage, precision, data type of the reduction, hierarchical partition, and sizes of buckets.
        accumulation: micro-batches per step.
        paper: follow the ZeRO paper instead of DeepSpeed 0.19.8.
    """
    fp32 = engine.precision == "fp32"
    weights = (4 if fp32 else 2) * parameters
    gradients = (4 if fp32 or engine.gradient_reduction == "fp32" else 2) * parameters
    buckets, stage = ceil(parameters / bucket_elements(engine)), engine.zero_stage
    if stage == 0:
        return Traffic(reduced=gradients, reductions=buckets)
    if stage < 3:
        times = accumulation if stage == 2 else 1
        if paper:
            return Traffic(scattered=times * gradients, gathered=weights, rings=times * buckets + 1)
        return Traffic(reduced=times * gradients, gathered=weights, rings=1, reductions=times * buckets)
    most = zero_option(engine.deepspeed, "stage3_max_live_parameters", MAX_GATHERED_ELEMENTS)
    second_gather = 1 if paper or parameters > most else 0
    inside = engine.zero_hpz_partition_size > 1
    at_once = zero_option(engine.deepspeed, "stage3_prefetch_bucket_size", _PREFETCHED_ELEMENTS)
    gathers = ceil(parameters / max(1, at_once))
    return Traffic(
        scattered=accumulation * gradients,
        gathered=accumulation * weights * (1 if inside else 1 + second_gather),
        gathered_inside=accumulation * weights * second_gather if inside else 0.0,
        rings=accumulation * (buckets + (1 + second_gather) * gathers),
    )


def sent_bytes_per_rank(one: Traffic, *, ranks: int, partition: int = 1, gloo: bool = False) -> float:
    """Return the bytes that a rank sends in rings of all ranks, or of ``partition`` ranks for ``gathered_inside``.

    With ``gloo`` a reduce-scatter is an all-reduce of which each rank keeps its part (counted on the wire).
    """
    share = (ranks - 1) / ranks
    inside = (partition - 1) / partition
    scattered = (2 if gloo else 1) * one.scattered
    return share * (2 * one.reduced + scattered + one.gathered) + inside * one.gathered_inside
