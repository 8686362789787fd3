"""Losses are independent of ranks, ZeRO stage and launcher within 1e-5 in fp32."""

from itertools import product
from pathlib import Path

import pytest

from tests.multi_rank.runs import best_scores, losses, overrides, simcast, validated

pytestmark = pytest.mark.multi
_ALWAYS = [("torchrun", 0), ("deepspeed", 1), ("mpiexec", 2), ("torchrun", 3)]
_OTHERS = [
    (launcher, ranks, stage)
    for launcher, ranks, stage in product(("torchrun", "deepspeed", "mpiexec"), (1, 2), range(4))
    if not (ranks == 2 and (launcher, stage) in _ALWAYS)
]


def _train(launcher: str, ranks: int, stage: int, config: Path, run_dir: Path, **more: object) -> list[float]:
    options = overrides(run_dir=run_dir, engine__zero_stage=stage, **more)
    simcast(launcher, ranks, ["train", str(config), *options])
    return losses(run_dir)


@pytest.mark.parametrize(("launcher", "stage"), _ALWAYS)
def test_two_ranks_agree_with_one(launcher, stage, teacher_config, one_rank, tmp_path):
    """The two ranks also validate, which changes no loss; their scores are those that one rank computes."""
    section = {"validation__every_steps": 2, "validation__export": "best", "validation__score": "mse"}
    trained = _train(launcher, 2, stage, teacher_config, tmp_path / "run", **section)
    assert trained == pytest.approx(losses(one_rank), abs=1e-5)
    assert list(validated(tmp_path / "run", "mse")) == [2, 4, 6]
    logged, computed = best_scores(tmp_path / "run")
    assert logged == computed


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks", "stage"), _OTHERS)
def test_every_launcher_and_stage_agrees(launcher, ranks, stage, teacher_config, one_rank, tmp_path):
    assert _train(launcher, ranks, stage, teacher_config, tmp_path / "run") == pytest.approx(losses(one_rank), abs=1e-5)


def test_losses_fall(one_rank):
    """Runs that do not learn would agree trivially."""
    first, last = losses(one_rank)[0], losses(one_rank)[-1]
    assert last < 0.8 * first
