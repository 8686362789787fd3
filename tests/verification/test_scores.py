"""Scores from counts: worked examples, properties, aggregation, undefined values, supported thresholds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcast_hpc.verification import (
    PROTOCOLS,
    ContingencyTable,
    count,
    csi,
    far,
    frequency_bias,
    hss,
    mean_csi,
    merge,
    pod,
    protocol_for,
    score,
    scores,
    supported_thresholds,
)

GLOBAL, LEAD_MEAN = PROTOCOLS["sevir-global"], PROTOCOLS["sevir-lead-mean"]


def table(hits, misses, false_alarms, correct_negatives):
    names = ("hits", "misses", "false_alarms", "correct_negatives")
    values = (hits, misses, false_alarms, correct_negatives)
    return ContingencyTable(**{n: torch.tensor([v], dtype=torch.float64) for n, v in zip(names, values, strict=True)})


def codes(seed, shape=(4, 3, 12, 12)):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def test_worked_example_of_wwrp():
    # 82 hits, 38 false alarms, 23 misses, 222 correct negatives in 365 days: WWRP/WGNE's example of yes/no forecasts.
    example = table(82, 23, 38, 222)
    assert csi(example).item() == pytest.approx(0.573426, abs=1e-6)
    assert pod(example).item() == pytest.approx(82 / 105)
    assert far(example).item() == pytest.approx(38 / 120)
    assert frequency_bias(example).item() == pytest.approx(120 / 105)
    chance = (105 * 120 + 260 * 245) / 365
    assert hss(example).item() == pytest.approx((82 + 222 - chance) / (365 - chance))


def test_perfect_forecast():
    result = score(codes(0), codes(0), per_lead=True)
    for key, value in result.items():
        if key.startswith("psnr"):
            assert value == math.inf
        elif not math.isnan(value):  # HSS is undefined if every block is an event
            assert value == pytest.approx(
                0.0 if key.startswith(("far", "mse", "rmse", "mae", "crps")) else 1.0, abs=1e-12
            ), key


def test_forecast_without_events():
    result = score(codes(0), np.zeros_like(codes(0)))
    for label in GLOBAL.labels:
        assert result[f"csi/{label}"] == result[f"pod/{label}"] == result[f"frequency_bias/{label}"] == 0.0
        assert result[f"hss/{label}"] == 0.0
        assert math.isnan(result[f"far/{label}"])
    assert math.isnan(result["far/mean"])


def test_unobserved_and_unforecast_event_is_undefined():
    field = np.full((1, 1, 4, 4), 100, dtype=np.uint8)
    result = score(field, field)
    assert result["csi/74"] == 1.0
    assert math.isnan(result["csi/133"])
    assert math.isnan(result["csi/mean"])
    assert score(field, field, mean_over=("16", "74"))["csi/mean"] == 1.0


def test_released_protocols_score_undefined_as_zero():
    field = np.full((1, 1, 4, 4), 100, dtype=np.uint8)
    result = score(field, field, protocol="sevir-global-released")
    assert result["csi/133"] == result["pod/133"] == 0.0
    assert result["far/133"] == 1.0
    assert result["csi/74"] == pytest.approx(16 / (16 + 1e-4))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), noise=st.integers(0, 120))
def test_counts_decrease_with_threshold_and_scores_are_bounded(seed, noise):
    generator = np.random.default_rng(seed)
    observation = generator.integers(0, 255, (2, 3, 10, 10), dtype=np.uint8)
    moved = observation + generator.integers(-noise, noise + 1, observation.shape)
    forecast = np.clip(moved, 0, 254).astype(np.uint8)
    counted = count(observation, forecast, protocol=GLOBAL)
    observed, predicted = counted.hits + counted.misses, counted.hits + counted.false_alarms
    assert (observed.diff(dim=1) <= 0).all()
    assert (predicted.diff(dim=1) <= 0).all()
    total = observed + counted.false_alarms + counted.correct_negatives
    assert torch.equal(total, counted.valid_pixels[:, None].expand_as(total))
    for key, value in scores(counted, per_lead=True).items():
        if math.isnan(value):
            continue
        name = key.split("/")[0]
        low, high = (0, math.inf) if name.startswith(("frequency_bias", "psnr")) else (0, 1)
        low = -1 if name.startswith(("hss", "ssim")) else low
        assert low <= value <= high, key


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(4)))
def test_scores_are_independent_of_window_order(order):
    result = score(codes(0), codes(1), per_lead=True)
    permuted = score(codes(0)[order], codes(1)[order], per_lead=True)
    assert result.keys() == permuted.keys()
    for key, value in result.items():
        assert permuted[key] == pytest.approx(value, rel=1e-12, nan_ok=True), key


def test_global_pools_counts_and_lead_mean_averages_scores():
    protocol = protocol_for("one", (74,))
    observation = torch.zeros(1, 2, 1, 10, dtype=torch.uint8)
    forecast = observation.clone()
    observation[0, 0, 0, :8] = 100  # lead 1: 8 hits of 8
    forecast[0, 0, 0, :8] = 100
    observation[0, 1, 0, :2] = 100  # lead 2: 2 misses
    pooled = score(observation, forecast, protocol=protocol, per_lead=True)
    averaged = score(
        observation, forecast, protocol=dataclasses.replace(protocol, aggregation="lead-mean"), per_lead=True
    )
    assert (pooled["csi/74/lead/1"], pooled["csi/74/lead/2"]) == (1.0, 0.0)
    assert pooled["csi/74"] == pytest.approx(8 / 10)
    assert averaged["csi/74"] == pytest.approx(1 / 2)
    assert pooled["mse"] == averaged["mse"] == pytest.approx(2 / 20 * (100 / 255) ** 2)


def test_errors_are_averaged_over_valid_pixels():
    observation = torch.zeros(1, 2, 1, 4)
    forecast = torch.tensor([[[0.5] * 4], [[0.1, float("nan"), float("nan"), float("nan")]]])[None]
    pooled = score(observation, forecast, per_lead=True)
    averaged = score(observation, forecast, protocol="sevir-lead-mean")
    assert pooled["mae/lead/1"] == pytest.approx(0.5)
    assert pooled["mae/lead/2"] == pytest.approx(0.1)
    assert pooled["mae"] == pytest.approx((4 * 0.5 + 0.1) / 5)
    assert averaged["mae"] == pytest.approx((0.5 + 0.1) / 2)
    assert pooled["mse"] == pytest.approx((4 * 0.25 + 0.01) / 5)
    assert pooled["coverage"] == pytest.approx(5 / 8)
    assert pooled["coverage/lead/2"] == pytest.approx(1 / 4)


def test_no_valid_pixels_score_nan():
    field = np.full((1, 1, 3, 3), 255, dtype=np.uint8)
    result = score(field, field)
    assert all(math.isnan(value) for value in result.values())


def test_keys():
    tables = ("csi", "pod", "far", "hss", "frequency_bias")
    names = {f"{name}{pool}" for name in tables for pool in ("", "_pool4", "_pool16")} | {"fss/4", "fss/16", "fss/64"}
    expected = {f"{name}/{label}" for name in names for label in (*GLOBAL.labels, "mean")}
    expected |= {"mse", "rmse", "mae", "psnr", "crps", "crps_standard", "ssim", "coverage"}
    assert set(score(codes(0), codes(1))) == expected
    per_lead = score(codes(0), codes(1), per_lead=True)
    assert set(per_lead) == expected | {f"{key}/lead/{lead}" for key in expected for lead in (1, 2, 3)}
    assert all(isinstance(value, float) for value in per_lead.values())


def test_keys_contain_labels_in_their_unit():
    rain = protocol_for("rain", (47.6, 87.7), ("0.5", "2"), unit="mm/h")
    assert {"csi/0.5", "csi/2", "csi/mean"} <= set(score(codes(0), codes(1), protocol=rain))


def test_mean_over_rejects_unknown_and_empty_labels():
    with pytest.raises(KeyError, match=r"no threshold '30'; its labels are 16, 74"):
        score(codes(0), codes(1), mean_over=("16", "30"))
    with pytest.raises(ValueError, match="non-empty list of labels"):
        score(codes(0), codes(1), mean_over=())
    with pytest.raises(ValueError, match="non-empty list of labels"):
        score(codes(0), codes(1), mean_over="16")


def test_supported_thresholds_require_pixels_and_events():
    observation = np.zeros((6, 2, 20, 20), dtype=np.uint8)
    observation[:5, :, :, :6] = 140  # 5 events x 2 lead times x 120 pixels at 133
    observation[0] = 200  # only one event reaches 181
    counted = count(observation, observation, protocol=GLOBAL)
    assert supported_thresholds(counted) == ("16", "74", "133")
    assert supported_thresholds(counted, min_events=1, min_pixels=800) == ("16", "74", "133", "160", "181")
    assert supported_thresholds(counted, min_pixels=1761) == ()
    assert supported_thresholds(counted, min_pixels=1760) == ("16", "74", "133")
    assert supported_thresholds(counted, min_events=6, min_pixels=0) == ()


def test_supported_thresholds_count_an_event_once():
    observation = np.full((5, 1, 20, 20), 100, dtype=np.uint8)
    rows = count(observation, observation, protocol=GLOBAL, events=["a"] * 4 + ["b"])
    selected = rows.select([0, 0, 0, 1, 1])
    assert supported_thresholds(selected, min_events=3) == ()
    assert supported_thresholds(selected, min_events=2) == ("16", "74")


def test_mean_csi_by_lead_time():
    counted = count(codes(0), codes(1), protocol=GLOBAL)
    result = scores(counted, per_lead=True, mean_over=("16", "133"))
    values = mean_csi(counted, thresholds=("16", "133"))
    assert values.shape == (3,)
    for lead, value in enumerate(values.tolist(), start=1):
        expected = (result[f"csi/16/lead/{lead}"] + result[f"csi/133/lead/{lead}"]) / 2
        assert value == pytest.approx(expected)
        assert value == pytest.approx(result[f"csi/mean/lead/{lead}"])
    assert mean_csi(counted).mean().item() == pytest.approx(scores(counted.under(LEAD_MEAN))["csi/mean"])


def test_resampled_events_bracket_the_score():
    counted = count(codes(0, (8, 3, 16, 16)), codes(1, (8, 3, 16, 16)), protocol=GLOBAL)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            mean_csi(counted.select(torch.randint(8, (8,), generator=generator)), thresholds=("16", "74"))
            for _ in range(50)
        ]
    )
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    centre = mean_csi(counted, thresholds=("16", "74"))
    assert (low < centre).all()
    assert (centre < high).all()


def test_merged_ranks_equal_one_rank():
    observation, forecast = codes(0, (8, 2, 9, 9)), codes(1, (8, 2, 9, 9))
    events = [f"e{n // 2}" for n in range(8)]
    one = count(observation, forecast, protocol=GLOBAL, events=events)
    for ranks in (2, 4):
        shares = [
            count(observation[r::ranks], forecast[r::ranks], protocol=GLOBAL, events=events[r::ranks])
            for r in range(ranks)
        ]
        merged = merge(shares)
        assert merged.events == one.events
        for name in ("hits", "misses", "false_alarms", "correct_negatives", "valid_pixels"):
            assert torch.equal(getattr(merged, name), getattr(one, name))
