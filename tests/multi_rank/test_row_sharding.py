"""Training with spatial sharding equals training on one rank: losses, gradients, clipping, weights, resume."""

from itertools import product

import pytest

from tests.multi_rank.runs import losses
from tests.multi_rank.sharded_runs import (
    ONE_RANK,
    Layout,
    compare_runs,
    compare_weights,
    gradient_norms,
    saved_at,
    train_layouts,
)

pytestmark = pytest.mark.multi
_AT = 2
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


@pytest.mark.parametrize(
    "layouts", [pytest.param(_ALWAYS, id="zero-1-and-3"), pytest.param(_OTHERS, id="all", marks=pytest.mark.slow)]
)
def test_runs_equal_the_run_of_one_rank(layouts, teacher_config, tmp_path):
    train_layouts(dict.fromkeys([ONE_RANK, *layouts]), config=teacher_config, folder=tmp_path)
    for layout in layouts:
        compare_runs(tmp_path / str(layout), tmp_path / str(ONE_RANK))


@pytest.mark.slow
@pytest.mark.parametrize("more", _SETTINGS, ids=lambda more: more[0])
def test_other_settings_equal_the_run_of_one_rank(more, teacher_config, tmp_path):
    one, two, four = Layout(1, 1, 1, more), Layout(2, 2, 2, more), Layout(3, 4, 4, more)
    train_layouts([one, two, four], config=teacher_config, folder=tmp_path)
    for layout in (two, four):
        compare_runs(tmp_path / str(layout), tmp_path / str(one))


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "after"), _RESUMED, ids=str)
def test_a_resume_with_another_sharding_continues_the_run(saved, after, teacher_config, tmp_path):
    train_layouts(dict.fromkeys([ONE_RANK, saved]), config=teacher_config, folder=tmp_path)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    train_layouts([after], config=teacher_config, folder=resumed, resumes=saved_at(tmp_path / str(saved), _AT))
    assert losses(resumed / str(after)) == pytest.approx(losses(tmp_path / str(ONE_RANK))[_AT:], abs=1e-5)
    compare_weights(resumed / str(after), tmp_path / str(ONE_RANK))


@pytest.mark.slow
def test_bf16_and_partitioned_construction(teacher_config, tmp_path):
    """Gradient norms in bf16 are those of one rank within its rounding; shards counted twice give 41 % more."""
    in_bf16 = [
        Layout(stage, spatial, spatial, ("engine.precision=bf16",))
        for stage, spatial in ((1, 1), (1, 2), (2, 2), (3, 2))
    ]
    partitioned = Layout(3, 2, 2, ("engine.zero_init=true",))
    train_layouts([ONE_RANK, *in_bf16], config=teacher_config, folder=tmp_path)
    norms = gradient_norms(tmp_path / str(in_bf16[0]))
    for layout in in_bf16[1:]:
        assert gradient_norms(tmp_path / str(layout)) == pytest.approx(norms, rel=2**-4)
        assert losses(tmp_path / str(layout)) == pytest.approx(losses(tmp_path / str(in_bf16[0])), rel=2**-6)
    folder = tmp_path / "partitioned"
    folder.mkdir()
    train_layouts([partitioned], config=teacher_config, folder=folder)
    compare_runs(folder / str(partitioned), tmp_path / str(ONE_RANK))
