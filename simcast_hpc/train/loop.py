"""The training loop. One optimizer step per turn; everything periodic is an ``Every`` hook."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from simcast_hpc.config import SimcastError
from simcast_hpc.monitoring.stop_request import StopReason

from .step_status import Agreement, StepStatus
from .step_timing import StepTimer

logger = logging.getLogger(__name__)


class NonFiniteLossError(SimcastError, RuntimeError):
    """A loss or a gradient became infinite or NaN; no weight was changed by it."""


class DeviceBatch(NamedTuple):
    """A sample on the device, and the names of the windows that it was made from."""

    sample: tuple[torch.Tensor, ...]
    names: Callable[[], list[str]]


class StepReport(NamedTuple):
    """What is known of an optimizer step: this rank's losses, float32 ``[n]`` on the device, and their windows."""

    losses: torch.Tensor
    names: list[Callable[[], list[str]]]
    verdict: StepStatus

    @property
    def loss(self) -> torch.Tensor:
        """This rank's mean loss, on the device."""
        return self.losses.mean()

    def windows(self, of: Iterable[bool]) -> list[str]:
        """Return the names of the windows of the micro batches that ``of`` marks."""
        return [name for marked, make in zip(of, self.names, strict=True) if marked for name in make()]


Hook = Callable[[int, StepReport], None]


class Engine(Protocol):
    """The part of a DeepSpeed engine that the loop may use."""

    def __call__(self, *sample: Any, **more: Any) -> torch.Tensor:
        """Return the loss of a sample."""
        ...

    def backward(self, loss: torch.Tensor) -> Any:
        """Accumulate gradients."""
        ...

    def step(self) -> Any:
        """Count a micro batch; on the last of a step, update the weights."""
        ...

    def gradient_accumulation_steps(self) -> int:
        """Return micro batches per optimizer step on this rank."""
        ...


@dataclass(frozen=True)
class Every:
    """Run ``hook`` after each ``steps``-th optimizer step and after the last; 0 means after the last alone.

    ``on_leaving`` runs it after the step at which a run is asked to leave as well.
    """

    steps: int
    hook: Hook
    on_leaving: bool = False

    def due(self, step: int, max_steps: int, *, leaving: bool = False) -> bool:
        """Return whether the hook runs after ``step``."""
        return step == max_steps or (self.steps > 0 and step % self.steps == 0) or (leaving and self.on_leaving)


@dataclass
class Gradients:
    """How the loop looks at an engine's gradients, and what it does where they, or a loss, are no numbers.

    ``most_skipped`` steps in a row are left out before the run ends; 0 ends it at the first.
    """

    are_finite: Callable[[Any], torch.Tensor] = lambda _engine: torch.tensor(True)
    leave_out: Callable[[Any], None] = lambda _engine: None
    most_skipped: int = 0
    skipped_in_a_row: int = 0

    def step(self, engine: Engine, report: StepReport, *, step: int) -> None:
        """Take the optimizer step ``step``, or leave it out.

        Raises:
            NonFiniteLossError: on every rank, naming the windows of this rank.
        """
        if not (report.verdict.bad_loss or report.verdict.bad_gradient):
            self.skipped_in_a_row = 0
            engine.step()
            return
        self.skipped_in_a_row += 1
        said = _what_is_not_finite(report, step=step)
        if self.skipped_in_a_row > self.most_skipped:
            so_far = f"after {self.most_skipped} steps left out in a row, " if self.most_skipped else ""
            raise NonFiniteLossError(
                f"{so_far}{said}; no weight was changed. Look at those windows, or lower optimizer.learning_rate; "
                "watch.non_finite=skip leaves such steps out"
            )
        logger.warning("%s; the step is left out", said)
        self.leave_out(engine)


def train(
    engine: Engine,
    batches: Iterator[DeviceBatch],
    *,
    first_step: int,
    max_steps: int,
    before: Callable[[int], None],
    agree: Agreement | None = None,
    gradients: Gradients | None = None,
    timer: StepTimer | None = None,
    after: Iterable[Every] = (),
) -> tuple[int, StopReason]:
    """Train from ``first_step`` until ``max_steps`` optimizer steps are done, or the ranks agree to leave.

    Args:
        engine: see :class:`Engine`.
        batches: endless, already standing where ``first_step`` left it.
        first_step: optimizer steps done before.
        max_steps: optimizer steps in all.
        before: called with the number of steps done before each step; sets the learning rate.
        agree: what the ranks tell one another before each optimizer step; by default this process is alone.
        gradients: looked at before each optimizer step; by default losses alone are.
        timer: of what this rank does on its own.
        after: hooks; losses stay tensors on the device, so a hook that wants a number calls ``.item()`` itself.

    Returns:
        The last step, and what was asked where that ended the run early: on every rank the same.

    Raises:
        NonFiniteLossError: on every rank, before the optimizer step, naming the windows of this rank's loss.
    """
    step, after = first_step, tuple(after)
    agree, gradients = agree or Agreement(torch.Tensor.tolist), gradients or Gradients()
    timer = timer or StepTimer(torch.device("cpu"))
    while step < max_steps:
        before(step)
        report = _one_step(engine, batches, step=step + 1, agree=agree, gradients=gradients, timer=timer)
        step += 1
        leaving = report.verdict.ask != StopReason.NONE
        for every in after:
            if every.due(step, max_steps, leaving=leaving):
                every.hook(step, report)
        if leaving and step < max_steps:
            return step, report.verdict.ask
    return step, StopReason.NONE


def _one_step(
    engine: Engine,
    batches: Iterator[DeviceBatch],
    *,
    step: int,
    agree: Agreement,
    gradients: Gradients,
    timer: StepTimer,
) -> StepReport:
    micro_steps = engine.gradient_accumulation_steps()
    losses: list[torch.Tensor] = []
    names: list[Callable[[], list[str]]] = []
    for micro in range(micro_steps):
        with timer.reading():
            prepared = next(batches)
        with timer.forward():
            loss = engine(*prepared.sample)
        losses.append(loss.detach())
        names.append(prepared.names)
        engine.backward(loss)
        if micro < micro_steps - 1:
            engine.step()
    together = torch.stack(losses)
    report = StepReport(together, names, agree(together, gradients.are_finite(engine)))
    gradients.step(engine, report, step=step)
    return report


def _what_is_not_finite(report: StepReport, *, step: int) -> str:
    bad = (~torch.isfinite(report.losses)).tolist()
    if report.verdict.bad_loss:
        mine = report.windows(bad)
        where = f"made from {', '.join(mine)} on this rank" if mine else "on another rank, which names its windows"
        return f"the loss of optimizer step {step} is not finite, {where}"
    mine = report.windows([True] * len(bad))
    return (
        f"the gradient of optimizer step {step} is not finite though every loss is; "
        f"this rank's part is made from {', '.join(mine)}"
    )
