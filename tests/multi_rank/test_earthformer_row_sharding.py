"""Training of Earthformer with spatial sharding equals training on one rank: losses, gradients, clipping, weights.

All runs continue a run of one rank. At its beginning fp32 does not suffice for a comparison: fields without rain give
group norms a standard deviation near zero and gradient norms of 100 to 2,000. Two runs of one rank whose initial
weights differ by 6e-8 of their values then differ after five steps by up to 3e-4 in weights and 10 % in gradient norms.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from simcast_hpc.config import TrainConfig, read_config, to_yaml
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.train.checkpoint import Checkpoint
from tests.multi_rank.runs import losses, weights
from tests.multi_rank.sharded_runs import (
    ONE_RANK,
    STEPS,
    Layout,
    compare_runs,
    compare_weights,
    gradient_norms,
    saved_at,
    train_layouts,
)

pytestmark = pytest.mark.multi
_FIRST = 30  # steps of one rank before the comparison
_DROPOUT = {"attention_dropout": 0.2, "projection_dropout": 0.2, "feed_forward_dropout": 0.2}
_ONE_LEVEL = {"encoder_depth": [1], "decoder_depth": [1]}
_TWO_LEVELS = {"encoder_depth": [1, 1], "decoder_depth": [1, 1]}
# Side of the frames, and fields of the model. Ranks have 8, 4, 2 or 1 rows of tokens, or 12, 6 or 3 in shifted cuboids.
_PATTERNS: dict[str, tuple[int, dict[str, Any]]] = {
    "axial": (16, _ONE_LEVEL),
    "axial-two-levels": (16, _TWO_LEVELS),
    "shifted": (
        24,
        {
            "encoder_pattern": "video_swin_2x3", "decoder_pattern": "video_swin_1x3", "cross_pattern": "cross_3x3",
            **_ONE_LEVEL,
        },
    ),
    "gathered": (
        16,
        {"encoder_pattern": "spatial_lg_2", "decoder_pattern": "full", "cross_pattern": "cross_2x2_lg", **_TWO_LEVELS},
    ),
}  # fmt: skip
_ALWAYS = [Layout(1, 2, 2), Layout(3, 2, 2)]
_ALL = [Layout(stage, spatial, spatial) for stage, spatial in product(range(4), (1, 2, 4))]
_ALL += [Layout(stage, 2, 4) for stage in (1, 3)]
_RESUMED = [(Layout(1, 2, 2), Layout(3, 1, 1)), (Layout(3, 4, 4), Layout(2, 2, 4)), (Layout(1, 1, 1), Layout(0, 4, 4))]


def _config(teacher_config: Path, pattern: str, folder: Path) -> Path:
    """Write the configuration, and an archive of frames of its size; return its path."""
    side, fields = _PATTERNS[pattern]
    model = {
        "kind": "earthformer", "width": 8, "heads": 2, "global_vectors": {"count": 2},
        "stem": {"widths": [4, 8], "scales": [1, 2], "convolutions": [1, 1]},
    } | _DROPOUT | fields  # fmt: skip
    root = folder / "storms"
    write_archive(root, seed=5, events={"train": 6, "val": 1, "test": 2}, size=side, frames_per_event=12)
    words = [f"model={json.dumps(model)}", f"data.root={root}", "optimizer.schedule=constant", "batch.global_size=2"]
    path = folder / "config.yaml"
    path.write_text(to_yaml(read_config(TrainConfig, teacher_config, words)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("pattern", "layouts"),
    [
        pytest.param("axial", _ALWAYS, id="axial-zero-1-and-3"),
        *(pytest.param(name, _ALL, id=f"{name}-all", marks=pytest.mark.slow) for name in _PATTERNS),
    ],
)
def test_runs_equal_the_run_of_one_rank(pattern, layouts, teacher_config, tmp_path):
    config, one = _config(teacher_config, pattern, tmp_path), tmp_path / str(ONE_RANK)
    train_layouts(dict.fromkeys([ONE_RANK, *layouts]), config=config, folder=tmp_path, first=_FIRST)
    for layout in layouts:
        compare_runs(tmp_path / str(layout), one, first=_FIRST)
    before = Checkpoint(saved_at(one, _FIRST))
    moved = [(tensor - before.tensors(f"model.{name}")["param"]).abs().max() for name, tensor in weights(one).items()]
    assert max(moved) > 100 * 1e-5, "the optimizer hardly moved the weights"


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "after"), _RESUMED, ids=str)
def test_a_resume_with_another_sharding_continues_the_run(saved, after, teacher_config, tmp_path):
    config, at, resumed = _config(teacher_config, "axial", tmp_path), _FIRST + 2, tmp_path / "resumed"
    train_layouts(dict.fromkeys([ONE_RANK, saved]), config=config, folder=tmp_path, first=_FIRST)
    resumed.mkdir()
    start = saved_at(tmp_path / str(saved), at)
    train_layouts([after], config=config, folder=resumed, first=_FIRST, resumes=start)
    assert losses(resumed / str(after)) == pytest.approx(losses(tmp_path / str(ONE_RANK))[at:], abs=1e-5)
    compare_weights(resumed / str(after), tmp_path / str(ONE_RANK))


@pytest.mark.slow
def test_bf16_and_partitioned_construction(teacher_config, tmp_path):
    """Gradient norms in bf16 are those of one rank within its rounding; shards counted twice give 41 % more."""
    config, in_bf16 = _config(teacher_config, "axial", tmp_path), ("engine.precision=bf16",)
    one, others = Layout(1, 1, 1, in_bf16), [Layout(stage, 2, 2, in_bf16) for stage in (1, 2, 3)]
    train_layouts([one, *others], config=config, folder=tmp_path, first=_FIRST)
    norms, expected = (values(tmp_path / str(one))[-STEPS:] for values in (gradient_norms, losses))
    for layout in others:
        assert gradient_norms(tmp_path / str(layout))[-STEPS:] == pytest.approx(norms, rel=2**-4)
        assert losses(tmp_path / str(layout))[-STEPS:] == pytest.approx(expected, rel=2**-6)
    folder, partitioned = tmp_path / "partitioned", Layout(3, 2, 2, ("engine.zero_init=true",))
    folder.mkdir()
    train_layouts([ONE_RANK, partitioned], config=config, folder=folder, first=_FIRST)
    compare_runs(folder / str(partitioned), folder / str(ONE_RANK), first=_FIRST)
