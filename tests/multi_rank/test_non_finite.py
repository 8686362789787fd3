"""A non-finite loss stops every rank before the optimizer step and names the windows; skipped steps change nothing."""

import json

import pytest

from simcast_hpc.train.checkpoint import visible
from tests.multi_rank.runs import overrides, simcast, two_ranks
from tests.multi_rank.skipped_steps import CASES

pytestmark = pytest.mark.multi


def test_two_ranks_stop_and_name_the_windows(teacher_config, tmp_path):
    """An extreme learning rate makes the loss overflow within a few steps."""
    result = simcast(
        "torchrun",
        2,
        ["train", str(teacher_config), *overrides(run_dir=tmp_path / "run", max_steps=50,
                                                  optimizer__learning_rate="1e30", optimizer__schedule="constant",
                                                  optimizer__gradient_clip=0)],
        check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.count("is not finite") >= 2, "both ranks report it"
    assert "windows " in result.stderr and "@" in result.stderr, result.stderr[-3000:]
    assert not (tmp_path / "run" / "DONE.json").exists()
    assert all(path.name < "step-00000050" for path in visible(tmp_path / "run" / "checkpoints"))


def test_a_skipped_step_changes_nothing_under_any_zero_stage(tmp_path):
    """Only rank 1's gradient is NaN; both ranks skip: no weight, moment or count changes, and training continues."""
    two_ranks("tests.multi_rank.skipped_steps", str(tmp_path))
    cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert [case["engine"] for case in cases] == CASES
    assert all(case["finite"] == [True, True, True, False, True] for case in cases), cases
    assert all(case["untouched"] and case["same after"] for case in cases), cases
