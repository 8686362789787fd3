"""Classifier-free guidance (Ho and Salimans 2022): combine conditional and unconditional predictions."""

import torch
from torch import Tensor

from .counter_noise import BatchNoise


def drop_condition(condition: Tensor, noise: BatchNoise, probability: float) -> Tensor:
    """Return the condition with randomly selected samples set to zero (Algorithm 1, line 3).

    CasCast selects complete batches; selecting samples keeps the loss independent of the batch size.

    Args:
        condition: ``[B, ...]``.
        noise: random numbers of the batch.
        probability: fraction of samples to drop, in [0, 1).

    Raises:
        ValueError: the probability is not in [0, 1).
    """
    if not 0 <= probability < 1:
        raise ValueError(f"condition_dropout={probability} must be in [0, 1); 0.1 is typical")
    keep = noise.uniform() >= probability
    return torch.where(keep.view(-1, *(1,) * (condition.ndim - 1)), condition, 0.0)


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Return ``u + weight (c - u)``: Eq. 6 with ``weight`` = 1 + w; 1 disables guidance."""
    return unconditional + weight * (conditional - unconditional)


def check_guidance(weight: float, condition_dropout: float) -> None:
    """Check that the network was trained for guidance.

    Raises:
        ValueError: ``weight`` is not 1 and the network was trained without condition dropout.
    """
    if weight != 1.0 and condition_dropout == 0.0:
        raise ValueError(
            f"guidance={weight} requires a network trained with condition dropout, but this one was trained with "
            "condition_dropout=0; use guidance=1"
        )
