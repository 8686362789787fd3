"""The grid of a model follows from its data, and a grid that its merges do not divide is refused with a remedy."""

import json
from typing import Any

import pytest

from simcast_hpc.config import EarthformerConfig, SimVPConfig
from simcast_hpc.models import build_model, fitted_to, grid_of


def config(**over: Any) -> EarthformerConfig:
    return EarthformerConfig.model_validate_json(json.dumps(over))


def test_a_grid_that_is_left_open_is_that_of_the_data():
    open_ = EarthformerConfig()
    assert grid_of(open_) is None
    fitted = fitted_to(open_, (48, 96))
    assert grid_of(fitted) == (48, 96)
    assert fitted_to(fitted, (48, 96)) == fitted
    assert open_.grid is None


def test_simvp_takes_any_grid():
    assert fitted_to(SimVPConfig(), (17, 31)) == SimVPConfig()
    assert grid_of(SimVPConfig()) is None


@pytest.mark.parametrize("side", [48, 96, 192, 384])
def test_the_default_stem_fits_the_grids_of_the_built_in_data(side):
    assert grid_of(fitted_to(EarthformerConfig(), (side, side))) == (side, side)


def test_another_grid_than_the_datas_is_rejected():
    with pytest.raises(ValueError, match=r"model\.grid=\[384, 384\] but the frames of the data are 48 x 48; leave"):
        fitted_to(config(grid=[384, 384]), (48, 48))


def test_a_model_without_a_grid_is_not_built():
    with pytest.raises(ValueError, match=r"model\.grid is not set"):
        build_model(EarthformerConfig(), frames_in=3, frames_out=2)


@pytest.mark.parametrize(
    ("over", "grid", "says"),
    [
        ({}, (16, 16), r"scales=\[3, 2, 2\] .* by 24, which 16 x 16 .*; try model\.stem\.scales=\[2, 2, 2\]"),
        ({}, (400, 400), r"400 x 400 pixels are no multiple of; try model\.stem\.scales=\[5, 2, 1\]"),
        ({}, (128, 96), r"128 x 96 pixels are no multiple of; try model\.stem\.scales=\[4, 2, 2\]"),
        ({"stem": {"kind": "conv"}}, (12, 12), r"model\.stem\.scale=4 .* by 8, .*; try model\.stem\.scale=3"),
        ({"stem": {"kind": "none"}}, (5, 4), r"model\.stem=none .* by 2, .*; take fewer levels"),
        ({}, (17, 17), r"17 x 17 pixels are no multiple of; take fewer levels"),
    ],
)  # fmt: skip
def test_patches_that_would_be_incomplete_are_rejected_with_scales_that_fit(over, grid, says):
    with pytest.raises(ValueError, match=says) as refusal:
        fitted_to(config(**over), grid)
    if "try" in (text := str(refusal.value)):
        field, _, value = text.partition("; try ")[2].partition("=")
        stem = {**over.get("stem", {}), field.rpartition(".")[2]: json.loads(value)}
        assert grid_of(fitted_to(config(**{**over, "stem": stem}), grid)) == grid
