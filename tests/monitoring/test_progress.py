"""Progress lines of long steps: their times, rate and estimated remaining time."""

import logging

import pytest

from simcast_hpc.monitoring.progress import Progress, format_duration

logger = logging.getLogger("simcast_hpc.test_progress")


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_logs_after_five_seconds_and_then_every_thirty(caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO, logger.name):
        progress = Progress(logger, "verification", 100, unit="windows", done=20, clock=clock)
        for _ in range(60):
            clock.now += 1
            progress.advance()
    assert caplog.messages == [
        "verification: 25 of 100 windows (25 %), 1 windows/s, 1 min 15 s left",
        "verification: 55 of 100 windows (55 %), 1 windows/s, 45 s left",
    ]


def test_a_short_step_logs_nothing(caplog):
    with caplog.at_level(logging.INFO, logger.name):
        assert list(Progress(logger, "prepare", 3, unit="shards").track("abc")) == ["a", "b", "c"]
    assert caplog.messages == []


def test_bytes_are_logged_in_gigabytes(caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO, logger.name):
        progress = Progress(logger, "download", 4_000_000_000, unit="B", clock=clock)
        clock.now += 10
        progress.advance(1_000_000_000)
    assert caplog.messages == ["download: 1.00 of 4.00 GB (25 %), 0.1 GB/s, 30 s left"]


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_are_readable(seconds, text):
    assert format_duration(seconds) == text
