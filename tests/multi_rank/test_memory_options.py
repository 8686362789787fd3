"""Offload and hierarchical partitioning change where memory is used, not the losses: fp32 within 1e-5."""

import shutil

import pytest

from tests.multi_rank.runs import best_scores, losses, overrides, simcast, validated

pytestmark = pytest.mark.multi
_HOST = {"engine__zero_stage": 3, "engine__offload": "parameters"}
_HIERARCHICAL = {"engine__zero_stage": 3, "engine__zero_hpz_partition_size": 2}


def _train(config, run_dir, ranks, options) -> None:
    simcast("torchrun", ranks, ["train", str(config), *overrides(run_dir=run_dir, **options)])


def _forget_the_end(run_dir) -> None:
    """Remove the last two steps, as if the run had been killed after its checkpoint of step 4."""
    (run_dir / "DONE.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        pytest.param(2, {"engine__zero_stage": 1, "engine__offload": "optimizer"}, marks=pytest.mark.slow),
        pytest.param(2, {"engine__zero_stage": 2, "engine__offload": "optimizer"}, marks=pytest.mark.slow),
        pytest.param(2, {"engine__zero_stage": 3, "engine__offload": "optimizer"}, marks=pytest.mark.slow),
        pytest.param(2, _HIERARCHICAL | _HOST, marks=pytest.mark.slow),
        pytest.param(4, _HIERARCHICAL, marks=pytest.mark.slow),
    ],
)
def test_the_losses_equal_those_of_one_rank_also_after_a_resume(ranks, options, teacher_config, one_rank, tmp_path):
    run_dir = tmp_path / "run"
    _train(teacher_config, run_dir, ranks, options)
    assert losses(run_dir) == pytest.approx(losses(one_rank), abs=1e-5)
    reference = losses(run_dir)
    _forget_the_end(run_dir)
    _train(teacher_config, run_dir, ranks, options)
    assert losses(run_dir) == reference, "at the same layout the resumed steps are bitwise equal"


def test_a_checkpoint_of_an_offloaded_run_resumes_hierarchically(teacher_config, one_rank, tmp_path):
    """Weights and moments are saved from host memory by name and restored into a layout with a second copy."""
    run_dir = tmp_path / "run"
    section = {"validation__every_steps": 2, "validation__export": "best", "validation__score": "mse"}
    _train(teacher_config, run_dir, 2, _HOST | section)
    assert losses(run_dir) == pytest.approx(losses(one_rank), abs=1e-5)
    before = validated(run_dir, "mse")
    _forget_the_end(run_dir)
    _train(teacher_config, run_dir, 2, _HIERARCHICAL | section)
    assert losses(run_dir) == pytest.approx(losses(one_rank), abs=1e-5)
    assert validated(run_dir, "mse") == pytest.approx(before, abs=1e-5) and list(before) == [2, 4, 6]
    logged, computed = best_scores(run_dir)
    assert logged == computed


@pytest.mark.slow
def test_bf16_on_the_host_equals_bf16_on_the_device(teacher_config, tmp_path):
    """Stage 1 sums and reduces in fp32 either way, so that offload changes a bf16 run only by the rounding of Adam."""
    on = {"engine__precision": "bf16", "engine__zero_stage": 1, "ema__decay": 0.9}
    _train(teacher_config, tmp_path / "device", 2, on)
    _train(teacher_config, tmp_path / "host", 2, on | {"engine__offload": "optimizer"})
    assert losses(tmp_path / "host") == pytest.approx(losses(tmp_path / "device"), abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved_by", "resumed_by"),
    [
        ((1, {"engine__zero_stage": 0}), (2, {"engine__zero_stage": 2, "engine__offload": "optimizer"})),
        ((2, {"engine__zero_stage": 1, "engine__offload": "optimizer"}), (1, {"engine__zero_stage": 3})),
        ((4, _HIERARCHICAL), (2, _HOST)),
    ],
    ids=["device to host", "host to device", "hierarchical to host"],
)
def test_a_checkpoint_resumes_under_every_memory_option(saved_by, resumed_by, teacher_config, one_rank, tmp_path):
    run_dir = tmp_path / "run"
    for ranks, options in (saved_by, resumed_by):
        if (run_dir / "DONE.json").exists():
            _forget_the_end(run_dir)
        _train(teacher_config, run_dir, ranks, options)
    assert losses(run_dir) == pytest.approx(losses(one_rank), abs=1e-5)


def test_a_partition_larger_than_the_world_size_is_rejected_at_the_start(teacher_config, tmp_path):
    result = simcast(
        "python", 1, ["train", str(teacher_config), *overrides(run_dir=tmp_path / "run", **_HIERARCHICAL)], check=False
    )
    assert result.returncode == 2
    assert "engine.zero_hpz_partition_size=2 does not divide the number of ranks, 1" in result.stderr
    assert not (tmp_path / "run").exists()
