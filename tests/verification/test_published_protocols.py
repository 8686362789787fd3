"""Published protocols: comparison, aggregation, pools, clipping and undefined scores of each."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from simcast_hpc.verification import PROTOCOLS, Pool, count, protocol_for, score, scores


def fields(seed, shape=(3, 2, 32, 32)):
    generator = np.random.default_rng(seed)
    observed = generator.integers(0, 250, shape, dtype=np.uint8)
    forecast = np.clip(observed + generator.integers(-60, 61, shape), 0, 254).astype(np.uint8)
    return observed, forecast


def test_flowcast_counts_only_values_above_the_threshold():
    field = torch.tensor([[[[219, 220]]]], dtype=torch.uint8)
    assert count(field, field, protocol=PROTOCOLS["flowcast"]).hits[0, -1].item() == 1
    assert count(field, field, protocol=PROTOCOLS["sevir-global"]).hits[0, -1].item() == 2


@pytest.mark.parametrize("threshold", [84, 118, 141, 158, 185])
def test_hko7_thresholds_equal_the_pixel_values_of_the_paper(threshold):
    row = (84, 118, 141, 158, 185).index(threshold)
    assert threshold - 1 < PROTOCOLS["hko7"].thresholds[row] <= threshold


def test_hko7_balanced_errors_are_weighted_by_observed_rain_and_summed_over_a_frame():
    observed = torch.tensor([[[[0, 100, 200]]]], dtype=torch.uint8)  # no rain, 1, 30 mm/h and more
    forecast = torch.tensor([[[[0.1, 100 / 255, 200 / 255 - 0.2]]]])
    found = score(observed, forecast, protocol="hko7")
    assert found["balanced_mae"] == pytest.approx(1 * 0.1 + 30 * 0.2, rel=1e-5)
    assert found["balanced_mse"] == pytest.approx(1 * 0.01 + 30 * 0.04, rel=1e-5)
    assert found["mae"] == pytest.approx(0.3 / 3, rel=1e-5)


def test_diffcast_clips_and_pools_blocks_over_all_lead_times():
    observed, forecast = fields(0)
    floats = forecast / np.float32(255) * 1.2 - 0.05
    diffcast = score(observed, floats, protocol="diffcast")
    lead_mean = score(observed, floats, protocol="sevir-lead-mean")
    assert diffcast["csi/mean"] == lead_mean["csi/mean"]
    assert diffcast["mae"] < lead_mean["mae"], "values outside [0, 1] are clipped"
    pooled = score(observed, floats, protocol="sevir-global")
    assert diffcast["csi_pool4/mean"] == pooled["csi_pool4/mean"]


def test_diffcast_released_preserves_integers_and_scores_undefined_as_zero():
    codes = torch.arange(255, dtype=torch.uint8).view(1, 1, 5, 51)
    for threshold in range(1, 255):  # fp32 c / 255 * 255, truncated, is c for every code
        released = protocol_for("own", (threshold,), comparison="released-truncated")
        assert count(codes, codes.float() / 255, protocol=released).hits.item() == 255 - threshold
    nothing = torch.zeros(1, 1, 16, 16)
    assert score(nothing, nothing, protocol="diffcast-released")["csi/mean"] == 0.0
    assert math.isnan(score(nothing, nothing, protocol="diffcast")["csi/mean"])


def test_challenge_released_scores_undefined_as_one():
    nothing = torch.zeros(1, 1, 4, 4)
    found = score(nothing, nothing, protocol="sevir-challenge-released")
    assert found["csi/16"] == found["pod/16"] == found["frequency_bias/16"] == pytest.approx(1.0)
    assert math.isnan(score(nothing, nothing, protocol="sevir-challenge")["csi/16"])


def test_partial_blocks():
    field = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    field[..., 5, 5] = 200
    rules = {"pools": (Pool(size=4),)}
    assert count(field, field, protocol=protocol_for("x", (74,), **rules)).extra["pool4/table"].sum() == 1
    kept = count(field, field, protocol=protocol_for("x", (74,), partial_blocks=True, **rules)).extra["pool4/table"]
    assert kept.flatten().tolist() == [1, 0, 0, 3]


def test_block_is_pooled_over_its_valid_pixels():
    observed = torch.full((1, 1, 4, 8), 255, dtype=torch.uint8)
    observed[..., 0, 0] = 100  # one valid pixel in the first block, none in the second
    forecast = torch.full((1, 1, 4, 8), 200 / 255)
    forecast[..., 0, 0] = 0.0  # the heavy rain of the forecast is at missing pixels
    for pool in (Pool(size=4), Pool(size=4, kind="avg")):
        table = count(observed, forecast, protocol=protocol_for("x", (74,), pools=(pool,))).extra[f"{pool.key}/table"]
        assert table.flatten().tolist() == [0, 1, 0, 0], pool


def test_block_averages_at_a_threshold_are_events():
    field = torch.tensor([[218, 220], [219, 219]], dtype=torch.uint8).view(1, 1, 2, 2)
    pools = (Pool(size=2, kind="avg"),)
    strict = protocol_for("x", (219,), strict=True, pools=pools)
    for values in (field, field.float() / 255):
        at = count(values, values, protocol=protocol_for("x", (219,), pools=pools)).extra["pool2_avg/table"]
        above = count(values, values, protocol=strict).extra["pool2_avg/table"]
        assert (at[0, 0].item(), above[0, 0].item()) == (1, 0)


def test_frame_mean_and_sample_mean_average_scores():
    observed, forecast = fields(1)
    by_frame = [
        score(observed[n : n + 1, t : t + 1], forecast[n : n + 1, t : t + 1])["csi/133"]
        for n in range(3)
        for t in range(2)
    ]
    by_sample = [score(observed[n : n + 1], forecast[n : n + 1])["csi/133"] for n in range(3)]
    assert score(observed, forecast, protocol="sevir-frame-mean")["csi/133"] == pytest.approx(np.mean(by_frame))
    found = score(observed, forecast, protocol="sevir-sample-mean", per_lead=True)
    assert found["csi/133"] == pytest.approx(np.mean(by_sample))
    assert found["csi/133/lead/1"] == pytest.approx(np.mean(by_frame[::2]))


@pytest.mark.parametrize(("rounding", "expected"), [("none", 0), ("nearest", 1), ("truncate", 0)])
def test_rounding_of_forecasts(rounding, expected):
    observed = torch.full((1, 1, 1, 1), 219, dtype=torch.uint8)
    forecast = torch.full((1, 1, 1, 1), 218.6 / 255)
    protocol = protocol_for("x", (219,), rounding=rounding)
    assert count(observed, forecast, protocol=protocol).hits.item() == expected


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_rounding_preserves_integers(rounding):
    codes = torch.arange(255, dtype=torch.uint8).view(1, 1, 15, 17)
    protocol = protocol_for("x", (74,), rounding=rounding)
    assert count(codes, codes.float() / 255, protocol=protocol).absolute_error.item() == 0.0


def test_members_are_averaged_or_scored_individually():
    observed, _ = fields(2)
    members = np.stack([fields(seed)[1] for seed in (3, 4, 5)], axis=1)
    mean = score(observed, members, protocol="sevir-global")
    plain = score(observed, torch.from_numpy(members / np.float32(255)).mean(1))
    assert mean["csi/mean"] == pytest.approx(plain["csi/mean"])
    each = count(observed, members, protocol=protocol_for("x", (74,), members="each"))
    by_member = [count(observed, members[:, m], protocol=protocol_for("x", (74,))) for m in range(3)]
    assert torch.equal(each.hits, sum(statistics.hits for statistics in by_member))
    assert scores(each)["crps"] == pytest.approx(mean["crps"])


@pytest.mark.filterwarnings("error:.*degrees of freedom")
def test_one_member_scores_like_a_single_forecast():
    observed, forecast = fields(6)
    assert score(observed, forecast[:, None]) == pytest.approx(score(observed, forecast), nan_ok=True)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(PROTOCOLS)))
def test_perfect_and_opposite_forecasts_have_extreme_scores_under_every_protocol(seed, name):
    protocol = PROTOCOLS[name]
    observed = np.random.default_rng(seed).integers(0, 2, (2, 2, 32, 32)) * int(protocol.thresholds[-1] + 5)
    unit = (observed / protocol.scale).astype(np.float32)
    unit = np.clip(unit, 0, 1)
    perfect, opposite = score(unit, unit, protocol=protocol), score(unit, unit.max() - unit, protocol=protocol)
    for label in protocol.labels:
        assert perfect[f"csi/{label}"] == pytest.approx(1.0, abs=1e-5)
        assert perfect[f"far/{label}"] == pytest.approx(0.0, abs=1e-5)
        assert opposite[f"csi/{label}"] == pytest.approx(0.0, abs=1e-5)
        assert opposite[f"hss/{label}"] < 0
    assert perfect["mae"] == 0.0 < opposite["mae"]


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_scores_increase_with_pool_and_window_size(seed):
    generator = np.random.default_rng(seed)
    observed = (generator.random((2, 2, 32, 32)) > 0.9).astype(np.uint8) * 200
    shifted = np.roll(observed, 1, axis=-1)
    pools = (Pool(size=3, overlapping=True), Pool(size=5, overlapping=True))
    found = score(observed, shifted, protocol=protocol_for("x", (74,), pools=pools, fss_km=(1.0, 3.0, 9.0)))
    assert found["csi/74"] <= found["csi_neighbourhood3/74"] <= found["csi_neighbourhood5/74"]
    assert found["fss/1/74"] <= found["fss/3/74"] + 0.05 and found["fss/3/74"] <= found["fss/9/74"] + 0.05


@pytest.mark.parametrize("pixel", [(0, 0), (31, 31), (5, 20), (16, 0)])
def test_fss_sums_of_a_single_event(pixel):
    """Every 8 x 8 window that contains the event has n = 1: those centered near enough to it."""
    observed = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    observed[0, 0, *pixel] = 200
    protocol = protocol_for("x", (74,), fss_km=(8.0, 2.0))
    sums = count(observed, torch.zeros_like(observed), protocol=protocol).extra["fss/8"].flatten().tolist()
    rows, columns = (min(32, at + 5) - max(0, at - 3) for at in pixel)
    assert sums == [rows * columns, 0, rows * columns]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.filterwarnings("error:.*degrees of freedom")
@pytest.mark.parametrize("members", [None, 3])
def test_every_protocol_scores_missing_pixels(name, members):
    generator = np.random.default_rng(3)
    observed = generator.integers(0, 255, (2, 2, 32, 32), dtype=np.uint8)
    shape = observed.shape if members is None else (2, members, 2, 32, 32)
    forecast = generator.random(shape, dtype=np.float32)
    observed[0, 0, 3:5, 4] = 255
    observed[1] = 255
    mask = generator.random((32, 32)) > 0.01
    for valid in (None, mask, np.zeros((32, 32), bool)):
        assert scores(count(observed, forecast, protocol=PROTOCOLS[name], valid=valid))
    observed[:] = 255
    assert scores(count(observed, forecast, protocol=PROTOCOLS[name]))


def test_ssim_with_batch_range_excludes_missing_pixels():
    """The range is 200 - 10 of valid pixels, and the mean is over windows of 11 pixels without a missing one."""
    generator = np.random.default_rng(4)
    observed = generator.integers(10, 201, (1, 1, 40, 40), dtype=np.uint8)
    observed[0, 0, 0, :2] = (10, 200)
    forecast = generator.random(observed.shape, dtype=np.float32)
    x, y = observed[0, 0] / 255.0, forecast[0, 0].astype(float)
    mean_x, mean_y, xx, yy, xy = (
        gaussian_filter(field, 1.5, truncate=3.5, mode="mirror") for field in (x, y, x * x, y * y, x * y)
    )
    c1, c2 = (0.01 * 190 / 255) ** 2, (0.03 * 190 / 255) ** 2
    values = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
    values /= (mean_x**2 + mean_y**2 + c1) * (xx - mean_x**2 + yy - mean_y**2 + c2)
    rows, columns = np.mgrid[:40, :40]
    expected = values[(abs(rows - 20) > 5) | (abs(columns - 20) > 5)].mean()
    observed[0, 0, 20, 20] = 255
    found = scores(count(observed, forecast, protocol=PROTOCOLS["cascast-released"]))
    np.testing.assert_allclose(found["ssim_batch_range"], expected, rtol=1e-6)
