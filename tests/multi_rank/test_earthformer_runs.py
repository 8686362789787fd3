"""Training runs of Earthformer: dropout, decay groups and kernels under another layout, a resume, the interpreter."""

import os
import shutil
from pathlib import Path

import pytest

from tests.multi_rank.runs import losses, overrides, simcast

pytestmark = [pytest.mark.multi, pytest.mark.slow]
MODEL = (
    "{kind: earthformer, width: 8, heads: 1, stem: {widths: [4, 8], scales: [2, 2], convolutions: [1, 1]}, "
    "global_vectors: {count: 2}, %s}"
)
DROPOUT = MODEL % "attention_dropout: 0.2, projection_dropout: 0.2, feed_forward_dropout: 0.2"
QUIET = MODEL % "attention_dropout: 0.2, projection_dropout: 0.0, feed_forward_dropout: 0.0"
DECAY = {
    "optimizer__weight_decay": 0.1,
    "optimizer__no_decay": "norms_and_biases",
    "optimizer__schedule": "cosine",
    "optimizer__final_fraction": 0.1,
}


def _train(ranks: int, stage: int, config: Path, run_dir: Path, **over: object) -> list[float]:
    words = overrides(run_dir=run_dir, engine__zero_stage=stage, **over)
    simcast("torchrun" if ranks > 1 else "python", ranks, ["train", str(config), *words])
    return losses(run_dir)


@pytest.fixture(scope="module")
def whole(teacher_config, tmp_path_factory) -> list[float]:
    """An uninterrupted run of one rank with dropout and decay groups."""
    return _train(1, 0, teacher_config, tmp_path_factory.mktemp("whole") / "run", model=DROPOUT, **DECAY)


@pytest.mark.parametrize("saved_by", [(2, 3), (1, 0)], ids=["two-ranks-zero-3", "same"])
def test_a_resumed_run_has_the_same_dropout_and_decay(saved_by, teacher_config, whole, tmp_path):
    """Micro-batches of equal size get equal dropout masks on any number of ranks."""
    run_dir = tmp_path / "run"
    same = {"model": DROPOUT, **DECAY}
    _train(*saved_by, teacher_config, run_dir, **same)
    (run_dir / "DONE.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    resumed = _train(1, 0, teacher_config, run_dir, **same)
    assert resumed == (whole if saved_by == (1, 0) else pytest.approx(whole, abs=1e-5))


def test_dropout_and_decay_change_a_run(teacher_config, whole, tmp_path):
    """Otherwise the comparison above would prove nothing."""
    assert _train(1, 0, teacher_config, tmp_path / "other", model=QUIET) != pytest.approx(whole, abs=1e-4)


def test_kernels_and_references_give_the_same_losses(teacher_config, tmp_path, monkeypatch):
    """Ten steps with the kernels in Triton's interpreter; fp32 both, and the attention's dropout at work in both."""
    same = {"model": QUIET, "max_steps": 10, "batch__global_size": 1}
    twins = _train(1, 0, teacher_config, tmp_path / "twins", **same)
    inherited = environment_with(TRITON_INTERPRET="1", SIMCAST_KERNELS="triton")
    monkeypatch.setattr("tests.multi_rank.runs.environment", lambda: inherited)
    kernels = _train(1, 0, teacher_config, tmp_path / "kernels", **same)
    assert len(kernels) == 10 and kernels != twins
    assert kernels == pytest.approx(twins, rel=1e-4)
    assert twins[-1] < twins[0]


def environment_with(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}
