"""Training with spatial sharding equals training on one rank: losses, gradients, clipping, weights, resume."""

import json
import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from simcast_hpc.train.checkpoint import Checkpoint
from tests.multi_rank.runs import environment, losses, metrics, overrides, weights

pytestmark = pytest.mark.multi
_STEPS, _AT, _CLIP = 5, 2, 1e-3
_BETA = 0.9


class Layout(NamedTuple):
    """ZeRO stage, ranks per sample, number of ranks, and further settings of a run."""

    stage: int
    spatial: int
    ranks: int
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"zero{self.stage}-spatial{self.spatial}-ranks{self.ranks}" + ("-changed" if self.more else "")


_ONE = Layout(1, 1, 1)
_ALWAYS = [Layout(1, 2, 2), Layout(3, 2, 2)]
_OTHERS = [Layout(stage, spatial, spatial) for stage, spatial in product(range(4), (1, 2, 4))]
_OTHERS += [Layout(stage, 2, 4) for stage in range(4)]
_RESUMED = [(Layout(1, 2, 2), Layout(3, 1, 1)), (Layout(3, 4, 4), Layout(2, 2, 4)), (Layout(1, 1, 1), Layout(0, 4, 4))]
# Base forecasts, noise, a margin that covers whole ranks, a loss of whole frames, T' > T, augmentation.
_SETTINGS = [
    ("model.base=extrapolation", "data.augment=true"),
    ("stage=direct", "model.noise_channels=1", "loss.mse_weight=0", "loss.crps_weight=1", "model.base=persistence"),
    ("data.crop={size: 8, margin: 4}", "loss.mae_weight=1"),
    ("loss.amse_weight=1", "sequence.frames_in=2"),
]


def _train(layouts: Iterable[Layout], *, config: Path, folder: Path, resumes: dict[Layout, Path] | None = None) -> None:
    jobs = [_job(layout, config, folder, (resumes or {}).get(layout)) for layout in layouts]
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.multi_rank.forked_ranks", str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60 + 30 * len(jobs),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def _job(layout: Layout, config: Path, folder: Path, resumes: Path | None) -> dict[str, Any]:
    settings = overrides(
        max_steps=_STEPS, engine__zero_stage=layout.stage, parallel__spatial=layout.spatial,
        optimizer__gradient_clip=_CLIP, optimizer__learning_rate=1e-3, checkpoint__every_steps=1,
        checkpoint__keep=_STEPS,
    )[1::2]  # fmt: skip
    return {
        "config": str(config),
        "set": [*settings, *layout.more],
        "ranks": layout.ranks,
        "run_dir": str(folder / str(layout)),
        "folder": str(folder / f"{layout}-ranks"),
        "resumes": None if resumes is None else str(resumes),
    }


def _checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def _gradients(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return the clipped gradient of the first step by name: the first moment after it, divided by 1 - beta."""
    checkpoint = Checkpoint(_checkpoint(run_dir, 1))
    return {name: checkpoint.tensors(f"model.{name}")["exp_avg"] / (1 - _BETA) for name in weights(run_dir)}


def _gradient_norms(run_dir: Path) -> list[float]:
    return [line["gradient_norm"] for line in metrics(run_dir) if "gradient_norm" in line]


def _compare(run_dir: Path, one: Path) -> None:
    """Compare a run with that of one rank."""
    assert losses(run_dir) == pytest.approx(losses(one), abs=1e-5)
    norms = _gradient_norms(one)
    assert len(norms) == _STEPS and min(norms) > 2 * _CLIP, "clipping is not active"
    assert _gradient_norms(run_dir) in ([], pytest.approx(norms, rel=1e-5))  # DeepSpeed reports none under ZeRO 0
    expected = _gradients(one)
    total = torch.stack([gradient.square().sum() for gradient in expected.values()]).sum().sqrt()
    assert float(total) == pytest.approx(_CLIP, rel=1e-3)
    for name, gradient in _gradients(run_dir).items():
        assert float((gradient - expected[name]).abs().max()) <= 1e-5 * _CLIP, f"gradient of {name}"
    for name, tensor in weights(run_dir).items():
        assert float((tensor - weights(one)[name]).abs().max()) <= 1e-5, f"weight {name}"


@pytest.mark.parametrize(
    "layouts", [pytest.param(_ALWAYS, id="zero-1-and-3"), pytest.param(_OTHERS, id="all", marks=pytest.mark.slow)]
)
def test_runs_equal_the_run_of_one_rank(layouts, teacher_config, tmp_path):
    _train(dict.fromkeys([_ONE, *layouts]), config=teacher_config, folder=tmp_path)
    for layout in layouts:
        _compare(tmp_path / str(layout), tmp_path / str(_ONE))


@pytest.mark.slow
@pytest.mark.parametrize("more", _SETTINGS, ids=lambda more: more[0])
def test_other_settings_equal_the_run_of_one_rank(more, teacher_config, tmp_path):
    one, two, four = Layout(1, 1, 1, more), Layout(2, 2, 2, more), Layout(3, 4, 4, more)
    _train([one, two, four], config=teacher_config, folder=tmp_path)
    for layout in (two, four):
        _compare(tmp_path / str(layout), tmp_path / str(one))


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "after"), _RESUMED, ids=str)
def test_a_resume_with_another_sharding_continues_the_run(saved, after, teacher_config, tmp_path):
    _train(dict.fromkeys([_ONE, saved]), config=teacher_config, folder=tmp_path)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    _train([after], config=teacher_config, folder=resumed, resumes={after: _checkpoint(tmp_path / str(saved), _AT)})
    assert losses(resumed / str(after)) == pytest.approx(losses(tmp_path / str(_ONE))[_AT:], abs=1e-5)
    for name, tensor in weights(resumed / str(after)).items():
        assert float((tensor - weights(tmp_path / str(_ONE))[name]).abs().max()) <= 1e-5, name


@pytest.mark.slow
def test_bf16_and_partitioned_construction(teacher_config, tmp_path):
    """Gradient norms in bf16 are those of one rank within its rounding; shards counted twice give 41 % more."""
    in_bf16 = [
        Layout(stage, spatial, spatial, ("engine.precision=bf16",))
        for stage, spatial in ((1, 1), (1, 2), (2, 2), (3, 2))
    ]
    partitioned = Layout(3, 2, 2, ("engine.zero_init=true",))
    _train([_ONE, *in_bf16], config=teacher_config, folder=tmp_path)
    norms = _gradient_norms(tmp_path / str(in_bf16[0]))
    for layout in in_bf16[1:]:
        assert _gradient_norms(tmp_path / str(layout)) == pytest.approx(norms, rel=2**-4)
        assert losses(tmp_path / str(layout)) == pytest.approx(losses(tmp_path / str(in_bf16[0])), rel=2**-6)
    folder = tmp_path / "partitioned"
    folder.mkdir()
    _train([partitioned], config=teacher_config, folder=folder)
    _compare(folder / str(partitioned), tmp_path / str(_ONE))
