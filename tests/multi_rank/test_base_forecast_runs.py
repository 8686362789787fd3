"""Training runs of a model with a base forecast: losses under another layout, a resume, bf16 under ZeRO 3."""

import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.multi_rank.runs import losses, overrides, simcast

pytestmark = [pytest.mark.multi, pytest.mark.slow]


def _train(ranks: int, stage: int, config: Path, run_dir: Path, **over: object) -> list[float]:
    words = overrides(run_dir=run_dir, engine__zero_stage=stage, model__base="extrapolation", **over)
    simcast("torchrun" if ranks > 1 else "python", ranks, ["train", str(config), *words])
    return losses(run_dir)


@pytest.fixture(scope="module")
def whole(teacher_config, tmp_path_factory) -> list[float]:
    """An uninterrupted run of one rank."""
    return _train(1, 0, teacher_config, tmp_path_factory.mktemp("whole") / "run")


def test_two_ranks_under_zero_3_agree_and_resume_on_one(teacher_config, whole, tmp_path):
    run_dir = tmp_path / "run"
    assert _train(2, 3, teacher_config, run_dir) == pytest.approx(whole, abs=1e-5)
    weights = load_file(run_dir / "weights" / "model.safetensors")
    assert weights["network.head.weight"].abs().max() > 1e-3, "the output layer was zero before training"
    (run_dir / "DONE.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    assert _train(1, 0, teacher_config, run_dir) == pytest.approx(whole, abs=1e-5)


def test_first_loss_in_bf16_is_that_of_the_fp32_base(teacher_config, whole, tmp_path):
    """The output layer is zero before the first step, so only the base contributes to the loss."""
    in_bf16 = _train(2, 3, teacher_config, tmp_path / "bf16", engine__precision="bf16")
    assert in_bf16[0] == pytest.approx(whole[0], rel=1e-6)
    assert all(map(math.isfinite, in_bf16)) and in_bf16[1:] != whole[1:]
