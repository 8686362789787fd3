"""The flags that all ranks share before an optimizer step, in the one small reduction of the step."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from simcast_hpc.data.loader import numbers_to_device
from simcast_hpc.monitoring.stop_request import StopReason


class StepStatus(NamedTuple):
    """The maximum over the ranks of each flag; the same on every rank."""

    nonfinite_loss: bool
    nonfinite_gradient: bool
    write_failed: bool
    stop_reason: StopReason
    max_loss: float
    save_due: bool = False


class StatusReduction:
    """Packs the flags of this rank into one vector and reduces it over the ranks."""

    def __init__(
        self,
        maximum: Callable[[torch.Tensor], list[float]],
        *,
        stop_request: Callable[[], StopReason] = lambda: StopReason.NONE,
        write_failed: Callable[[], bool] = lambda: False,
        save_due: Callable[[], bool] = lambda: False,
    ):
        """Store the sources of the flags.

        Args:
            maximum: element-wise maximum of a float32 vector over the ranks; the only device synchronization of a step.
            stop_request: why this rank is asked to exit.
            write_failed: whether this rank failed to write a checkpoint.
            save_due: whether the clock of this rank asks for a checkpoint.
        """
        self._maximum, self._stop_request, self._write_failed = maximum, stop_request, write_failed
        self._save_due = save_due

    def __call__(self, losses: torch.Tensor, finite: torch.Tensor) -> StepStatus:
        """Return the status of an optimizer step. A collective.

        Args:
            losses: of this rank's micro-batches, float32 ``[n]``.
            finite: whether this rank's share of the gradient is finite, bool.
        """
        losses = losses.float()
        own = [float(source()) for source in (self._stop_request, self._write_failed, self._save_due)]
        flags = numbers_to_device(own, losses.device, dtype=torch.float32)
        nonfinite = (~torch.isfinite(losses)).any().float()
        highest = torch.nan_to_num(losses, nan=float("inf")).max()
        step = torch.stack([nonfinite, (~finite.to(losses.device)).float(), highest])
        reason, failed, save, bad_loss, bad_gradient, max_loss = self._maximum(torch.cat([flags, step]))
        return StepStatus(bad_loss > 0, bad_gradient > 0, failed > 0, StopReason(int(reason)), max_loss, save > 0)
