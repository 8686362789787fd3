"""Forecasts in tiles: weights sum to one, seams are at most as large as the difference of tiles, memory is bounded."""

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
def test_weights_sum_to_one(domain, tile, overlap):
    tiling = Tiling(domain, tile, overlap)
    np.testing.assert_allclose(weights_of(tiling), 1.0, atol=2e-7)
    for strips, length, size in ((tiling.rows, tiling.padded[0], tile[0]), (tiling.columns, tiling.padded[1], tile[1])):
        starts = [strip.start for strip in strips]
        assert starts[0] == 0 and starts[-1] == length - size
        assert all(a + size - b >= overlap for a, b in itertools.pairwise(starts))


def test_weights_are_smooth_and_zero_at_inner_edges():
    for strip in Tiling((700, 900), (384, 384), 96).rows[1:]:
        # A cosine over 68 or more pixels rises by less than pi / 2 / 68 per pixel.
        assert strip.weight[0] < 1e-3 and np.abs(np.diff(strip.weight)).max() < 0.025


@pytest.mark.parametrize("overlap", [-1, 17])
def test_rejects_overlap_above_half_a_tile(overlap):
    with pytest.raises(
        ConfigError, match=f"--overlap {overlap} is invalid for tiles of 32 x 40 pixels; choose 0 to 16"
    ):
        Tiling((100, 100), (32, 40), overlap)


def tiled(forecast, codes: np.ndarray, tiling: Tiling, batch: int = 2) -> np.ndarray:
    out = np.zeros((FRAMES_OUT, *codes.shape[1:]), np.float32)
    forecast_in_tiles(lambda inputs, _corners: forecast(inputs), codes, tiling, out=out, batch=batch)
    return out


def pixelwise_rain_rates(codes: np.ndarray) -> np.ndarray:
    """Forecast rain rates per pixel: shift-equivariant, and independent of tile borders."""
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


def test_pixelwise_model_is_unaffected_by_tiles():
    codes = domain((700, 900))
    np.testing.assert_allclose(
        tiled(pixelwise_rain_rates, codes, Tiling((700, 900), (384, 384), 96)),
        pixelwise_rain_rates(codes[None])[0],
        rtol=1e-6,
    )


class Blur:
    """A shift-equivariant model with a 31 x 31 receptive field and zero padding, which causes errors at tile edges."""

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(codes.astype(np.float32)).mean(dim=1, keepdim=True)
        for _ in range(3):
            x = F.avg_pool2d(x, 11, stride=1, padding=5)
        return torch.cat([x, x.square() / 100], dim=1).numpy()


def test_seams_are_no_larger_than_the_differences_of_tiles():
    codes, model, tiling = domain((700, 900)), Blur(), Tiling((700, 900), (384, 384), 96)
    expected, blended = model(codes[None])[0], tiled(model, codes, tiling)
    error = np.abs(blended - expected)

    largest = np.zeros_like(expected)  # per pixel: maximum difference between any tile and the domain at once
    for row, column in tiling.tiles():
        pixels = np.s_[:, row.pixels, column.pixels]
        difference = np.abs(model(codes[None][:, *pixels])[0] - expected[pixels])
        largest[pixels] = np.maximum(largest[pixels], difference)
    assert largest.max() > 20  # without blending a border would be visible
    assert (error <= largest + 1e-3).all()
    # The weights are close to zero where the error of a tile is largest, so blending removes most of it.
    assert error.max() < 0.05 * largest.max()

    # The step of the blended field across a tile border exceeds that of the reference by at most that remainder.
    for border in (tiling.columns[1].start, tiling.columns[0].start + 384):
        jump = np.abs(np.diff(blended, axis=2))[..., border - 1]
        reference = np.abs(np.diff(expected, axis=2))[..., border - 1]
        assert (jump - reference).max() < 0.01 * largest.max()


@pytest.mark.parametrize("overlap", [32, 70])
def test_a_margin_beyond_the_receptive_field_removes_all_seams(overlap):
    codes, model = domain((300, 420)), Blur()  # receptive field: 15 pixels on each side
    expected = model(codes[None])[0]
    tiling = Tiling((300, 420), (160, 160), overlap, margin=16)
    np.testing.assert_allclose(weights_of(tiling), 1.0, atol=2e-7)
    np.testing.assert_allclose(tiled(model, codes, tiling), expected, rtol=1e-5, atol=1e-3)
    # A smaller margin bounds the error by that of the pixels that it keeps.
    narrow, none = (
        np.abs(tiled(model, codes, Tiling((300, 420), (160, 160), overlap, margin)) - expected).max()
        for margin in (8, 0)
    )
    assert narrow < 0.2 * none or none < 5, "blending alone suffices where tiles overlap by much"


def test_rejects_tiles_that_are_too_small_for_the_margin():
    with pytest.raises(ConfigError, match=r"--overlap 20 is invalid: .*data\.crop\.margin=16.*choose 32 to 80"):
        Tiling((300, 300), (160, 160), 20, margin=16)
    with pytest.raises(ConfigError, match=r"--tile 60 80 is invalid for .*margin=16.*choose at least 64 pixels"):
        Tiling((300, 300), (60, 80), 32, margin=16)


def test_tiles_without_overlap_have_a_seam():
    codes, model = domain((384, 768)), Blur()
    error = np.abs(tiled(model, codes, Tiling((384, 768), (384, 384), 0)) - model(codes[None])[0])
    assert error.max() > 20


def test_blends_rain_rates_and_not_encoded_values():
    tiling = Tiling((32, 48), (32, 32), 16)
    answers = iter([1.0, 100.0])
    out = np.zeros((FRAMES_OUT, 32, 48), np.float32)
    codes = np.zeros((2, 32, 48), np.uint8)
    forecast_in_tiles(
        lambda _inputs, _corners: np.full((1, FRAMES_OUT, 32, 32), next(answers), np.float32),
        codes,
        tiling,
        out=out,
        batch=1,
    )
    # The mean of 1 and 100 mm/h is 50.5 mm/h; averaging in dB would give 10.
    assert np.abs(out[..., 23:25].mean() - 50.5) < 0.1


def test_pads_small_domain_with_missing_pixels():
    received = []

    def forecast(inputs):
        received.append(inputs)
        return inputs[:, -1:].repeat(FRAMES_OUT, axis=1).astype(np.float32)

    codes = domain((20, 27))
    np.testing.assert_array_equal(tiled(forecast, codes, Tiling((20, 27), (32, 32), 8))[0], codes[-1])
    assert received[0].shape == (1, 2, 32, 32)
    assert (received[0][:, :, 20:] == MISSING_CODE).all() and (received[0][:, :, :, 27:] == MISSING_CODE).all()


def test_skips_tiles_without_a_valid_pixel():
    codes = domain((64, 200))
    codes[0, :, 80:] = MISSING_CODE
    counted = []
    tiled(
        lambda inputs: counted.append(len(inputs)) or pixelwise_rain_rates(inputs),
        codes,
        Tiling((64, 200), (64, 64), 16),
    )
    assert sum(counted) == 2  # of four


def test_memory_does_not_grow_with_the_number_of_tiles():
    def peak(width: int) -> int:
        codes = domain((64, width))
        out = np.zeros((FRAMES_OUT, 64, width), np.float32)
        tiling = Tiling((64, width), (64, 64), 16)
        tracemalloc.start()
        forecast_in_tiles(lambda inputs, _corners: inputs.astype(np.float32), codes, tiling, out=out, batch=2)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    one_batch = 2 * 2 * 64 * 64 * 4
    few, many = peak(256), peak(64 * 60)  # 5 and 80 tiles
    assert many - few < one_batch + 2 * 64 * 64 * 60  # only the masks of the domain and of one frame grow
