"""Domains in tiles: weights add up, no seam beyond what a model itself says differently there, memory is bounded."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simcast_hpc.config import ConfigError
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.inference.tiles import Tiling, forecast_in_tiles
from simcast_hpc.radar import encoding_of_run

FRAMES_OUT = 2


def weights_of(tiling: Tiling) -> np.ndarray:
    total = np.zeros(tiling.padded)
    for row, column in tiling.tiles():
        total[row.pixels, column.pixels] += row.weight[:, None] * column.weight[None, :]
    return total


@pytest.mark.parametrize(
    ("domain", "tile", "overlap"),
    [((700, 900), (384, 384), 96), ((384, 385), (384, 384), 192), ((97, 50), (32, 24), 12), ((20, 70), (32, 32), 0)],
)
def test_weights_add_up_to_one_everywhere(domain, tile, overlap):
    tiling = Tiling(domain, tile, overlap)
    np.testing.assert_allclose(weights_of(tiling), 1.0, atol=2e-7)
    for strips, length, size in ((tiling.rows, tiling.padded[0], tile[0]), (tiling.columns, tiling.padded[1], tile[1])):
        starts = [strip.start for strip in strips]
        assert starts[0] == 0 and starts[-1] == length - size
        assert all(a + size - b >= overlap for a, b in itertools.pairwise(starts))


def test_weights_are_smooth_and_nothing_at_a_tiles_inner_edge():
    for strip in Tiling((700, 900), (384, 384), 96).rows[1:]:
        # A cosine over 68 or more pixels rises by less than pi / 2 / 68 a pixel.
        assert strip.weight[0] < 1e-3 and np.abs(np.diff(strip.weight)).max() < 0.025


@pytest.mark.parametrize("overlap", [-1, 17])
def test_an_overlap_above_half_a_tile_is_rejected(overlap):
    with pytest.raises(ConfigError, match=f"--overlap {overlap} with tiles of 32 x 40 pixels; 0 to 16"):
        Tiling((100, 100), (32, 40), overlap)


def tiled(forecast, codes: np.ndarray, tiling: Tiling, batch: int = 2) -> np.ndarray:
    out = np.zeros((FRAMES_OUT, *codes.shape[1:]), np.float32)
    forecast_in_tiles(lambda cut, _corners: forecast(cut), codes, tiling, out=out, batch=batch)
    return out


def rain(codes: np.ndarray) -> np.ndarray:
    """Forecast rain rates pixel by pixel: shift-equivariant, and blind to a tile's border."""
    rates = encoding_of_run(_knmi()).linear_of_forecast(codes[:, -1:].astype(np.float32) / 255)
    return np.concatenate([rates, 0.5 * rates], axis=1)


def _knmi():
    from simcast_hpc.config import DataConfig

    return DataConfig(dataset="knmi")


def domain(shape: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """Return smooth codes ``[2, H, W]`` below 255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 2, shape[0] // 20 + 2, shape[1] // 20 + 2, generator=generator)
    smooth = F.interpolate(coarse, size=shape, mode="bicubic", align_corners=False)[0]
    return (smooth.clamp(0, 1) * 220).to(torch.uint8).numpy()


def test_a_pixelwise_model_sees_no_tiles():
    codes = domain((700, 900))
    np.testing.assert_allclose(tiled(rain, codes, Tiling((700, 900), (384, 384), 96)), rain(codes[None])[0], rtol=1e-6)


class Blur:
    """A shift-equivariant model of a 31 x 31 neighbourhood, which sees zeros beyond a border: so a tile's edge errs."""

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(codes.astype(np.float32)).mean(dim=1, keepdim=True)
        for _ in range(3):
            x = F.avg_pool2d(x, 11, stride=1, padding=5)
        return torch.cat([x, x.square() / 100], dim=1).numpy()


def test_seams_of_700_by_900_are_no_larger_than_the_models_own_difference_there():
    codes, model, tiling = domain((700, 900)), Blur(), Tiling((700, 900), (384, 384), 96)
    whole, blended = model(codes[None])[0], tiled(model, codes, tiling)
    error = np.abs(blended - whole)

    own = np.zeros_like(whole)  # the largest difference of any tile from the whole, pixel by pixel
    for row, column in tiling.tiles():
        alone = model(codes[None, :, row.pixels, column.pixels])[0]
        difference = np.abs(alone - whole[:, row.pixels, column.pixels])
        own[:, row.pixels, column.pixels] = np.maximum(own[:, row.pixels, column.pixels], difference)
    assert own.max() > 20  # without blending a border would be seen
    assert (error <= own + 1e-3).all()
    # The weights fall to nothing where a tile errs most, so far less is left than the tiles' own difference.
    assert error.max() < 0.05 * own.max()

    # Across a tile's border the field jumps no more than the whole forecast does there, but for what is left of it.
    for border in (tiling.columns[1].start, tiling.columns[0].start + 384):
        jump = np.abs(np.diff(blended, axis=2))[..., border - 1]
        true = np.abs(np.diff(whole, axis=2))[..., border - 1]
        assert (jump - true).max() < 0.01 * own.max()


def test_tiles_cut_without_overlap_do_leave_a_seam():
    codes, model = domain((384, 768)), Blur()
    error = np.abs(tiled(model, codes, Tiling((384, 768), (384, 384), 0)) - model(codes[None])[0])
    assert error.max() > 20


def test_blending_is_of_rain_rates_not_of_codes():
    tiling = Tiling((32, 48), (32, 32), 16)
    answers = iter([1.0, 100.0])
    out = np.zeros((FRAMES_OUT, 32, 48), np.float32)
    codes = np.zeros((2, 32, 48), np.uint8)
    forecast_in_tiles(
        lambda cut, _: np.full((1, FRAMES_OUT, 32, 32), next(answers), np.float32), codes, tiling, out=out, batch=1
    )
    # Half and half of 1 and 100 mm/h is 50.5; of decibel-like codes it would be 10.
    assert np.abs(out[..., 23:25].mean() - 50.5) < 0.1


def test_a_domain_smaller_than_a_tile_is_padded_with_missing_pixels():
    seen = []

    def forecast(cut):
        seen.append(cut)
        return cut[:, -1:].repeat(FRAMES_OUT, axis=1).astype(np.float32)

    codes = domain((20, 27))
    np.testing.assert_array_equal(tiled(forecast, codes, Tiling((20, 27), (32, 32), 8))[0], codes[-1])
    assert seen[0].shape == (1, 2, 32, 32)
    assert (seen[0][:, :, 20:] == MISSING_CODE).all() and (seen[0][:, :, :, 27:] == MISSING_CODE).all()


def test_tiles_without_a_valid_pixel_are_not_computed():
    codes = domain((64, 200))
    codes[0, :, 80:] = MISSING_CODE
    counted = []
    tiled(lambda cut: counted.append(len(cut)) or rain(cut), codes, Tiling((64, 200), (64, 64), 16))
    assert sum(counted) == 2  # of four


def test_memory_does_not_grow_with_the_number_of_tiles():
    def peak(width: int) -> int:
        codes = domain((64, width))
        out = np.zeros((FRAMES_OUT, 64, width), np.float32)
        tiling = Tiling((64, width), (64, 64), 16)
        tracemalloc.start()
        forecast_in_tiles(lambda cut, _: cut.astype(np.float32), codes, tiling, out=out, batch=2)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    one_batch = 2 * 2 * 64 * 64 * 4
    few, many = peak(256), peak(64 * 60)  # 5 and 80 tiles
    assert many - few < one_batch + 2 * 64 * 64 * 60  # the mask of the domain, and one frame's, is all that grows
