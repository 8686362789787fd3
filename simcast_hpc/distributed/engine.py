"""The DeepSpeed engine of a run; its configuration is derived from the run's configuration."""

from typing import Any

import torch

from simcast_hpc.config import ConfigError, EngineConfig, OptimizerConfig, TrainConfig

from .deepspeed_options import with_options
from .parameter_alignment import needs_padding, padded_groups, zero_alignment
from .process_group import TorchRanks, import_deepspeed
from .zero_memory import bucket_elements


def deepspeed_config(config: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a run on ``world_size`` ranks.

    It contains no learning rate: :func:`set_learning_rate` writes it into the parameter groups at every step.

    Raises:
        ConfigError: the global batch or the hierarchical partition is not divisible by the ranks, or an option of
            ``engine.deepspeed`` is invalid.
    """
    config.engine.reject_ranks(world_size)
    groups = config.parallel.groups(world_size)
    derived = {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": config.batch.accumulation_steps(groups),
        "gradient_clipping": config.optimizer.gradient_clip,
        "bf16": {"enabled": config.engine.precision == "bf16"},
        # Gradients are accumulated in fp32, so that the number of micro-batches hardly changes a bf16 run.
        "data_types": {"grad_accum_dtype": "fp32"},
        # A sum over n ranks in a ring is rounded n times: in bf16 its error grows with the ranks.
        "communication_data_type": config.engine.gradient_reduction,
        "zero_optimization": _zero(config.engine),
        "zero_allow_untested_optimizer": True,
        # With offload, DeepSpeed would use its own CPU Adam, which must be compiled at the first start (one minute).
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return with_options(derived, config.engine.deepspeed)


def _zero(engine: EngineConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        # Small tensors are partitioned too. DeepSpeed gathers many partitioned tensors in one collective, but tensors
        # below its default of 1e5 elements one by one after each step: 148 more collectives for a SimVP of 5 M.
        "stage3_param_persistence_threshold": 0,
        **zero_alignment(engine),
    }
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if engine.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if engine.zero_hpz_partition_size > 1:
        zero["zero_hpz_partition_size"] = engine.zero_hpz_partition_size
    return zero


def build_engine(module: torch.nn.Module, config: TrainConfig, ranks: TorchRanks, *, unit: Any = None) -> Any:
    """Return the DeepSpeed engine of ``module`` with the AdamW optimizer.

    ``unit`` is DeepSpeed's ``mpu``: with spatial sharding that of ``spatial_groups.py``.

    Raises:
        ConfigError: the global batch or the hierarchical partition is not divisible by the ranks.
    """
    ds_config = deepspeed_config(config, world_size=ranks.size)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("the model has no trainable parameters")
    # DeepSpeed allocates the bucket in full, also for a small model: gigabytes.
    trainable = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
    ds_config["zero_optimization"]["reduce_bucket_size"] = min(trainable, bucket_elements(config.engine))
    groups = parameter_groups(module, config.optimizer)
    with padded_groups(module, groups, pad=needs_padding(config.engine, world_size=ranks.size)) as aligned:
        optimizer = torch.optim.AdamW(
            aligned,
            lr=0.0,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            # One pass over weights, gradients and moments instead of a dozen.
            fused=True,
        )
        engine, *_ = import_deepspeed().initialize(
            model=module, optimizer=optimizer, model_parameters=parameters, config=ds_config, mpu=unit
        )
    _link_moments_of_all_groups(engine.optimizer)
    return engine


def _link_moments_of_all_groups(optimizer: Any) -> None:
    """Link the moments of every parameter group to its parameters, which checkpoints read.

    DeepSpeed 0.19.8 links them once, under ZeRO 1 and 2 after the step of the first group, when those of the other
    groups do not exist yet.
    """
    partitions = getattr(optimizer, "single_partition_of_fp32_groups", None)
    if partitions is None:
        return
    link = optimizer._lazy_init_hp_params_optimizer_state

    def link_if_complete() -> None:
        if all(optimizer.optimizer.state.get(partition) for partition in partitions):
            link()

    optimizer._lazy_init_hp_params_optimizer_state = link_if_complete


def parameter_groups(module: torch.nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the trainable parameters of ``module`` grouped by weight decay, in the order of the module.

    With ``no_decay: norms_and_biases`` the second group has no decay: layer and group norms, biases, and Earthformer's
    relative position bias tables. Empty groups are omitted.
    """
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.no_decay is None:
        return [{"params": trainable}]
    norm_parameters = [
        parameter for owner in module.modules() if isinstance(owner, norms) for parameter in owner.parameters()
    ]
    biases = [parameter for name, parameter in module.named_parameters() if "bias" in name.split(".")]
    exempt = {id(parameter) for parameter in (*norm_parameters, *biases)}
    groups = [
        {"params": [parameter for parameter in trainable if id(parameter) not in exempt]},
        {"params": [parameter for parameter in trainable if id(parameter) in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(engine: Any, value: float, *, betas: tuple[float, float] | None = None) -> None:
    """Write learning rate and, if given, Adam's decay rates of the next optimizer step into all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value
        if betas is not None:
            group["betas"] = betas
