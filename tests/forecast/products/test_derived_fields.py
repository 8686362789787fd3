"""Percentiles, probabilities and matched means against numpy and against the definition; settings that are rejected."""

from dataclasses import replace

import numpy as np
import pyproj
import pytest
import torch

from simcast_hpc.config import ConfigError, DataConfig
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.diffusion.ensemble_products import probability_matched_mean
from simcast_hpc.forecast.forecast_fields import FALLBACK_REASON
from simcast_hpc.forecast.products import derived_fields
from simcast_hpc.forecast.products.accumulation import TimeAxis, accumulation_groups, amounts, time_axis
from simcast_hpc.forecast.products.derived_fields import box_mean, derive_fields, matched_mean, omitted_products
from simcast_hpc.forecast.products.place_series import PlaceSettings, series_of
from simcast_hpc.forecast.products.places import Place
from simcast_hpc.forecast.products.product_settings import ProductSettings
from simcast_hpc.radar import encoding_of_run
from tests.forecast.products.made_forecasts import GRID, NO_ECHO, made_forecast, rates

AXIS = TimeAxis(5.0, 4, 6, are_means=False)
ALL = ProductSettings(
    accumulate=(15.0,), windows=((-10.0, 20.0),), percentiles=(90.0, 10.0, 50.0), accumulation_thresholds=(0.5, 2.0),
    matched_mean=True, neighborhood_km=2.0,
)  # fmt: skip


@pytest.mark.parametrize("block", [1 << 12, 1 << 30])
def test_products_of_an_ensemble_equal_numpy(block, monkeypatch):
    monkeypatch.setattr(derived_fields, "_BLOCK_BYTES", block)  # one row, or all
    forecast = made_forecast(members=7)
    fields = {field.name: field for field in derive_fields(forecast, ALL)}
    np.testing.assert_array_equal(
        fields["rainfall_rate_percentile"].values, np.percentile(forecast.values, [10, 50, 90], axis=0).astype("f4")
    )
    assert fields["rainfall_rate_percentile"].levels == (10.0, 50.0, 90.0)
    (group,) = accumulation_groups([15.0], [], time_axis(forecast))
    (sums,) = amounts(forecast, [group], slice(None))
    np.testing.assert_allclose(fields["rainfall_amount_15min_mean"].values, sums.mean(axis=0), rtol=1e-6)
    expected = np.percentile(sums, [10, 50, 90], axis=0).astype("f4")
    np.testing.assert_array_equal(fields["rainfall_amount_15min_percentile"].values, expected)
    share = np.stack([(sums >= level).mean(axis=0) for level in (0.5, 2.0)])
    share[:, np.isnan(sums[0])] = np.nan
    probability = fields["probability_of_rainfall_amount_15min"]
    np.testing.assert_allclose(probability.values, share, atol=1e-6)
    assert fields["rainfall_amount_m10_to_20min_mean"].windows == ((-10.0, 20.0),)
    nearby = fields["neighborhood_probability_of_rainfall_amount_15min"].values
    np.testing.assert_allclose(nearby, box_mean(probability.values, 2))
    assert set(fields) >= {"rainfall_rate_matched_mean", "rainfall_amount_15min_matched_mean"}


def test_matched_mean_has_the_values_of_the_members_in_the_order_of_the_mean():
    members = rates(6, 12, 17, seed=3)
    mean = members.mean(axis=0)
    ours = matched_mean(members, mean)
    theirs = probability_matched_mean(torch.from_numpy(members)[None, :, None])[0, 0].numpy()
    np.testing.assert_array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None))
    distinct = mean > 0
    np.testing.assert_array_equal(ours[distinct], theirs[distinct])
    members[:, :4, :5] = np.nan
    cut = matched_mean(members, members.mean(axis=0))
    assert np.isnan(cut[:4, :5]).all() and np.isfinite(cut[4:]).all()
    np.testing.assert_array_equal(
        np.sort(cut[np.isfinite(cut)]), np.sort(members[:, np.isfinite(cut)], axis=None)[3::6]
    )


def test_neighborhood_means_equal_brute_force():
    field = (rates(1, 9, 11) > 2).astype(np.float32)
    field[0, 2:5, 3] = np.nan
    ours = box_mean(field, 2)
    for row in range(9):
        for column in range(11):
            box = field[0, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            expected = np.nan if np.isnan(field[0, row, column]) else np.nanmean(box)
            np.testing.assert_allclose(ours[0, row, column], expected, atol=1e-6)


def test_one_forecast_has_neighborhood_probabilities_only():
    settings = ProductSettings(accumulate=(15.0,), accumulation_thresholds=(1.0,), neighborhood_km=3.0)
    forecast = made_forecast()
    settings.check("mm/h", None, AXIS, is_ensemble=False)
    fields = {field.name: field for field in derive_fields(forecast, settings)}
    assert set(fields) == {
        "rainfall_amount_15min",
        "neighborhood_probability_of_exceedance",
        "neighborhood_probability_of_rainfall_amount_15min",
    }
    reached = (forecast.values[0] >= 5.0).astype(np.float32)
    reached[np.isnan(forecast.values[0])] = np.nan
    np.testing.assert_allclose(
        fields["neighborhood_probability_of_exceedance"].values[1], box_mean(reached, 3), atol=1e-6
    )


@pytest.mark.parametrize("members", [1, 4])
def test_no_echo_reaches_no_threshold(members):
    lowest = -50.0  # below the value of no echo in dBZ
    forecast = replace(made_forecast(members=members, unit="dBZ", z_r=ZRRelation(a=200.0, b=1.6)), thresholds=(lowest,))
    if members > 1:
        forecast = replace(forecast, probability=None)
    (field,) = derive_fields(forecast, ProductSettings(neighborhood_km=0.4, thresholds=(1e-5,)))
    assert forecast.values is not None
    echo = (forecast.values > NO_ECHO).mean(axis=0)
    expected = np.where(np.isnan(forecast.values).any(axis=0), np.nan, echo)
    np.testing.assert_allclose(field.values[0], expected, atol=1e-6)
    assert 0.1 < np.nanmean(expected) < 0.9
    to_degrees = pyproj.Transformer.from_crs(GRID.projection, "EPSG:4326", always_xy=True)
    corner = to_degrees.transform(GRID.left + 15_500, GRID.top - 10_500)  # row 10, column 15
    place = Place("A", {"type": "Point", "coordinates": list(corner)})
    series = series_of(replace(forecast, probability=None), ProductSettings(), PlaceSettings((place,)))
    shares = [row.value for row in series if row.statistic == "probability"]
    assert shares == ([] if members == 1 else [pytest.approx(value) for value in echo[:, 10, 15]])


def test_pixel_that_is_missing_in_one_member_is_missing_in_every_product():
    forecast = made_forecast(members=4, missing=False)
    assert forecast.values is not None and forecast.mean is not None and forecast.probability is not None
    forecast.values[2, :, 5, 7] = forecast.mean[:, 5, 7] = forecast.probability[..., 5, 7] = np.nan
    settings = ProductSettings(
        accumulate=(15.0,), percentiles=(0.0, 50.0, 100.0), accumulation_thresholds=(1.0,), matched_mean=True,
        neighborhood_km=2.0,
    )  # fmt: skip
    fields = {field.name: field for field in derive_fields(forecast, settings)}
    assert len(fields) == 8
    for field in fields.values():
        assert np.isnan(field.values[..., 5, 7]).all() and np.isnan(field.values).sum() == field.values[..., 0, 0].size
    percentiles = fields["rainfall_rate_percentile"].values
    np.testing.assert_array_equal(percentiles[0], forecast.values.min(axis=0))
    np.testing.assert_array_equal(percentiles[2], forecast.values.max(axis=0))


def test_ensemble_products_are_omitted_for_a_fallback_with_one_member():
    forecast, settings = (
        made_forecast(frames=1),
        ProductSettings(percentiles=(50.0,), windows=((-10.0, 10.0), (0.0, 15.0)), accumulation_thresholds=(1.0,)),
    )
    with pytest.raises(ConfigError, match="--window -10:10"):
        derive_fields(forecast, settings)
    fallback = replace(forecast, provenance={**forecast.provenance, FALLBACK_REASON: "no frames"})
    assert [field.name for field in derive_fields(fallback, settings)] == ["rainfall_amount_0_to_15min"]
    assert omitted_products(fallback, settings) == "--window -10:10, --percentile, --accumulation-threshold"
    assert omitted_products(made_forecast(members=2), settings) == ""


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"percentiles": (50.0,)}, "--percentile requires an ensemble"),
        ({"matched_mean": True}, "--matched-mean requires an ensemble"),
        ({"thresholds": (5.0,)}, "0 or 1, is not a probability"),
        ({"accumulate": (15.0,), "accumulation_thresholds": (5.0,)}, "0 or 1, is not a probability"),
    ],
)
def test_ensemble_products_of_a_deterministic_model_are_rejected(over, message):
    with pytest.raises(ConfigError, match=message):
        ProductSettings(**over).check("mm/h", None, AXIS, is_ensemble=False)
    ProductSettings(**over).check("mm/h", None, AXIS, is_ensemble=True)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"percentiles": (101.0,)}, "--percentile 101 must be from 0 to 100"),
        ({"percentiles": (float("nan"),)}, "--percentile nan"),
        ({"percentiles": (100.0000000001,)}, "--percentile 100.0000000001 must be from 0 to 100"),
        ({"percentiles": (5.0, 5.0)}, "each number once"),
        ({"thresholds": (1.0, 1.00000000001)}, "each number once"),  # files of one name
        ({"accumulate": (0.0,)}, "--accumulate 0 must be above 0"),
        ({"thresholds": (float("inf"),)}, "--threshold inf must be above 0 and finite"),
        ({"windows": ((30.0, 0.0),)}, "--window 30:0 must be START:END"),
        ({"windows": ((0.0, float("nan")),)}, "--window 0:nan"),
        ({"accumulation_thresholds": (5.0,)}, "requires accumulations"),
        ({"neighborhood_km": -1.0}, "--neighborhood -1"),
        ({"dtype": "int8"}, "--dtype 'int8' must be float32 or int16"),
        ({"overlay_projection": "EPSG:3035"}, "--overlay-crs 'EPSG:3035' must be EPSG:3857 or EPSG:4326"),
    ],
)
def test_invalid_numbers_are_rejected(over, message):
    with pytest.raises(ConfigError, match=message):
        ProductSettings(**over)


def test_thresholds_in_mm_per_hour_are_converted_for_a_model_in_dbz():
    code = encoding_of_run(DataConfig(dataset="fmi"), z_r=ZRRelation(a=200.0, b=1.6), rate_thresholds=(20.0, 5.0))
    assert code.unit == "dBZ"
    assert code.thresholds() == pytest.approx((10 * np.log10(200 * 5**1.6), 10 * np.log10(200 * 20**1.6)))
    other = encoding_of_run(DataConfig(dataset="knmi"), rate_thresholds=(20.0, 5.0))
    assert other.unit == "mm/h" and other.thresholds() == (5.0, 20.0)
    with pytest.raises(ConfigError, match="--z-r"):
        ProductSettings(thresholds=(5.0,)).check("dBZ", None, AXIS, is_ensemble=True)
