"""Classifier-free guidance (Ho and Salimans 2022): a network that also knows what it would say without a condition."""

import torch
from torch import Tensor

from .counter_noise import Rows


def drop_condition(condition: Tensor, rows: Rows, probability: float) -> Tensor:
    """Return the condition with whole samples zeroed, each by its own draw (Algorithm 1, line 3).

    CasCast draws once for a batch; drawn for each sample, the loss does not depend on how samples are batched.

    Args:
        condition: ``[B, ...]``.
        rows: the samples; their stream decides.
        probability: the share that is dropped, in [0, 1).
    """
    if not 0 <= probability < 1:
        raise ValueError(f"condition_dropout={probability} must lie in [0, 1); 0.1 is usual")
    keep = rows.uniform() >= probability
    return torch.where(keep.view(-1, *(1,) * (condition.ndim - 1)), condition, 0.0)


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Return ``u + weight (c - u)``: Eq. 6 with 1 + w written as ``weight``; 1 is no guidance."""
    return unconditional + weight * (conditional - unconditional)


def reject_untrained_guidance(weight: float, condition_dropout: float) -> None:
    """Refuse to guide a network that never saw a zeroed condition.

    Raises:
        ValueError: ``weight`` is not 1 and the network was trained without condition dropout.
    """
    if weight != 1.0 and condition_dropout == 0.0:
        raise ValueError(
            f"guidance={weight} needs a network trained with condition dropout; this one had condition_dropout=0 and "
            "never learned what to say without a condition. Sample with guidance=1, or train with dropout, 0.1 say"
        )
