"""Training runs with spatial sharding, and their comparison with the run of one rank."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from simcast_hpc.train.checkpoint import Checkpoint
from tests.multi_rank.runs import environment, losses, metrics, overrides, weights

STEPS = 5  # that are compared
CLIP = 1e-3
_BETA = 0.9


class Layout(NamedTuple):
    """ZeRO stage, ranks per sample, number of ranks, and further settings of a run."""

    stage: int
    spatial: int
    ranks: int
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"zero{self.stage}-spatial{self.spatial}-ranks{self.ranks}" + ("-changed" if self.more else "")


ONE_RANK = Layout(1, 1, 1)


def train_layouts(
    layouts: Iterable[Layout], *, config: Path, folder: Path, first: int = 0, resumes: Path | None = None
) -> None:
    """Train each layout to step ``first`` + STEPS, in ``folder / str(layout)``; the compared steps are all saved.

    Args:
        layouts: without duplicates. If ``first`` is not 0, all but the first continue its run from step ``first``.
        config: of all runs.
        folder: of the runs.
        first: steps before the comparison.
        resumes: a checkpoint that all runs begin from; None begins at step 0.
    """
    jobs: list[dict[str, Any]] = []
    for layout in layouts:
        start = saved_at(Path(jobs[0]["run_dir"]), first) if jobs and first else resumes
        jobs.append(_job(layout, config, folder, first, start))
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.multi_rank.forked_ranks", str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60 + (30 + 2 * first) * len(jobs),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def saved_at(run_dir: Path, step: int) -> Path:
    """Return the folder of a checkpoint."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def gradient_norms(run_dir: Path) -> list[float]:
    """Return the norms that DeepSpeed reported before clipping; none under ZeRO 0."""
    return [line["gradient_norm"] for line in metrics(run_dir) if "gradient_norm" in line]


def compare_runs(run_dir: Path, one: Path, *, first: int = 0) -> None:
    """Compare the last STEPS steps of a run with those of one rank: losses, gradients, clipping and weights.

    Args:
        run_dir: of the run.
        one: of the run of one rank.
        first: steps before those that are compared.
    """
    assert losses(run_dir)[-STEPS:] == pytest.approx(losses(one)[-STEPS:], abs=1e-5)
    norms = gradient_norms(one)[-STEPS:]
    assert len(norms) == STEPS and min(norms) > 2 * CLIP, "clipping is not active"
    assert gradient_norms(run_dir)[-STEPS:] in ([], pytest.approx(norms, rel=1e-5))
    expected = _gradients(one, first, one)
    total = torch.stack([gradient.square().sum() for gradient in expected.values()]).sum().sqrt()
    assert float(total) == pytest.approx(CLIP, rel=1e-3)
    for name, gradient in _gradients(run_dir, first, one).items():
        assert float((gradient - expected[name]).abs().max()) <= 1e-5 * CLIP, f"gradient of {name}"
    compare_weights(run_dir, one)


def compare_weights(run_dir: Path, one: Path) -> None:
    """Compare the weights after the last step."""
    for name, tensor in weights(run_dir).items():
        assert float((tensor - weights(one)[name]).abs().max()) <= 1e-5, f"weight {name}"


def _job(layout: Layout, config: Path, folder: Path, first: int, resumes: Path | None) -> dict[str, Any]:
    settings = overrides(
        max_steps=first + STEPS, engine__zero_stage=layout.stage, parallel__spatial=layout.spatial,
        optimizer__gradient_clip=CLIP, optimizer__learning_rate=1e-3, checkpoint__every_steps=1,
        checkpoint__keep=STEPS + 1,
    )[1::2]  # fmt: skip
    return {
        "config": str(config),
        "set": [*settings, *layout.more],
        "ranks": layout.ranks,
        "run_dir": str(folder / str(layout)),
        "folder": str(folder / f"{layout}-ranks"),
        "resumes": None if resumes is None else str(resumes),
    }


def _gradients(run_dir: Path, first: int, one: Path) -> dict[str, torch.Tensor]:
    """Return the clipped gradient of the first compared step by name, from the first moments before and after it."""
    after, before = Checkpoint(saved_at(run_dir, first + 1)), None
    if first:
        before = Checkpoint(saved_at(one, first))

    def gradient(name: str) -> torch.Tensor:
        moment = after.tensors(f"model.{name}")["exp_avg"]
        if before is not None:
            moment = moment - _BETA * before.tensors(f"model.{name}")["exp_avg"]
        return moment / (1 - _BETA)

    return {name: gradient(name) for name in weights(run_dir)}
