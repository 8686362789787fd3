"""The training loop: one optimizer step per iteration; everything periodic is a hook."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from simcast_hpc.config import SimcastError
from simcast_hpc.monitoring.stop_request import StopReason

from .step_status import StatusReduction, StepStatus
from .step_timing import StepTimer

logger = logging.getLogger(__name__)


class NonFiniteLossError(SimcastError, RuntimeError):
    """A loss or gradient is NaN or infinite; the weights are unchanged."""


class DeviceBatch(NamedTuple):
    """A micro-batch on the device.

    Attributes:
        sample: the arguments of the engine.
        names: returns the names of its windows, for messages.
        seed: of torch's generators for the forward pass (dropout); None does not reseed them. As a function of
            the samples, it gives a resumed run the dropout masks of an uninterrupted one.
    """

    sample: tuple[torch.Tensor, ...]
    names: Callable[[], list[str]]
    seed: int | None = None


class StepReport(NamedTuple):
    """The result of an optimizer step.

    Attributes:
        losses: of this rank's micro-batches, float32 ``[n]`` on the device.
        names: of the windows of each micro-batch.
        status: what was reduced over the ranks.
    """

    losses: torch.Tensor
    names: list[Callable[[], list[str]]]
    status: StepStatus

    @property
    def loss(self) -> torch.Tensor:
        """This rank's mean loss, on the device."""
        return self.losses.mean()

    def windows(self, selected: Iterable[bool]) -> list[str]:
        """Return the names of the windows of the selected micro-batches."""
        return [name for chosen, names in zip(selected, self.names, strict=True) if chosen for name in names()]


class Engine(Protocol):
    """The part of an engine that the loop uses; see :class:`~simcast_hpc.train.stage_engine.StageEngine`."""

    def __call__(self, *sample: Any) -> torch.Tensor:
        """Return the loss of a micro-batch."""
        ...

    def backward(self, loss: torch.Tensor) -> Any:
        """Accumulate gradients."""
        ...

    def step(self) -> Any:
        """Count a micro-batch; after the last one of an optimizer step, update the weights."""
        ...

    def gradient_accumulation_steps(self) -> int:
        """Return micro-batches per optimizer step on this rank."""
        ...

    def gradients_are_finite(self) -> torch.Tensor:
        """Return whether this rank's share of the gradients is finite, a bool tensor."""
        ...

    def skip_step(self) -> None:
        """Count the pending optimizer step without changing anything."""
        ...


Hook = Callable[[int, StepReport], None]


@dataclass(frozen=True)
class PeriodicHook:
    """A hook that runs after each ``steps``-th optimizer step and after the last; 0 means after the last only.

    With ``before_exit`` it also runs after the step at which the run is asked to pause or stop. ``part`` names the part
    of the step to which its time belongs (``step_timing.PARTS``).
    """

    steps: int
    hook: Hook
    before_exit: bool = False
    part: str | None = None

    def is_due(self, step: int, max_steps: int, *, exiting: bool = False) -> bool:
        """Return whether the hook runs after ``step``."""
        return step == max_steps or (self.steps > 0 and step % self.steps == 0) or (exiting and self.before_exit)


@dataclass
class NonFiniteGuard:
    """Takes an optimizer step only if losses and gradients are finite on all ranks.

    ``max_skipped`` steps in a row are skipped with a warning before the run fails; 0 fails at the first.
    """

    max_skipped: int = 0
    skipped_in_a_row: int = 0

    def step(self, engine: Engine, report: StepReport, *, step: int) -> None:
        """Take or skip optimizer step ``step``.

        Raises:
            NonFiniteLossError: on every rank; names the windows of this rank.
        """
        if not (report.status.nonfinite_loss or report.status.nonfinite_gradient):
            self.skipped_in_a_row = 0
            engine.step()
            return
        self.skipped_in_a_row += 1
        message = _describe_nonfinite(report, step=step)
        if self.skipped_in_a_row > self.max_skipped:
            skipped = f"after {self.max_skipped} skipped steps in a row, " if self.max_skipped else ""
            raise NonFiniteLossError(
                f"{skipped}{message}; the weights are unchanged. Inspect these windows or lower "
                "optimizer.learning_rate; watch.non_finite=skip skips such steps"
            )
        logger.warning("%s; the step is skipped", message)
        engine.skip_step()


def train(
    engine: Engine,
    batches: Iterator[DeviceBatch],
    *,
    first_step: int,
    max_steps: int,
    before_step: Callable[[int], None],
    reduce_status: StatusReduction | None = None,
    guard: NonFiniteGuard | None = None,
    timer: StepTimer | None = None,
    hooks: Iterable[PeriodicHook] = (),
    ended: Callable[[], bool] = lambda: False,
) -> tuple[int, StopReason]:
    """Train from ``first_step`` until ``max_steps`` optimizer steps are done or the run is asked to exit.

    Args:
        engine: see :class:`Engine`.
        batches: infinite, starting with the first micro-batch after ``first_step`` steps.
        first_step: optimizer steps already done.
        max_steps: optimizer steps in total.
        before_step: called before each step with the number of steps done; sets the learning rate.
        reduce_status: over the ranks, once per optimizer step; by default this process is the only rank.
        guard: against non-finite losses and gradients.
        timer: of the parts of a step on this rank.
        hooks: called after their steps; losses are tensors on the device, so a hook calls ``.item()`` if needed.
        ended: whether a hook has ended training before ``max_steps``, the same on every rank. The hooks after it are
            called as after the last step.

    Returns:
        The last step, and why the run ended early, or ``StopReason.NONE``: the same on every rank.

    Raises:
        NonFiniteLossError: on every rank, before the optimizer step; names the windows of this rank.
    """
    step, hooks = first_step, tuple(hooks)
    reduce_status = reduce_status or StatusReduction(torch.Tensor.tolist)
    guard, timer = guard or NonFiniteGuard(), timer or StepTimer(torch.device("cpu"))
    while step < max_steps and not ended():
        before_step(step)
        report = _forward_backward(engine, batches, reduce_status=reduce_status, timer=timer)
        step += 1
        with timer.part("optimizer"):
            guard.step(engine, report, step=step)
        exiting = report.status.stop_reason != StopReason.NONE
        for periodic in hooks:
            if periodic.is_due(step, step if ended() else max_steps, exiting=exiting):
                with nullcontext() if periodic.part is None else timer.part(periodic.part):
                    periodic.hook(step, report)
        if exiting and step < max_steps and not ended():
            return step, report.status.stop_reason
    return step, StopReason.NONE


def _forward_backward(
    engine: Engine, batches: Iterator[DeviceBatch], *, reduce_status: StatusReduction, timer: StepTimer
) -> StepReport:
    """Run the micro-batches of an optimizer step; the step of the last one is left to the caller."""
    micro_steps = engine.gradient_accumulation_steps()
    losses: list[torch.Tensor] = []
    names: list[Callable[[], list[str]]] = []
    for micro in range(micro_steps):
        with timer.part("reading"):
            batch = next(batches)
        if batch.seed is not None:
            torch.manual_seed(batch.seed)
        with timer.part("forward"):
            loss = engine(*batch.sample)
        losses.append(loss.detach())
        names.append(batch.names)
        with timer.part("backward"):
            engine.backward(loss)
            if micro < micro_steps - 1:
                engine.step()
    stacked, finite = torch.stack(losses), engine.gradients_are_finite()
    with timer.part("waiting"):
        status = reduce_status(stacked, finite)
    return StepReport(stacked, names, status)


def _describe_nonfinite(report: StepReport, *, step: int) -> str:
    nonfinite = (~torch.isfinite(report.losses)).tolist()
    if report.status.nonfinite_loss:
        windows = report.windows(nonfinite)
        source = f"windows {', '.join(windows)} of this rank" if windows else "on another rank, which names its windows"
        return f"the loss of optimizer step {step} is not finite: {source}"
    windows = report.windows([True] * len(nonfinite))
    return (
        f"the gradient of optimizer step {step} is not finite although every loss is: windows {', '.join(windows)} "
        "of this rank"
    )
