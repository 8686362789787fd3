"""A model's training state as full fp32 tensors by name, independent of ZeRO stage and number of ranks.

Functions that take an engine are collectives: each rank calls them with the same names in the same order.
"""

from collections.abc import Callable, Iterator
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

    for name, parameter in _parameters(engine):
        if _is_plain(engine):
            state = engine.optimizer.state[parameter]
            yield name, {"param": parameter.data.float(), **{key: state[key] for key in MOMENTS}}
        else:
            moments = {key: _present(safe_get_full_optimizer_state(parameter, key), name) for key in MOMENTS}
            yield name, {"param": _present(safe_get_full_fp32_param(parameter), name), **moments}


def read_parameters(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter's name and fp32 master value, gathered one at a time; clone them before the next step."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in _parameters(engine):
        if _is_plain(engine):
            yield name, parameter.data.float()
        else:
            yield name, _present(safe_get_full_fp32_param(parameter), name)


def is_owner(number: int, *, rank: int, ranks: int) -> bool:
    """Return whether ``rank`` writes the parameter of this ``number`` in the order of the module."""
    return number % ranks == rank


def write_state(engine: Any, lookup: Callable[[str], Tensors], *, step: int, warm_up: Callable[[], Any]) -> None:
    """Write full named tensors into an engine: fp32 master weights, moments, step, forward weights.

    Args:
        engine: a new engine whose learning rate is still 0.
        lookup: maps a name to ``param``, ``exp_avg``, ``exp_avg_sq``, fp32, in the shape of the parameter.
        step: number of optimizer steps of the state.
        warm_up: runs a forward pass and returns its loss, since DeepSpeed allocates optimizer state at the first step.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for _ in range(engine.gradient_accumulation_steps()):
        engine.backward(warm_up() * 0.0)
        engine.step()
    for name, parameter in _parameters(engine):
        tensors = {key: value.to(parameter.device) for key, value in lookup(name).items()}
        if _is_plain(engine):
            parameter.data.copy_(tensors["param"])
            for key in MOMENTS:
                engine.optimizer.state[parameter][key].copy_(tensors[key])
            continue
        if hasattr(parameter, "ds_id"):
            _write_partition(parameter, tensors)
            with GatheredParameters([parameter], modifier_rank=0):  # the forward pass reads another copy
                parameter.data.copy_(tensors["param"])
            continue
        safe_set_full_fp32_param(parameter, tensors["param"])
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, tensors[key], key)
        parameter.data.copy_(tensors["param"])
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        if "step" in state:
            state["step"].fill_(step)


def _write_partition(parameter: Any, tensors: Tensors) -> None:
    """Write this rank's partition of one parameter's state under ZeRO 3.

    The setters of full tensors in DeepSpeed 0.19.8 overrun a tensor whose size is not divisible by the ranks, since
    the last partition is padded; the setters of local partitions take the padded partition.
    """
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param, safe_set_local_optimizer_state

    partition = safe_get_local_fp32_param(parameter).numel()
    first = partition * torch.distributed.get_rank(parameter.ds_process_group)

    def part(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.flatten()[first : first + partition]
        return torch.nn.functional.pad(flat, (0, partition - flat.numel()))

    safe_set_local_fp32_param(parameter, part(tensors["param"]))
    for key in MOMENTS:
        safe_set_local_optimizer_state(parameter, part(tensors[key]), key)


def _parameters(engine: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _present(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    assert tensor is not None, f"DeepSpeed has no state of {name}: a checkpoint requires at least one optimizer step"
    return tensor


def _is_plain(engine: Any) -> bool:
    """Return whether the optimizer is torch's own on full tensors (ZeRO 0 in fp32)."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)
