"""The training loop: batches, hooks, learning rate, resuming, and errors on non-finite losses and gradients."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from simcast_hpc.distill.cut_windows import Sample
from simcast_hpc.monitoring.stop_request import StopReason
from simcast_hpc.train.loop import DeviceBatch, NonFiniteGuard, NonFiniteLossError, PeriodicHook, train
from simcast_hpc.train.step_status import StatusReduction
from simcast_hpc.train.step_timing import StepTimer

NAN = float("nan")


class RecordingEngine:
    """Records how it is called; the loss of a batch is the value of its inputs."""

    def __init__(self, accumulation: int = 1, *, finite: bool = True):
        self.accumulation, self.finite, self.calls = accumulation, torch.tensor(finite), []

    def __call__(self, inputs, target, valid) -> torch.Tensor:
        self.calls.append(("forward", inputs.item()))
        return inputs.clone().requires_grad_()

    def backward(self, loss) -> None:
        assert loss.requires_grad
        self.calls.append(("backward", loss.item()))

    def step(self) -> None:
        self.calls.append(("step",))

    def gradient_accumulation_steps(self) -> int:
        return self.accumulation

    def gradients_are_finite(self) -> torch.Tensor:
        return self.finite

    def skip_step(self) -> None:
        self.calls.append(("skip",))


def _batches(values, seed: int | None = None) -> Iterator[DeviceBatch]:
    for number, value in enumerate(values):
        tensor = torch.tensor(float(value))
        names = lambda number=number: [f"E{number}@0", f"E{number}@12"]  # noqa: E731
        yield DeviceBatch(Sample(tensor, tensor, tensor), names, seed and seed + number)


def _run(engine, values=None, *, first_step=0, max_steps=3, **over: Any) -> tuple[int, StopReason]:
    batches = _batches(itertools.count(first_step * engine.accumulation) if values is None else values)
    options = {"before_step": lambda step: None} | over
    return train(engine, batches, first_step=first_step, max_steps=max_steps, **options)


def _train(engine, values=None, **over) -> int:
    return _run(engine, values, **over)[0]


def test_micro_batch_is_forward_backward_step():
    engine = RecordingEngine(2)
    assert _train(engine, max_steps=2) == 2
    expected = [[("forward", value), ("backward", value), ("step",)] for value in range(4)]
    assert engine.calls == list(itertools.chain(*expected))


def test_reads_no_batch_after_the_last_step():
    batches = _batches(range(6))
    train(RecordingEngine(2), batches, first_step=0, max_steps=2, before_step=lambda step: None)
    assert next(batches).sample.inputs.item() == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_seeds_torch_before_each_forward_pass():
    seeds = []

    class Seeded(RecordingEngine):
        def __call__(self, *sample) -> torch.Tensor:
            seeds.append(torch.initial_seed())
            torch.rand(3)
            return super().__call__(*sample)

    train(Seeded(2), _batches(range(4), seed=90), first_step=0, max_steps=2, before_step=lambda step: None)
    assert seeds == [90, 91, 92, 93]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_resumed_run_has_the_batches_and_steps_of_an_uninterrupted_one(accumulation):
    uninterrupted, first, second = (RecordingEngine(accumulation) for _ in range(3))
    steps: list[int] = []
    _train(uninterrupted, max_steps=6, before_step=steps.append)
    resumed: list[int] = []
    _train(first, max_steps=4, before_step=resumed.append)
    _train(second, first_step=4, max_steps=6, before_step=resumed.append)
    assert first.calls + second.calls == uninterrupted.calls
    assert resumed == steps == list(range(6))


def test_finished_run_does_nothing():
    engine = RecordingEngine()
    assert _train(engine, first_step=3, max_steps=3) == 3
    assert engine.calls == []


def test_learning_rate_is_set_before_each_optimizer_step():
    engine = RecordingEngine(2)
    _train(engine, max_steps=3, before_step=lambda step: engine.calls.append(("rate", step)))
    assert [call for call in engine.calls if call[0] in ("rate", "step")] == [
        ("rate", 0), ("step",), ("step",), ("rate", 1), ("step",), ("step",), ("rate", 2), ("step",), ("step",),
    ]  # fmt: skip
    assert engine.calls[0] == ("rate", 0)


def test_hooks_run_in_order_on_their_steps_and_after_the_last():
    called: list[tuple[str, int]] = []

    def periodic(steps, name):
        return PeriodicHook(steps, lambda step, report: called.append((name, step)))

    _train(RecordingEngine(), max_steps=7, hooks=[periodic(3, "a"), periodic(0, "b"), periodic(7, "c")])
    assert called == [("a", 3), ("a", 6), ("a", 7), ("b", 7), ("c", 7)]
    called.clear()
    _train(RecordingEngine(), first_step=4, max_steps=10, hooks=[periodic(3, "a")])
    assert [step for _, step in called] == [6, 9, 10], "a resumed run keeps the steps"


@pytest.mark.parametrize("reason", [StopReason.NONE, StopReason.PAUSE])
def test_a_hook_can_end_training_and_the_hooks_after_it_run_as_after_the_last_step(reason):
    """Early stopping finishes the run, also if it is asked to pause at the same step."""
    called: list[tuple[str, int]] = []

    def record(name):
        return lambda step, report: called.append((name, step))

    def ended() -> bool:
        return ("validate", 4) in called

    requests = iter([StopReason.NONE] * 3 + [reason])
    reduction = StatusReduction(torch.Tensor.tolist, stop_request=lambda: next(requests))
    hooks = [PeriodicHook(2, record("validate")), PeriodicHook(100, record("save"))]
    engine = RecordingEngine()
    assert _run(engine, max_steps=50, hooks=hooks, ended=ended, reduce_status=reduction) == (4, StopReason.NONE)
    assert called == [("validate", 2), ("validate", 4), ("save", 4)]
    assert _run(engine, first_step=4, max_steps=50, ended=ended) == (4, StopReason.NONE), "a resumed run has ended"


def test_hooks_get_the_mean_loss_of_the_step_as_a_tensor():
    losses: list[torch.Tensor] = []
    hook = PeriodicHook(1, lambda step, report: losses.append(report.loss))
    _train(RecordingEngine(2), values=[1, 2, 3, 5], max_steps=2, hooks=[hook])
    assert all(isinstance(loss, torch.Tensor) and not loss.requires_grad for loss in losses)
    assert torch.stack(losses).tolist() == [1.5, 4.0]


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
@pytest.mark.parametrize("micro", [0, 1, 2])
def test_non_finite_loss_fails_before_the_update_and_names_its_windows(value, micro):
    values = [0.0] * 6
    values[3 + micro] = value
    engine, steps = RecordingEngine(3), []
    with pytest.raises(NonFiniteLossError) as caught:
        _train(engine, values=values, hooks=[PeriodicHook(1, lambda step, report: steps.append(step))])
    message = str(caught.value)
    assert "optimizer step 2 is not finite" in message
    assert f"windows E{3 + micro}@0, E{3 + micro}@12 of this rank" in message
    assert all(f"E{number}@" not in message for number in range(6) if number != 3 + micro)
    assert engine.calls.count(("step",)) == 3 + 2, "the step of the third micro-batch is the one that updates"
    assert steps == [1]


def test_names_the_windows_of_all_non_finite_micro_batches():
    with pytest.raises(NonFiniteLossError, match="windows E0@0, E0@12, E1@0, E1@12 of this rank"):
        _train(RecordingEngine(2), values=[NAN, float("inf")])


def test_non_finite_loss_of_another_rank_fails_this_rank_too():
    reduced: list[list[float]] = []

    def other_rank_is_bad(values: torch.Tensor) -> list[float]:
        reduced.append(values.tolist())
        return [0.0, 0.0, 0.0, float(len(reduced) == 2), 0.0, 1.0]

    engine = RecordingEngine(2)
    with pytest.raises(NonFiniteLossError, match=r"step 2 .*on another rank, which names its windows; the weights are"):
        _train(engine, reduce_status=StatusReduction(other_rank_is_bad))
    assert [own[3] for own in reduced] == [0.0, 0.0], "one reduction per optimizer step; this rank's losses were finite"
    assert engine.calls.count(("step",)) == 2 + 1


def test_non_finite_gradient_fails_and_names_all_windows_of_the_step():
    engine = RecordingEngine(2, finite=False)
    with pytest.raises(NonFiniteLossError, match=r"gradient of optimizer step 1 .*E0@0, E0@12, E1@0, E1@12 of this"):
        _train(engine)
    assert engine.calls.count(("step",)) == 1, "the step that updates was not taken"


def test_skips_non_finite_steps_up_to_a_limit():
    engine = RecordingEngine()
    guard = NonFiniteGuard(max_skipped=2)
    assert _train(engine, values=[1, NAN, NAN, 4, NAN, 6], max_steps=6, guard=guard) == 6
    steps = [call[0] for call in engine.calls if call[0] in ("step", "skip")]
    assert steps == ["step", "skip", "skip", "step", "skip", "step"]
    with pytest.raises(NonFiniteLossError, match="after 2 skipped steps in a row, the loss of optimizer step 4"):
        _train(RecordingEngine(), values=[1, NAN, NAN, NAN], max_steps=6, guard=guard)


@pytest.mark.parametrize("reason", [StopReason.PAUSE, StopReason.STOP])
def test_stop_request_finishes_the_step_and_saves(reason):
    requests = iter([StopReason.NONE, reason])
    called: list[tuple[str, int]] = []

    def record(name):
        return lambda step, report: called.append((name, step))

    hooks = [PeriodicHook(100, record("save"), before_exit=True), PeriodicHook(100, record("other"))]
    engine = RecordingEngine(2)
    reduction = StatusReduction(torch.Tensor.tolist, stop_request=lambda: next(requests))
    assert _run(engine, max_steps=50, reduce_status=reduction, hooks=hooks) == (2, reason)
    assert called == [("save", 2)]
    assert engine.calls.count(("step",)) == 4


def test_stop_request_at_the_last_step_is_ignored():
    reduction = StatusReduction(torch.Tensor.tolist, stop_request=lambda: StopReason.PAUSE)
    assert _run(RecordingEngine(), max_steps=1, reduce_status=reduction) == (1, StopReason.NONE)


@pytest.mark.parametrize(
    ("other", "own", "expected"), [(1, 0, StopReason.PAUSE), (2, 1, StopReason.STOP), (0, 1, StopReason.PAUSE)]
)
def test_strongest_stop_request_of_all_ranks_applies(other, own, expected):
    def maximum(values: torch.Tensor) -> list[float]:
        return [max(other, values[0].item()), *values[1:].tolist()]

    reduction = StatusReduction(maximum, stop_request=lambda: StopReason(own))
    assert _run(RecordingEngine(), max_steps=9, reduce_status=reduction) == (1, expected)


def test_one_reduction_per_step_carries_all_flags():
    sizes: list[int] = []

    def maximum(values: torch.Tensor) -> list[float]:
        sizes.append(len(values))
        return values.tolist()

    _train(RecordingEngine(3), max_steps=4, reduce_status=StatusReduction(maximum))
    assert sizes == [6] * 4


def test_the_parts_of_a_step_are_timed_separately(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    timer = StepTimer(torch.device("cpu"))
    save = PeriodicHook(2, lambda step, report: None, part="checkpoint")
    _train(RecordingEngine(2), max_steps=2, timer=timer, hooks=[save, PeriodicHook(1, lambda step, report: None)])
    per_micro_batch = dict.fromkeys(("reading", "forward", "backward"), 4.0)
    assert timer.take() == {**per_micro_batch, "waiting": 2.0, "optimizer": 2.0, "checkpoint": 1.0, "validation": 0.0}
    assert set(timer.take().values()) == {0.0}
