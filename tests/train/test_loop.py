"""The loop: batches, hooks, learning rate, resuming, and the stop before a loss that is no number does harm."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from simcast_hpc.distill.windows import Sample
from simcast_hpc.monitoring.stop_request import StopReason
from simcast_hpc.train.loop import DeviceBatch, Every, Gradients, NonFiniteLossError, train
from simcast_hpc.train.step_status import Agreement
from simcast_hpc.train.step_timing import StepTimer


class RecordingEngine:
    """Writes down in which order it is used; the loss of a batch is the value of its inputs."""

    def __init__(self, accumulation: int = 1):
        self.accumulation, self.calls = accumulation, []

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

    @property
    def seen(self) -> list[float]:
        return [call[1] for call in self.calls if call[0] == "forward"]


def _batches(values) -> Iterator[DeviceBatch]:
    for number, value in enumerate(values):
        told = torch.tensor(float(value))
        yield DeviceBatch(Sample(told, told, told), lambda number=number: [f"E{number}@0", f"E{number}@12"])


def _options(**over):
    return {
        "before": lambda step: None,
        "agree": Agreement(torch.Tensor.tolist),
        "gradients": Gradients(lambda engine: torch.tensor(True), lambda engine: engine.calls.append(("left out",))),
        "timer": StepTimer(torch.device("cpu")),
        "after": (),
    } | over


def _run(engine, values=None, *, first_step=0, max_steps=3, **over) -> tuple[int, StopReason]:
    batches = _batches(itertools.count(first_step * engine.accumulation) if values is None else values)
    return train(engine, batches, first_step=first_step, max_steps=max_steps, **_options(**over))


def _train(engine, values=None, **over) -> int:
    return _run(engine, values, **over)[0]


def test_a_micro_batch_is_forward_backward_step():
    engine = RecordingEngine(2)
    assert _train(engine, max_steps=2) == 2
    each = [[("forward", value), ("backward", value), ("step",)] for value in range(4)]
    assert engine.calls == list(itertools.chain(*each))


def test_no_batch_is_read_beyond_the_last_step():
    batches = _batches(range(6))
    engine = RecordingEngine(2)
    train(engine, batches, first_step=0, max_steps=2, **_options())
    assert next(batches).sample.inputs.item() == 4


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumed_run_sees_the_batches_and_steps_of_an_uninterrupted_one(accumulation):
    whole, first, second = (RecordingEngine(accumulation) for _ in range(3))
    steps: list[int] = []
    _train(whole, max_steps=6, before=steps.append)
    resumed: list[int] = []
    _train(first, max_steps=4, before=resumed.append)
    _train(second, first_step=4, max_steps=6, before=resumed.append)
    assert first.calls + second.calls == whole.calls
    assert resumed == steps == list(range(6))


def test_a_finished_run_does_nothing():
    engine = RecordingEngine()
    assert _train(engine, first_step=3, max_steps=3) == 3
    assert engine.calls == []


def test_the_learning_rate_is_set_before_each_optimizer_step():
    engine = RecordingEngine(2)
    _train(engine, max_steps=3, before=lambda step: engine.calls.append(("rate", step)))
    assert [call for call in engine.calls if call[0] in ("rate", "step")] == [
        ("rate", 0), ("step",), ("step",), ("rate", 1), ("step",), ("step",), ("rate", 2), ("step",), ("step",),
    ]  # fmt: skip
    assert engine.calls[0] == ("rate", 0)


def test_hooks_run_on_their_steps_and_after_the_last_in_their_order():
    seen: list[tuple[str, int]] = []

    def note(name):
        return lambda step, report: seen.append((name, step))

    _train(RecordingEngine(), max_steps=7, after=[Every(3, note("a")), Every(0, note("b")), Every(7, note("c"))])
    assert seen == [("a", 3), ("a", 6), ("a", 7), ("b", 7), ("c", 7)]


def test_hooks_of_a_resumed_run_keep_their_steps():
    seen: list[int] = []
    _train(RecordingEngine(), first_step=4, max_steps=10, after=[Every(3, lambda step, report: seen.append(step))])
    assert seen == [6, 9, 10]


def test_hooks_get_the_mean_loss_of_the_step_as_a_tensor():
    losses: list[torch.Tensor] = []
    hook = Every(1, lambda step, report: losses.append(report.loss))
    _train(RecordingEngine(2), values=[1, 2, 3, 5], max_steps=2, after=[hook])
    assert all(isinstance(loss, torch.Tensor) and not loss.requires_grad for loss in losses)
    assert torch.stack(losses).tolist() == [1.5, 4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_no_number_stops_before_the_weights_change_and_names_its_windows(bad, place):
    values = [0.0] * 6
    values[3 + place] = bad
    engine, hooked = RecordingEngine(3), []
    with pytest.raises(NonFiniteLossError) as caught:
        _train(engine, values=values, after=[Every(1, lambda step, report: hooked.append(step))])
    said = str(caught.value)
    assert "optimizer step 2 is not finite" in said and f"E{3 + place}@0, E{3 + place}@12 on this rank" in said
    assert all(f"E{number}@" not in said for number in range(6) if number != 3 + place)
    assert engine.calls.count(("step",)) == 3 + 2, "the third micro batch's step is the one that updates"
    assert hooked == [1]


def test_all_bad_micro_batches_of_a_step_are_named():
    with pytest.raises(NonFiniteLossError, match="E0@0, E0@12, E1@0, E1@12 on this rank"):
        _train(RecordingEngine(2), values=[float("nan"), float("inf")])


def test_another_ranks_flag_stops_this_rank_too():
    asked: list[list[float]] = []

    def other_rank_is_bad(values: torch.Tensor) -> list[float]:
        asked.append(values.tolist())
        return [0.0, 0.0, float(len(asked) == 2), 0.0, 1.0]

    engine = RecordingEngine(2)
    with pytest.raises(NonFiniteLossError, match=r"step 2 .*on another rank, which names its windows; no weight"):
        _train(engine, agree=Agreement(other_rank_is_bad))
    assert [own[2] for own in asked] == [0.0, 0.0], "asked once an optimizer step, and this rank's losses were fine"
    assert engine.calls.count(("step",)) == 2 + 1


def test_a_gradient_that_is_no_number_stops_and_names_all_windows_of_the_step():
    engine = RecordingEngine(2)
    bad = Gradients(lambda engine: torch.tensor(False), lambda engine: None)
    with pytest.raises(NonFiniteLossError, match=r"the gradient of optimizer step 1 .*E0@0, E0@12, E1@0, E1@12; no"):
        _train(engine, gradients=bad)
    assert engine.calls.count(("step",)) == 1, "the step that updates was not taken"


def test_steps_are_left_out_where_that_is_asked_for_up_to_a_limit(caplog):
    nan = float("nan")
    engine = RecordingEngine()
    skipping = _options()["gradients"]
    skipping.most_skipped = 2
    assert _train(engine, values=[1, nan, nan, 4, nan, 6], max_steps=6, gradients=skipping) == 6
    acted = [call[0] for call in engine.calls if call[0] in ("step", "left out")]
    assert acted == ["step", "left out", "left out", "step", "left out", "step"]
    with pytest.raises(NonFiniteLossError, match="after 2 steps left out in a row, the loss of optimizer step 4"):
        _train(RecordingEngine(), values=[1, nan, nan, nan], max_steps=6, gradients=skipping)


@pytest.mark.parametrize("ask", [StopReason.PAUSE, StopReason.STOP])
def test_asked_to_leave_the_step_is_finished_and_what_saves_runs(ask):
    asked = iter([StopReason.NONE, ask])
    seen: list[tuple[str, int]] = []

    def note(name):
        return lambda step, report: seen.append((name, step))

    hooks = [Every(100, note("save"), on_leaving=True), Every(100, note("other"))]
    engine = RecordingEngine(2)
    agree = Agreement(torch.Tensor.tolist, ask=lambda: next(asked))
    assert _run(engine, max_steps=50, agree=agree, after=hooks) == (2, ask)
    assert seen == [("save", 2)]
    assert engine.calls.count(("step",)) == 4


def test_asked_at_the_last_step_the_run_is_simply_done():
    agree = Agreement(torch.Tensor.tolist, ask=lambda: StopReason.PAUSE)
    assert _run(RecordingEngine(), max_steps=1, agree=agree) == (1, StopReason.NONE)


def test_what_another_rank_is_asked_for_counts_and_the_greater_wins():
    for theirs, ours, want in ((1, 0, StopReason.PAUSE), (2, 1, StopReason.STOP), (0, 1, StopReason.PAUSE)):
        together = Agreement(
            lambda values, theirs=theirs: [max(theirs, values[0].item()), *values[1:].tolist()],
            ask=lambda o=ours: StopReason(o),
        )
        assert _run(RecordingEngine(), max_steps=9, agree=together) == (1, want)


def test_one_reduction_a_step_carries_everything():
    calls: list[int] = []

    def counted(values: torch.Tensor) -> list[float]:
        calls.append(len(values))
        return values.tolist()

    _train(RecordingEngine(3), max_steps=4, agree=Agreement(counted))
    assert calls == [5] * 4


def test_the_time_of_reading_and_of_forward_is_kept_apart(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    timer = StepTimer(torch.device("cpu"))
    _train(RecordingEngine(2), max_steps=2, timer=timer)
    assert timer.take() == (4.0, 4.0)
    assert timer.take() == (0.0, 0.0)
