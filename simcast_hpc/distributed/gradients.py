"""Check the reduced gradients of an optimizer step, or discard them, under every ZeRO stage.

DeepSpeed 0.19.8 skips a step with non-finite gradients silently, or applies it (bf16 with ZeRO 2, and ZeRO 0). So the
gradients are checked before the step, and every stage follows the run's configuration.
"""

from typing import Any

import torch


def gradients_are_finite(engine: Any) -> torch.Tensor:
    """Return whether this rank's partition of the reduced gradients is finite, a bool tensor on the device.

    Call it after the backward pass of the last micro-batch of a step. One pass over the gradients; it waits for the
    device only where gradients are offloaded (ZeRO 1 and 2).
    """
    gradients = _reduced_gradients(engine)
    if not gradients:
        return torch.tensor(True)
    return torch.isfinite(torch.nn.utils.get_total_norm(gradients, float("inf")))


def skip_step(engine: Any) -> None:
    """Count an optimizer step without changing weights, moments or Adam's step. A collective."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        for gradient in _reduced_gradients(engine):
            gradient.zero_()  # DeepSpeed would clip NaN
        parameters = [group["params"] for group in optimizer.param_groups]
        try:
            for group in optimizer.param_groups:
                group["params"] = []
            engine.step()
        finally:
            for group, members in zip(optimizer.param_groups, parameters, strict=True):
                group["params"] = members
        return
    # Non-finite gradients on every rank make DeepSpeed handle an overflow, which clears every buffer.
    gradients = _reduced_gradients(engine)
    for gradient in gradients:
        gradient.fill_(float("nan"))
    if hasattr(optimizer, "norm_for_param_grads"):  # with offload the norm was computed during the backward pass
        optimizer.local_overflow = True
        optimizer.norm_for_param_grads = dict.fromkeys(optimizer.norm_for_param_grads, torch.tensor(float("nan")))
    checks_overflow = getattr(optimizer, "check_grad_overflow", None)
    optimizer.check_grad_overflow = True
    try:
        engine.step()
    finally:
        optimizer.check_grad_overflow = checks_overflow
        for gradient in gradients:  # ZeRO 3 never writes the padding of the last partition, but reads it
            gradient.zero_()
        if getattr(optimizer, "cpu_offload", False):  # fp32 sums on the device, which DeepSpeed keeps with offload
            optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
    assert optimizer.overflow, "DeepSpeed applied a step that was to be skipped"


def _reduced_gradients(engine: Any) -> list[torch.Tensor]:
    """Return the reduced gradients where each ZeRO stage stores them."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        parameters = engine.module.parameters()
    elif hasattr(optimizer, "fp32_groups_gradients_flat"):  # bf16 with ZeRO 1: not partitioned
        return list(optimizer.fp32_groups_gradients_flat)
    elif getattr(optimizer, "cpu_offload", False):
        # DeepSpeed copies gradients to the host in the background and waits only in its own step: before that, they
        # may be those of the previous step, and a copy that arrives later would overwrite what is written here.
        optimizer._wait_for_offload_copies()
        parameters = optimizer.single_partition_of_fp32_groups
    elif getattr(optimizer, "offload_optimizer", False):
        parameters = optimizer.fp32_partitioned_groups_flat
    else:
        groups = [group for group in optimizer.averaged_gradients.values() if group is not None]
        return [gradient for group in groups for gradient in group if gradient is not None]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
