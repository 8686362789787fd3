"""A model's training state as full fp32 tensors by name, independent of ZeRO stage and number of ranks.

Functions that take an engine are collectives: each rank calls them with the same names in the same order.
"""

from collections.abc import Iterator
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
Tensors = dict[str, torch.Tensor]


def parameter_names(engine: Any) -> list[str]:
    """Return the names of all trainable parameters in the order of the module."""
    return [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def read_state(engine: Any) -> Iterator[tuple[str, Tensors]]:
    """Yield each parameter's name, fp32 master value and Adam moments, gathered one parameter at a time.

    The tensors may alias live memory: clone them before the next step.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in trainable(engine):
        if is_plain(engine):
            state = engine.optimizer.state[parameter]
            yield name, {"param": parameter.data.float(), **{key: state[key] for key in MOMENTS}}
        else:
            moments = {key: _present(safe_get_full_optimizer_state(parameter, key), name) for key in MOMENTS}
            yield name, {"param": _present(safe_get_full_fp32_param(parameter), name), **moments}


def read_parameters(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter's name and fp32 master value, gathered one at a time; clone them before the next step."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in trainable(engine):
        if is_plain(engine):
            yield name, parameter.data.float()
        else:
            yield name, _present(safe_get_full_fp32_param(parameter), name)


def trainable(engine: Any) -> Iterator[tuple[str, Any]]:
    """Return the trainable parameters with their names, in the order of the module."""
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _present(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    assert tensor is not None, f"DeepSpeed has no state of {name}: a checkpoint requires at least one optimizer step"
    return tensor


def is_plain(engine: Any) -> bool:
    """Return whether the optimizer is torch's own on full tensors (ZeRO 0 in fp32)."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)
