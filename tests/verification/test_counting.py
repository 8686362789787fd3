"""Counting: compared with one comparison per threshold in numpy, at ties, with masks and for invalid input."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.verification import PROTOCOLS, Accumulator, count, protocol_for, score

GLOBAL = PROTOCOLS["sevir-global"]
RELEASED = PROTOCOLS["sevir-global-released"]


def plain_counts(observation, forecast, thresholds, valid):
    """Return counts [events, thresholds, leads] by one comparison per threshold."""
    tables = {"hits": [], "misses": [], "false_alarms": [], "correct_negatives": []}
    for threshold in thresholds:
        observed, predicted = observation >= threshold, forecast >= threshold
        tables["hits"].append((observed & predicted & valid).sum((2, 3)))
        tables["misses"].append((observed & ~predicted & valid).sum((2, 3)))
        tables["false_alarms"].append((~observed & predicted & valid).sum((2, 3)))
        tables["correct_negatives"].append((~observed & ~predicted & valid).sum((2, 3)))
    return {name: np.stack(counts, axis=1) for name, counts in tables.items()}


def random_codes(seed, shape=(3, 4, 17, 13)):
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, shape, dtype=np.uint8)
    # Values at and next to thresholds
    edges = np.array([15, 16, 17, 73, 74, 132, 133, 159, 160, 180, 181, 218, 219, 220], dtype=np.uint8)
    on_edge = generator.random(shape) < 0.4
    return np.where(on_edge, generator.choice(edges, shape), codes)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), floats=st.booleans())
def test_counts_equal_one_comparison_per_threshold(seed, floats):
    observation, forecast = random_codes(seed), random_codes(seed + 1)
    valid = (observation != 255) & (forecast != 255)
    given_forecast = (
        np.where(forecast == 255, np.nan, forecast / np.float32(255)).astype(np.float32) if floats else forecast
    )
    counted = count(observation, given_forecast, protocol=GLOBAL)
    for name, expected in plain_counts(observation, forecast, GLOBAL.thresholds, valid).items():
        np.testing.assert_array_equal(getattr(counted, name).numpy(), expected)
    np.testing.assert_array_equal(counted.valid_pixels.numpy(), valid.sum((2, 3)))
    np.testing.assert_array_equal(counted.observed_pixels.numpy(), (observation != 255).sum((2, 3)))
    error = np.where(valid, forecast / 255.0 - observation / 255.0, 0.0)
    np.testing.assert_allclose(counted.squared_error.numpy(), (error**2).sum((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(counted.absolute_error.numpy(), np.abs(error).sum((2, 3)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", GLOBAL.thresholds)
def test_value_at_threshold_is_an_event_in_uint8_and_float(threshold, dtype):
    codes = torch.tensor([threshold - 1, threshold], dtype=torch.uint8).view(1, 1, 1, 2)
    row = GLOBAL.thresholds.index(threshold)
    as_float = code_to_unit(codes).to(dtype)
    for observation in (codes, as_float):
        for forecast in (codes, as_float):
            counted = count(observation, forecast, protocol=GLOBAL)
            assert counted.hits[0, row].item() == 1
            assert counted.correct_negatives[0, row].item() == 1


def test_float_just_below_threshold_is_not_an_event():
    at = torch.tensor(np.float32(219 / 255))
    below = torch.nextafter(at, torch.tensor(0.0))
    field = torch.stack([below, at]).view(1, 1, 1, 2)
    assert count(field, field, protocol=GLOBAL).hits[0, -1].item() == 1


def test_released_comparison_puts_219_below_219_in_uint8_and_float():
    codes = torch.tensor([218, 219, 220, 221], dtype=torch.uint8).view(1, 1, 2, 2)
    for field in (codes, code_to_unit(codes)):
        assert count(field, field, protocol=GLOBAL).hits[0, -1].item() == 3
        assert count(field, field, protocol=RELEASED).hits[0, -1].item() == 2


def test_pixel_values_become_floats_by_correctly_rounded_division():
    codes = torch.arange(256).to(torch.uint8)
    assert np.array_equal(code_to_unit(codes).numpy(), (np.arange(256) / 255).astype(np.float32))


def test_fractional_threshold():
    rain = protocol_for("rain", (47.6,), ("0.5",), unit="mm/h")
    codes = torch.tensor([47, 48], dtype=torch.uint8).view(1, 1, 1, 2)
    for field in (codes, code_to_unit(codes)):
        assert count(field, field, protocol=rain).hits.item() == 1


def test_pixels_missing_in_either_field_are_excluded():
    observation = torch.tensor([[100, 255, 100, 0]], dtype=torch.uint8).view(1, 1, 1, 4)
    forecast = torch.tensor([[100, 100, float("nan"), 0]]).view(1, 1, 1, 4) / 255
    counted = count(observation, forecast, protocol=GLOBAL)
    row = GLOBAL.thresholds.index(74.0)
    assert counted.hits[0, row].item() == 1
    assert counted.misses[0, row].item() == counted.false_alarms[0, row].item() == 0
    assert counted.correct_negatives[0, row].item() == 1
    assert (counted.valid_pixels.item(), counted.observed_pixels.item()) == (2, 3)
    assert counted.absolute_error.item() == 0.0


def test_non_event_rule_counts_missing_pixels_as_correct_negatives():
    field = torch.tensor([[1.0, float("nan")]]).view(1, 1, 1, 2)
    counted = count(field, field, protocol=RELEASED)
    assert counted.hits[0, -1].item() == 1
    assert counted.correct_negatives[0, -1].item() == 1
    assert counted.valid_pixels.item() == 1


def test_protocol_without_missing_value_counts_255():
    saturated = protocol_for("saturated", (219,), missing=None)
    field = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert count(field, field, protocol=saturated).hits.item() == 1
    assert count(field, field, protocol=GLOBAL).valid_pixels.item() == 0


def test_domain_mask_equals_missing_pixels():
    observation, forecast = random_codes(1), random_codes(2)
    domain = np.random.default_rng(3).random(observation.shape[2:]) < 0.5
    masked = count(observation, forecast, protocol=GLOBAL, valid=domain)
    explicit = count(np.where(domain, observation, 255).astype(np.uint8), forecast, protocol=GLOBAL)
    for name in ("hits", "misses", "false_alarms", "correct_negatives", "observed_pixels", "squared_error"):
        assert torch.equal(getattr(masked, name), getattr(explicit, name))
    assert not torch.equal(masked.hits, count(observation, forecast, protocol=GLOBAL).hits)


def test_counts_past_float32_integers_are_exact():
    side = 4200  # 17,640,000 pixels; float32 represents integers exactly up to 16,777,216
    field = torch.full((1, 1, side, side), 100, dtype=torch.uint8)
    field[0, 0, 0, 0] = 0
    counted = count(field, field, protocol=protocol_for("one", (74,)))
    assert counted.hits.item() == side * side - 1
    assert counted.valid_pixels.item() == side * side


def test_inputs_are_not_modified():
    observation, forecast = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8)
    forecast[0, 0, 0, 0] = float("nan")
    copies = observation.clone(), forecast.clone()
    count(observation, forecast, protocol=GLOBAL, valid=torch.zeros(8, 8, dtype=torch.bool))
    assert torch.equal(observation, copies[0])
    assert torch.equal(forecast.nan_to_num(-1), copies[1].nan_to_num(-1))


def test_windows_of_an_event_are_summed():
    observation, forecast = random_codes(4), random_codes(5)
    by_window = count(observation, forecast, protocol=GLOBAL)
    by_event = count(observation, forecast, protocol=GLOBAL, events=["b", "a", "b"])
    assert by_event.events == ("a", "b")
    assert torch.equal(by_event.hits[1], by_window.hits[0] + by_window.hits[2])
    assert torch.equal(by_event.hits[0], by_window.hits[1])


def test_streaming_equals_one_call_and_continues_after_reading():
    observation, forecast = random_codes(6, (6, 2, 9, 9)), random_codes(7, (6, 2, 9, 9))
    events = ["c", "a", "b", "a", "c", "d"]
    stream = Accumulator(GLOBAL)
    for start in (0, 2, 4):
        batch = slice(start, start + 2)
        stream.add(observation[batch], forecast[batch], events=events[batch])
        assert int(stream.statistics.valid_pixels.sum()) > 0
    expected = count(observation, forecast, protocol=GLOBAL, events=events)
    assert stream.statistics.events == expected.events
    assert torch.equal(stream.statistics.hits, expected.hits)
    torch.testing.assert_close(stream.statistics.squared_error, expected.squared_error, rtol=1e-14, atol=0)


def test_empty_stream_raises():
    with pytest.raises(ValueError, match="count at least one batch"):
        _ = Accumulator(GLOBAL).statistics


FIELD = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("observation", "forecast", "options", "error", "message"),
    [
        (FIELD, FIELD[:, :2], {}, ValueError, r"\(2, 3, 4, 5\) and forecast \(2, 2, 4, 5\)"),
        (FIELD[:, :, None], FIELD[:, :, None], {}, ValueError, r"\[N, T, H, W\]"),
        (FIELD.int(), FIELD, {}, TypeError, "observation must be uint8 pixel values or floats"),
        (FIELD, FIELD.bool(), {}, TypeError, "forecast must be uint8 pixel values or floats"),
        (FIELD + 219, FIELD, {}, ValueError, "got 219 to 219; pass pixel values as uint8"),
        (FIELD - 0.5, FIELD, {}, ValueError, r"in \[0, 1\]"),
        (FIELD, FIELD + 219, {}, ValueError, "magnitude of 219"),
        (FIELD, FIELD + 9, {}, ValueError, "got a magnitude of 9; pass pixel values as uint8"),
        (FIELD.to("meta"), FIELD, {}, TypeError, "values of observation are a tensor of device meta"),
        (FIELD, FIELD.to_sparse(), {}, TypeError, "values of forecast are a tensor of layout torch.sparse_coo"),
        (torch.zeros(1, 40, 40, 5), FIELD, {}, ValueError, r"shape \(1, 40, 40, 5\) seem to have the axes \[H, W, T\]"),
        (torch.zeros(90, 50, 12), FIELD, {}, ValueError, r"\[T, H, W\] is needed"),
        (FIELD, FIELD + float("inf"), {}, ValueError, "diverged"),
        (FIELD, FIELD, {"events": ["a"]}, ValueError, "1 event keys for 2 windows"),
        (FIELD, FIELD, {"valid": torch.ones(4, 5)}, TypeError, "valid must be boolean"),
        (FIELD, FIELD, {"valid": torch.ones(3, 3, dtype=torch.bool)}, ValueError, "does not broadcast"),
    ],
)
def test_rejects_invalid_input(observation, forecast, options, error, message):
    with pytest.raises(error, match=message):
        count(observation, forecast, protocol=GLOBAL, **options)


def test_forecast_outside_unit_interval_is_not_clipped():
    counted = count(FIELD, FIELD - 0.5, protocol=GLOBAL)
    assert counted.absolute_error.sum().item() == 0.5 * FIELD.numel()


def test_many_thresholds():
    """With sixteen thresholds pairs of levels do not fit into a byte."""
    thresholds = tuple(range(10, 250, 15))
    observation, forecast = random_codes(11), random_codes(12)
    valid = (observation != 255) & (forecast != 255)
    counted = count(observation, forecast, protocol=protocol_for("many", thresholds))
    for name, expected in plain_counts(observation, forecast, thresholds, valid).items():
        np.testing.assert_array_equal(getattr(counted, name).numpy(), expected)


def test_missing_members_are_masked_or_ignored():
    generator = np.random.default_rng(0)
    observed, members = generator.random((2, 1, 6, 6)) * 0.9, generator.random((2, 3, 1, 6, 6)) * 0.9
    members[:, 0, :, :2] = np.nan
    members[0, :, :, 5] = np.nan  # no member is left
    masked = count(observed, members, protocol=GLOBAL)
    ignored = count(observed, members, protocol=dataclasses.replace(GLOBAL, missing_members="ignore"))
    assert masked.valid_pixels.flatten().tolist() == [18, 24]
    assert ignored.valid_pixels.flatten().tolist() == [30, 36]
    mean = np.nanmean(np.ma.masked_invalid(members).filled(np.nan)[1], axis=0)
    assert ignored.absolute_error[1, 0].item() == pytest.approx(np.abs(mean - observed[1]).sum(), abs=1e-12)
    default = score(observed, members)
    assert default == pytest.approx(score(observed, members, missing_members="mask"), nan_ok=True)
    assert default["mae"] != score(observed, members, missing_members="ignore")["mae"]
