"""The reduced gradients of an optimizer step, as each ZeRO stage holds them: looked at, or thrown away.

DeepSpeed 0.19.8 does not say what it does with a gradient that is no number: it leaves the step out in silence, or
applies it (bf16 with ZeRO 2, and ZeRO 0). So the gradients are looked at before the step, and every stage does what
the run's configuration says.
"""

from typing import Any

import torch


def gradients_are_finite(engine: Any) -> torch.Tensor:
    """Return whether this rank's share of the reduced gradients is finite, a bool tensor on the device.

    To be called after the backward pass of a step's last micro batch. One pass over the gradients, no wait.
    """
    gradients = _reduced(engine)
    if not gradients:
        return torch.tensor(True)
    return torch.isfinite(torch.nn.utils.get_total_norm(gradients, float("inf")))


def leave_out_step(engine: Any) -> None:
    """Count the optimizer step that is due without changing weights, moments or Adam's own step. A collective."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        for gradient in _reduced(engine):
            gradient.zero_()  # DeepSpeed clips what it finds
        held = [group["params"] for group in optimizer.param_groups]
        try:
            for group in optimizer.param_groups:
                group["params"] = []
            engine.step()
        finally:
            for group, parameters in zip(optimizer.param_groups, held, strict=True):
                group["params"] = parameters
        return
    # What is not finite on every rank takes DeepSpeed's own path of an overflow, which clears every buffer.
    spoilt = _reduced(engine)
    for gradient in spoilt:
        gradient.fill_(float("nan"))
    if hasattr(optimizer, "norm_for_param_grads"):  # with the optimizer on the host the norm was taken before
        optimizer.local_overflow = True
        optimizer.norm_for_param_grads = dict.fromkeys(optimizer.norm_for_param_grads, torch.tensor(float("nan")))
    asked = getattr(optimizer, "check_grad_overflow", None)
    optimizer.check_grad_overflow = True
    try:
        engine.step()
    finally:
        optimizer.check_grad_overflow = asked
        for gradient in spoilt:  # ZeRO 3 never writes into the padding of a last partition, but does read it
            gradient.zero_()
        if getattr(
            optimizer, "cpu_offload", False
        ):  # the device's fp32 sums, which only the path without offload drops
            optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
    assert optimizer.overflow, "DeepSpeed applied a step that was to be left out"


def _reduced(engine: Any) -> list[torch.Tensor]:
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        parameters = engine.module.parameters()
    elif hasattr(optimizer, "fp32_groups_gradients_flat"):  # bf16 with ZeRO 1: whole on every rank
        return list(optimizer.fp32_groups_gradients_flat)
    elif getattr(optimizer, "cpu_offload", False):
        parameters = optimizer.single_partition_of_fp32_groups
    elif getattr(optimizer, "offload_optimizer", False):
        parameters = optimizer.fp32_partitioned_groups_flat
    else:
        groups = [group for group in optimizer.averaged_gradients.values() if group is not None]
        return [gradient for group in groups for gradient in group if gradient is not None]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
