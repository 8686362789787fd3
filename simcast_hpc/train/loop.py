"""The training loop. One optimizer step per turn; everything periodic is an ``Every`` hook."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from simcast_hpc.config import SimcastError


class NonFiniteLossError(SimcastError, RuntimeError):
    """A loss became infinite or NaN; no weight was changed by it."""


class Prepared(NamedTuple):
    """A sample on the device, and the names of the windows that it was made from."""

    sample: tuple[torch.Tensor, ...]
    names: Callable[[], list[str]]


Hook = Callable[[int, dict[str, torch.Tensor]], None]


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
    """Run ``hook`` after each ``steps``-th optimizer step and after the last; 0 means after the last alone."""

    steps: int
    hook: Hook

    def due(self, step: int, max_steps: int) -> bool:
        """Return whether the hook runs after ``step``."""
        return step == max_steps or (self.steps > 0 and step % self.steps == 0)


def train(
    engine: Engine,
    batches: Iterator[Prepared],
    *,
    first_step: int,
    max_steps: int,
    before: Callable[[int], None],
    on_any_rank: Callable[[torch.Tensor], bool],
    after: Iterable[Every],
) -> int:
    """Train from ``first_step`` until ``max_steps`` optimizer steps are done; return the last step.

    Args:
        engine: see :class:`Engine`.
        batches: endless, already standing where ``first_step`` left it.
        first_step: optimizer steps done before.
        max_steps: optimizer steps in all.
        before: called with the number of steps done before each step; sets the learning rate.
        on_any_rank: whether a bool tensor holds on any rank (a collective; the one wait for the device in a step).
        after: hooks; metrics stay tensors on the device, so a hook that wants a number calls ``.item()`` itself.

    Raises:
        NonFiniteLossError: on every rank, before the optimizer step, naming the windows of this rank's loss.
    """
    step, after = first_step, tuple(after)
    while step < max_steps:
        before(step)
        micro_steps = engine.gradient_accumulation_steps()
        losses: list[torch.Tensor] = []
        names: list[Callable[[], list[str]]] = []
        for micro in range(micro_steps):
            prepared = next(batches)
            loss = engine(*prepared.sample)
            losses.append(loss.detach())
            names.append(prepared.names)
            engine.backward(loss)
            if micro == micro_steps - 1:
                _stop_if_not_finite(torch.stack(losses), names, step=step, on_any_rank=on_any_rank)
            engine.step()
        step += 1
        metrics = {"loss": torch.stack(losses).mean()}
        for every in after:
            if every.due(step, max_steps):
                every.hook(step, metrics)
    return step


def _stop_if_not_finite(
    losses: torch.Tensor,
    names: list[Callable[[], list[str]]],
    *,
    step: int,
    on_any_rank: Callable[[torch.Tensor], bool],
) -> None:
    bad = ~torch.isfinite(losses)
    if not on_any_rank(bad.any()):
        return
    mine = [name for is_bad, make in zip(bad.tolist(), names, strict=True) if is_bad for name in make()]
    where = f"made from {', '.join(mine)} on this rank" if mine else "on another rank, which names its windows"
    raise NonFiniteLossError(
        f"the loss of optimizer step {step + 1} is not finite, {where}; no weight was changed. "
        "Look at those windows, or lower optimizer.learning_rate"
    )
