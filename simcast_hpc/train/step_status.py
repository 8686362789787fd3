"""What all ranks must know of one another before an optimizer step, in the one small reduction of each step."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from simcast_hpc.monitoring.stop_request import StopReason


class StepStatus(NamedTuple):
    """What holds on any rank; the same on every rank."""

    bad_loss: bool
    bad_gradient: bool
    write_failed: bool
    ask: StopReason
    highest_loss: float


class Agreement:
    """Puts this rank's own flags and those of the step into one vector and reduces it."""

    def __init__(
        self,
        maximum: Callable[[torch.Tensor], list[float]],
        *,
        ask: Callable[[], StopReason] = lambda: StopReason.NONE,
        write_failed: Callable[[], bool] = lambda: False,
    ):
        """Keep what is asked at every step.

        Args:
            maximum: element-wise maximum of a float32 vector over the ranks; the one wait for the device in a step.
            ask: what this rank is asked for.
            write_failed: whether a checkpoint could not be written here.
        """
        self._maximum, self._ask, self._write_failed = maximum, ask, write_failed

    def __call__(self, losses: torch.Tensor, finite: torch.Tensor) -> StepStatus:
        """Agree on a step.

        Args:
            losses: this rank's micro batches, float32 ``[n]``.
            finite: whether this rank's share of the gradient is finite, bool.
        """
        losses = losses.float()
        own = torch.tensor([float(self._ask()), float(self._write_failed())], device=losses.device)
        bad = (~torch.isfinite(losses)).any().float()
        highest = torch.nan_to_num(losses, nan=float("inf")).max()
        step = torch.stack([bad, (~finite.to(losses.device)).float(), highest])
        ask, failed, bad_loss, bad_gradient, most = self._maximum(torch.cat([own, step]))
        return StepStatus(bad_loss > 0, bad_gradient > 0, failed > 0, StopReason(int(ask)), most)
