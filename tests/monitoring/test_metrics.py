"""metrics.jsonl: lines that a resume keeps, lines that it removes, and incomplete lines after a kill."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simcast_hpc.monitoring.metrics import MetricsWriter, read_metrics


def _write(folder, steps, *, first_step: int, offset: float = 0.0) -> None:
    writer = MetricsWriter(folder / "metrics.jsonl", folder / "events", first_step=first_step)
    for step in steps:
        writer.write(step, {"loss": step + offset, "throughput/samples_per_second": 2.5})
    writer.close()


def test_lines_contain_the_step_and_the_metrics(tmp_path):
    _write(tmp_path, [5, 10], first_step=0)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    written = [datetime.fromisoformat(line.pop("time")) for line in lines]
    assert lines == [
        {"step": 5, "loss": 5.0, "throughput/samples_per_second": 2.5},
        {"step": 10, "loss": 10.0, "throughput/samples_per_second": 2.5},
    ]
    assert timedelta(0) <= datetime.now(UTC) - written[1] <= datetime.now(UTC) - written[0] < timedelta(minutes=1)


def test_text_is_only_in_the_lines_and_a_tracker_gets_the_numbers(tmp_path):
    sent, closed = [], []
    tracker = SimpleNamespace(log=lambda step, metrics: sent.append((step, metrics)), close=lambda: closed.append(True))
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events", first_step=0, tracker=tracker)
    writer.write(3, {"loss": 1.0, "slowest_rank/host": "n7"})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["slowest_rank/host"] == "n7"
    assert (sent, closed) == ([(3, {"loss": 1.0})], [True])


def test_a_resume_removes_the_lines_of_repeated_steps(tmp_path):
    _write(tmp_path, [5, 10, 15, 20], first_step=0)
    _write(tmp_path, [15, 20], first_step=10, offset=0.5)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(5, 5.0), (10, 10.0), (15, 15.5), (20, 20.5)]


def test_an_incomplete_line_is_ignored_and_removed_by_a_resume(tmp_path):
    _write(tmp_path, [5, 10], first_step=0)
    path = tmp_path / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 15, "lo')
    assert [line["step"] for line in read_metrics(path)] == [5, 10]
    _write(tmp_path, [15], first_step=10)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 10, 15]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events", first_step=0)
    writer.write(1, {"loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    writer.close()


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_tensorboard_gets_the_same_values_without_those_of_an_interrupted_run(tmp_path):
    _write(tmp_path, [5, 10, 15], first_step=0)
    _write(tmp_path, [15, 20], first_step=10, offset=0.5)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (5, 5.0),
        (10, 10.0),
        (15, 15.5),
        (20, 20.5),
    ]
