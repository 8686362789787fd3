"""The grid of a model comes from its data; a grid that its merges do not divide is rejected with valid scales."""

import json
from typing import Any

import pytest

from simcast_hpc.config import EarthformerConfig, SimVPConfig
from simcast_hpc.models import build_model, grid_of, with_grid


def config(**over: Any) -> EarthformerConfig:
    return EarthformerConfig.model_validate_json(json.dumps(over))


def test_grid_comes_from_data():
    unset = EarthformerConfig()
    assert grid_of(unset) is None
    filled = with_grid(unset, (48, 96))
    assert grid_of(filled) == (48, 96)
    assert with_grid(filled, (48, 96)) == filled
    assert unset.grid is None


def test_simvp_accepts_any_grid():
    assert with_grid(SimVPConfig(), (17, 31)) == SimVPConfig()
    assert grid_of(SimVPConfig()) is None


@pytest.mark.parametrize("side", [48, 96, 192, 384])
def test_default_stem_divides_grids_of_builtin_data(side):
    assert grid_of(with_grid(EarthformerConfig(), (side, side))) == (side, side)


def test_rejects_missing_or_different_grid():
    with pytest.raises(ValueError, match=r"model\.grid=\[384, 384\] differs from .* 48 x 48 pixels; remove"):
        with_grid(config(grid=[384, 384]), (48, 48))
    with pytest.raises(ValueError, match=r"model\.grid is not set"):
        build_model(EarthformerConfig(), frames_in=3, frames_out=2)


@pytest.mark.parametrize(
    ("over", "grid", "message"),
    [
        ({}, (16, 16), r"by 24, which does not divide 16 x 16 .*; try model\.stem\.scales=\[2, 2, 2\]"),
        ({}, (400, 400), r"does not divide 400 x 400 pixels; try model\.stem\.scales=\[5, 2, 1\]"),
        ({}, (128, 96), r"does not divide 128 x 96 pixels; try model\.stem\.scales=\[4, 2, 2\]"),
        ({"stem": {"kind": "conv"}}, (12, 12), r"model\.stem\.scale=4 .* by 8, .*; try model\.stem\.scale=3"),
        ({"stem": {"kind": "conv", "scale": [1, 8]}}, (12, 12), r"scale=\[1, 8\] .* by 2 x 16, .*; try .*scale=1"),
        ({"stem": {"kind": "none"}}, (5, 4), r"model\.stem=none .* by 2, .*; use fewer levels"),
        ({}, (17, 17), r"does not divide 17 x 17 pixels; use fewer levels"),
    ],
)  # fmt: skip
def test_rejects_incomplete_patches_with_valid_scales(over, grid, message):
    with pytest.raises(ValueError, match=message) as error:
        with_grid(config(**over), grid)
    if "try" in (text := str(error.value)):
        field, _, value = text.partition("; try ")[2].partition("=")
        stem = {**over.get("stem", {}), field.rpartition(".")[2]: json.loads(value)}
        assert grid_of(with_grid(config(**{**over, "stem": stem}), grid)) == grid
