"""The profiler traces the requested steps on the requested ranks, and a trace contains the parts of a step."""

import gzip
import json
import logging

import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.monitoring.profiler import ProfileRequest, StepProfiler
from simcast_hpc.train.step_timing import StepTimer


def _run(folder, request: ProfileRequest, *, first_step: int = 0, last_step: int = 6, rank: int = 0) -> None:
    """Take steps, each of which multiplies matrices of a size by which it is recognized."""
    timer = StepTimer(torch.device("cpu"))
    profiler = StepProfiler(request, folder, rank=rank, first_step=first_step)
    for done in range(first_step, last_step):
        profiler.before_step(done)
        with timer.part("forward"):
            torch.ones(done + 1, 3) @ torch.ones(3, 2)
        profiler(done + 1, None)
    profiler.close()


def _traced_steps(path) -> set[int]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "forward" for event in events)
    products = [event for event in events if event.get("name") == "aten::mm"]
    return {event["args"]["Input Dims"][0][0] for event in products}


@pytest.mark.parametrize(
    ("first_step", "expected"), [(0, {3, 4}), (2, {3, 4}), (3, {4})], ids=["start", "no warm-up", "resumed within"]
)
def test_traces_the_requested_steps(tmp_path, first_step, expected):
    _run(tmp_path, ProfileRequest(3, 4), first_step=first_step)
    stem = f"rank-0-steps-{min(expected)}-4"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.json.gz", f"{stem}.txt"]
    assert _traced_steps(tmp_path / f"{stem}.json.gz") == expected
    assert "aten::mm" in (tmp_path / f"{stem}.txt").read_text(encoding="utf-8")


def test_a_run_that_ends_early_keeps_the_steps_so_far(tmp_path):
    _run(tmp_path, ProfileRequest(2, 50), last_step=4)
    (trace,) = tmp_path.glob("*.json.gz")
    assert _traced_steps(trace) == {2, 3, 4}


def test_other_ranks_and_steps_that_are_done_are_not_traced(tmp_path, caplog):
    _run(tmp_path / "other", ProfileRequest(2, 3, ranks=(1,)), rank=0)
    logger = logging.getLogger("simcast_hpc")
    propagate, logger.propagate = logger.propagate, True
    _run(tmp_path / "late", ProfileRequest(2, 3), first_step=3)
    logger.propagate = propagate
    assert list(tmp_path.iterdir()) == [] and "step 3 is done already" in caplog.text


def test_reads_steps_and_ranks():
    assert ProfileRequest.parse("10:12") == ProfileRequest(10, 12, (0,))
    assert ProfileRequest.parse("5:5", "0,17") == ProfileRequest(5, 5, (0, 17))


@pytest.mark.parametrize("steps", ["10", "12:10", "0:3", "-1:3", "a:b", "1:2:3", ""])
def test_rejects_invalid_steps(steps):
    with pytest.raises(ConfigError, match=f"--profile {steps} is invalid; give START:STOP"):
        ProfileRequest.parse(steps)


def test_rejects_invalid_ranks():
    with pytest.raises(ConfigError, match="--profile-ranks 0,x is invalid"):
        ProfileRequest.parse("1:2", "0,x")
    with pytest.raises(ConfigError, match="--profile-ranks contains 4; valid are 0 to 3"):
        ProfileRequest.parse("1:2", "3,4").reject_ranks(4)
