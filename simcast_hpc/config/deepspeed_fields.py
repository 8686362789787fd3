"""Options of DeepSpeed that are passed through (``engine.deepspeed``), and those that fields of this project set."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

_ZERO = "zero_optimization"
# Key of DeepSpeed -> what to set instead. A key covers everything below it.
_SET_BY_FIELDS = {
    "train_batch_size": "set batch.global_size",
    "train_micro_batch_size_per_gpu": "set batch.micro_size",
    "gradient_accumulation_steps": "set batch.global_size and batch.micro_size, from which it follows",
    "managed_gradient_accumulation": "remove it: the training loop counts micro-batches",
    "gradient_clipping": "set optimizer.gradient_clip",
    "optimizer": "set the fields of the section optimizer",
    "scheduler": "set optimizer.schedule",
    "communication_data_type": "set engine.gradient_reduction",
    "seq_parallel_communication_data_type": "set engine.gradient_reduction",
    "gradient_allreduce_op": "remove it: gradients are averaged",
    "data_types": "set engine.precision",
    "fp16": "set engine.precision (bf16 or fp32)",
    "amp": "set engine.precision",
    "torch_autocast": "set engine.precision",
    "bf16": "set engine.precision",
    "zero_allow_untested_optimizer": "remove it: the optimizer is torch's AdamW",
    "zero_force_ds_cpu_optimizer": "remove it: the optimizer is torch's AdamW",
    "sparse_gradients": "remove it: no model has sparse gradients",
    f"{_ZERO}.stage": "set engine.zero_stage",
    f"{_ZERO}.zero_hpz_partition_size": "set engine.zero_hpz_partition_size",
    f"{_ZERO}.offload_optimizer.device": "set engine.offload",
    f"{_ZERO}.offload_param.device": "set engine.offload",
    f"{_ZERO}.cpu_offload": "set engine.offload",
    f"{_ZERO}.cpu_offload_param": "set engine.offload",
    f"{_ZERO}.zenflow": "remove it: it changes the optimizer, and checkpoints do not contain its state",
    f"{_ZERO}.mics_shard_size": "set engine.zero_hpz_partition_size: DeepSpeed 0.19 has no MiCS",
    f"{_ZERO}.mics_hierarchical_params_gather": "set engine.zero_hpz_partition_size: DeepSpeed 0.19 has no MiCS",
}
# Quantized communication (ZeRO++) changes values, not only the order of sums: part of the identity of a run.
_SCIENTIFIC = tuple(
    f"{_ZERO}.{name}"
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
)


def reject_owned(options: Mapping[str, Any], *, offload: str) -> None:
    """Raise an error if ``engine.deepspeed`` sets what a field of the configuration sets, or has an invalid value.

    Args:
        options: the mapping ``engine.deepspeed``.
        offload: ``engine.offload``, which the options of offloading require.

    Raises:
        ValueError: names the key, its value and the field to use.
    """
    for key, value in _leaves(options):
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            if instead := _SET_BY_FIELDS.get(".".join(parts[:length])):
                raise ValueError(f"engine.deepspeed.{key}={value!r} is not passed to DeepSpeed; {instead}")
        for section, valid in (("offload_optimizer", ("optimizer", "parameters")), ("offload_param", ("parameters",))):
            if parts[:2] == [_ZERO, section] and offload not in valid:
                raise ValueError(
                    f"engine.deepspeed.{key}={value!r} requires engine.offload={' or '.join(valid)} (got {offload})"
                )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"engine.deepspeed.{key}={value!r} is not a finite number")


def scientific_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide the result of a run, by dotted key: quantized communication that is enabled."""
    return {f"engine.deepspeed.{key}": value for key, value in _leaves(options) if key in _SCIENTIFIC and value}


def zero_option(options: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return an option of ``engine.deepspeed.zero_optimization``."""
    section = options.get(_ZERO)
    return section.get(name, default) if isinstance(section, Mapping) else default


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of everything that is not a non-empty mapping."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{above}{key}.")
        else:
            yield f"{above}{key}", item
