"""Losses are independent of ranks, ZeRO stage and launcher within 1e-5 in fp32, within rounding in bf16."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.multi_rank.runs import best_scores, environment, losses, overrides, simcast, validated

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


# bf16, fixed before the first run. Micro-batches hold one sample each, and gradients are summed in fp32, so ranks
# change only the order of sums: their error is of fp32. A master weight close to the middle of two bf16 numbers can
# then round to the other one, which changes outputs, hence the loss, by about one unit roundoff at most, 2^-8 of it.
_BF16 = 2**-8
# ZeRO 3 differs from ZeRO 1 in bf16 by two causes, which this removes: it replaces torch's linear layer by one that
# rounds once more, before the bias, and the last bit of its gradient norm, hence of clipped gradients, is another.
_SAME_ARITHMETIC = [
    "engine.deepspeed={zero_optimization: {memory_efficient_linear: false}}",
    "optimizer.gradient_clip=0",
]
_STEPS = 8
_EARTHFORMER = (
    "{kind: earthformer, width: 8, heads: 2, stem: {widths: [4, 8], scales: [2, 1], convolutions: [1, 1]}, "
    "attention_dropout: 0, projection_dropout: 0, feed_forward_dropout: 0}"
)
_BF16_SOME = [("simvp", ranks, stage) for ranks, stage in [(1, 1), (2, 1), (1, 3), (4, 3)]]
_BF16_ALL = [(model, *one) for model in ("simvp", "earthformer") for one in product((1, 2, 4), (1, 2, 3))]
_FP32_ALL = [(model, *one) for model in ("simvp", "earthformer") for one in product((1, 2, 4), range(4))]


def _train_forked(
    layouts: list[tuple[str, int, int]], precision: str, config: Path, folder: Path, *more: str
) -> list[list[float]]:
    """Return the losses of the first steps of each model, number of ranks and ZeRO stage."""
    jobs: list[dict[str, Any]] = []
    for model, ranks, stage in layouts:
        name = f"{model}-{ranks}-{stage}"
        chosen = {"engine__precision": precision, "engine__zero_stage": stage, "checkpoint__every_steps": _STEPS}
        if model == "earthformer":
            chosen["model"] = _EARTHFORMER
        settings = overrides(max_steps=_STEPS, **chosen)[1::2]
        paths = {"config": str(config), "run_dir": str(folder / name), "folder": str(folder / f"{name}-ranks")}
        jobs.append({"set": [*settings, *more], "ranks": ranks, "resumes": None, **paths})
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.multi_rank.forked_ranks", str(folder / "jobs.json")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60 + 30 * len(jobs),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [losses(Path(job["run_dir"])) for job in jobs]


@pytest.mark.parametrize(
    ("precision", "layouts"),
    [
        ("bf16", _BF16_SOME),
        pytest.param("bf16", _BF16_ALL, marks=pytest.mark.slow),
        pytest.param("fp32", _FP32_ALL, marks=pytest.mark.slow),
    ],
    ids=["bf16-some", "bf16-all", "fp32-all"],
)
def test_ranks_and_stages_agree_within_rounding(precision, layouts, teacher_config, tmp_path):
    """The references are one rank: of the first ZeRO stage, and of the same one.

    In bf16 Earthformer's losses under ZeRO 3 are compared with those under ZeRO 3 only, see ``_SAME_ARITHMETIC``.
    """
    first: dict[tuple[str, int | None], list[float]] = {}
    largest: dict[str, float] = {}
    for layout, trained in zip(layouts, _train_forked(layouts, precision, teacher_config, tmp_path), strict=True):
        model, ranks, stage = layout
        references = [first.setdefault((model, stage), trained)]
        if (precision, model, stage) != ("bf16", "earthformer", 3):
            references.append(first.setdefault((model, None), trained))
        assert len(trained) == _STEPS and trained[-1] < 0.9 * trained[0], "the steps must change the loss"
        differences = [
            max(
                abs(one - other) / (1.0 if precision == "fp32" else other)
                for one, other in zip(trained, reference, strict=True)
            )
            for reference in references
        ]
        print(f"{precision} {model} ranks {ranks} ZeRO {stage}: {', '.join(f'{one:.2e}' for one in differences)}")
        assert max(differences) <= (1e-5 if precision == "fp32" else _BF16), layout
        largest[model] = max(*differences, largest.get(model, 0.0))
    print(f"largest differences: {largest}")


@pytest.mark.slow
def test_zero_stages_are_bitwise_identical_in_bf16_with_the_same_arithmetic(teacher_config, tmp_path):
    layouts = [(model, 1, stage) for model in ("simvp", "earthformer") for stage in (1, 2, 3)]
    trained = _train_forked(layouts, "bf16", teacher_config, tmp_path, *_SAME_ARITHMETIC)
    assert trained[0] == trained[1] == trained[2] and trained[3] == trained[4] == trained[5]
    assert all(one[-1] < 0.9 * one[0] for one in trained), "the steps must change the loss"
