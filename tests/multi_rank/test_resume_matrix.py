"""A resume from every ZeRO stage to every other and to other world sizes: equal windows and next five losses."""

import json
import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.multi_rank.runs import environment, losses, overrides

pytestmark = pytest.mark.multi
_AT, _STEPS, _GLOBAL_BATCH = 5, 10, 4
_RANKS = ((1, 2), (2, 1), (2, 4), (4, 2))


class Layout(NamedTuple):
    """Precision, ZeRO stage and number of ranks of a run."""

    precision: str
    stage: int
    ranks: int

    def __str__(self) -> str:
        return f"{self.precision}-zero{self.stage}-ranks{self.ranks}"


Cell = tuple[Layout, Layout]


def _cells(precision: str, *changes: tuple[int, int, int, int]) -> list[Cell]:
    """Return pairs of layouts: (stage, ranks) that saves and (stage, ranks) that resumes."""
    return [(Layout(precision, *change[:2]), Layout(precision, *change[2:])) for change in changes]


# Covers every stage that saves or resumes, and every change of the number of ranks.
_COVERING = [
    *_cells("fp32", (0, 1, 1, 2), (1, 2, 2, 1), (2, 2, 3, 4), (3, 4, 0, 2)),
    *_cells("bf16", (1, 1, 2, 2), (3, 2, 1, 1)),
]
_PRODUCT = [
    cell
    for precision, stages in (("fp32", range(4)), ("bf16", range(1, 4)))
    for saved, after, (before, then) in product(stages, stages, _RANKS)
    for cell in _cells(precision, (saved, before, after, then))
]


def _tolerance(precision: str, loss: float) -> float:
    """Return the allowed difference of two losses.

    fp32: 1e-5, as documented. bf16: one unit roundoff, 2^-8 of the loss. Master weights and moments are fp32 and equal
    at the resume, but gradients are reduced in another order, so weights close to the middle between two bf16 numbers
    may round differently after a step. A resume without the moments, or without Adam's step, differs by 2 to 30 %.
    """
    return 1e-5 if precision == "fp32" else 2**-8 * loss


def _train_all(cells: Iterable[Cell], *, config: Path, folder: Path) -> None:
    """Train each layout that saves to its end, once; then resume every cell from the checkpoint in its middle."""
    saving = [_job(str(saved), saved, config, folder) for saved in sorted({saved for saved, _ in cells})]
    resuming = [
        _job(f"{saved}-{after}", after, config, folder, resumes=folder / str(saved) / f"checkpoints/step-{_AT:08d}")
        for saved, after in cells
    ]
    path = folder / "jobs.json"
    path.write_text(json.dumps([*saving, *resuming]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.multi_rank.forked_ranks", str(path)],
        cwd=Path(__file__).resolve().parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60 + 30 * len(resuming),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def _job(name: str, layout: Layout, config: Path, folder: Path, *, resumes: Path | None = None) -> dict[str, Any]:
    chosen = {"engine__zero_stage": layout.stage, "engine__precision": layout.precision}
    return {
        "config": str(config),
        "set": overrides(max_steps=_STEPS, checkpoint__every_steps=_AT, **chosen)[1::2],
        "ranks": layout.ranks,
        "run_dir": str(folder / name),
        "folder": str(folder / f"{name}-ranks"),
        "resumes": None if resumes is None else str(resumes),
    }


def _windows(run_dir: Path, ranks: int) -> list[str]:
    """Return the windows of a run in the order of its optimizer steps: micro-batch by micro-batch, rank by rank."""
    folder = run_dir.with_name(run_dir.name + "-ranks")
    of_ranks = [json.loads((folder / f"windows-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    return [window for micro in zip(*of_ranks, strict=True) for batch in micro for window in batch]


@pytest.mark.parametrize(
    "cells",
    [pytest.param(_COVERING, id="covering"), pytest.param(_PRODUCT, id="product", marks=pytest.mark.slow)],
)
def test_resumed_losses_and_windows_equal_the_uninterrupted_run(cells, teacher_config, tmp_path):
    _train_all(cells, config=teacher_config, folder=tmp_path)
    differences: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for saved, after in cells:
        uninterrupted, resumed = tmp_path / str(saved), tmp_path / f"{saved}-{after}"
        assert (len(losses(uninterrupted)), len(losses(resumed))) == (_STEPS, _STEPS - _AT)
        expected, actual = _windows(uninterrupted, saved.ranks), _windows(resumed, after.ranks)
        assert len(expected) == _STEPS * _GLOBAL_BATCH and len(set(expected)) > _GLOBAL_BATCH
        assert actual == expected[_AT * _GLOBAL_BATCH :], f"{saved} to {after} reads other windows"
        for loss, again in zip(losses(uninterrupted)[_AT:], losses(resumed), strict=True):
            assert abs(loss - again) <= _tolerance(saved.precision, loss), f"{saved} to {after}: {loss}, {again}"
            differences[saved.precision].append(abs(loss - again) / (1 if saved.precision == "fp32" else loss))
    largest = {precision: max(values) for precision, values in differences.items()}
    print(f"\n{len(cells)} cells; max. difference: fp32 {largest['fp32']}, bf16 {largest['bf16']} of the loss")
