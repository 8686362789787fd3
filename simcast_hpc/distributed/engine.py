"""The DeepSpeed engine of a run; its JSON is derived from the run's configuration, never written by hand."""

from typing import Any

import torch

from simcast_hpc.config import ConfigError, EngineConfig, OptimizerConfig, TrainConfig

from .process_group import TorchRanks, import_deepspeed
from .zero_memory import MOST_IN_BUCKET


def deepspeed_config(config: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration of this run on ``world_size`` ranks.

    The learning rate is not in it: it is written into the optimizer's groups as a function of the step.

    Raises:
        ConfigError: the ranks cannot share the global batch, or hierarchical partitioning does not fit them.
    """
    config.engine.reject_ranks(world_size)
    return {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": config.batch.accumulation_steps(world_size),
        "gradient_clipping": config.optimizer.gradient_clip,
        "bf16": {"enabled": config.engine.precision == "bf16"},
        # Micro batches are summed in fp32, so that their number hardly moves a bf16 run.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(config.engine),
        "zero_allow_untested_optimizer": True,
        # With offload DeepSpeed would have its own CPU Adam, which wants a compiler and a minute at the first start.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _zero(engine: EngineConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        # Small tensors are partitioned too, so a small model tests what a large one will do.
        "stage3_param_persistence_threshold": 0,
    }
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if engine.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if engine.zero_hpz_partition_size > 1:
        zero["zero_hpz_partition_size"] = engine.zero_hpz_partition_size
    return zero


def build_engine(module: torch.nn.Module, config: TrainConfig, ranks: TorchRanks) -> Any:
    """Return the DeepSpeed engine around ``module``, with Adam (decoupled weight decay where there is any).

    Raises:
        ConfigError: the ranks cannot share the global batch, or hierarchical partitioning does not fit them.
    """
    derived = deepspeed_config(config, world_size=ranks.size)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("the model has no trainable parameters")
    optimizer = torch.optim.AdamW(
        parameter_groups(module, config.optimizer),
        lr=0.0,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
        # One pass over weights, gradients and moments, where torch's plain step makes a dozen.
        fused=True,
    )
    # DeepSpeed's bucket is this many elements whatever the model has: gigabytes beside a small one.
    trainable = sum(parameter.numel() for parameter in parameters)
    derived["zero_optimization"]["reduce_bucket_size"] = min(trainable, MOST_IN_BUCKET)
    engine, *_ = import_deepspeed().initialize(
        model=module, optimizer=optimizer, model_parameters=parameters, config=derived
    )
    return engine


def parameter_groups(module: torch.nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the trainable parameters of ``module`` in groups of one weight decay each, in the module's order.

    With ``no_decay: norms_and_biases`` the second group has none: layer and group norms, biases, and Earthformer's
    tables of relative bias. A group without members is left out.
    """
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.no_decay is None:
        return [{"params": trainable}]
    of_norms = [parameter for owner in module.modules() if isinstance(owner, norms) for parameter in owner.parameters()]
    biases = [parameter for name, parameter in module.named_parameters() if "bias" in name.split(".")]
    exempt = {id(parameter) for parameter in (*of_norms, *biases)}
    groups = [
        {"params": [one for one in trainable if id(one) not in exempt]},
        {"params": [one for one in trainable if id(one) in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(engine: Any, value: float) -> None:
    """Write the learning rate of the coming optimizer step into every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value
