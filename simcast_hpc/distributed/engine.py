"""The DeepSpeed engine of a run; its JSON is derived from the run's configuration, never written by hand."""

from typing import Any

import torch

from simcast_hpc.config import ConfigError, TrainConfig

from .world import World, import_deepspeed


def deepspeed_config(config: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration of this run on ``world_size`` ranks.

    The learning rate is not in it: it is written into the optimizer's groups as a function of the step.

    Raises:
        ConfigError: the ranks cannot share the global batch.
    """
    return {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": config.batch.accumulation_steps(world_size),
        "gradient_clipping": config.optimizer.gradient_clip,
        "bf16": {"enabled": config.engine.precision == "bf16"},
        # Micro batches are summed in fp32, so that their number hardly moves a bf16 run.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            # Small tensors are partitioned too, so a small model tests what a large one will do.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def build_engine(module: torch.nn.Module, config: TrainConfig, world: World) -> Any:
    """Return the DeepSpeed engine around ``module``, with Adam (decoupled weight decay where there is any).

    Raises:
        ConfigError: the ranks cannot share the global batch.
    """
    derived = deepspeed_config(config, world_size=world.place.world_size)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("the model has no trainable parameters")
    optimizer = torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    engine, *_ = import_deepspeed().initialize(
        model=module, optimizer=optimizer, model_parameters=parameters, config=derived
    )
    return engine


def set_learning_rate(engine: Any, value: float) -> None:
    """Write the learning rate of the coming optimizer step into every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value
