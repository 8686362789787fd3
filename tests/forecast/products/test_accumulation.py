"""Accumulations: both rules against hand calculation and numerical integration, mass, and rejected windows."""

import itertools
from datetime import timedelta

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.data.encoding import rain_rate_from_reflectivity
from simcast_hpc.forecast.products.accumulation import TimeAxis, accumulation_groups, amounts, rain_rate, time_axis
from simcast_hpc.forecast.products.derived_fields import derive_fields
from simcast_hpc.forecast.products.product_fields import layers_of
from simcast_hpc.forecast.products.product_settings import ProductSettings
from tests.forecast.products.made_forecasts import ISSUE, made_forecast

WINDOWS = [(0.0, 30.0), (-15.0, 15.0), (-3.0, 7.5), (2.0, 4.0), (-15.0, -10.0), (27.5, 30.0)]


def all_rates(forecast) -> np.ndarray:
    """Rates of observed and forecast frames, float64 ``[T + T', H, W]``, of the first member."""
    inputs = [forecast.inputs.values(k) for k in range(len(forecast.inputs.times))]
    return np.concatenate([np.stack(inputs), forecast.values[0]]).astype(np.float64)


def test_amounts_by_hand():
    """Rates of 6, 12, 0 and 24 mm/h at -5, 0, 5 and 10 minutes."""
    instantaneous, means = (TimeAxis(5.0, 2, 2, are_means=kind) for kind in (False, True))
    frames = np.array([6.0, 12.0, 0.0, 24.0])
    # Trapezoids: 0.75 mm from -5 to 0, 0.5 mm from 0 to 5, 1 mm from 5 to 10; half of the second is 0.375 mm.
    for window, amount in {(-5, 0): 0.75, (0, 5): 0.5, (0, 10): 1.5, (-5, 10): 2.25, (0, 2.5): 0.375}.items():
        assert frames @ instantaneous.weights(window) == pytest.approx(amount)
    # Means: 0.5, 1, 0 and 2 mm in the five minutes before each time.
    for window, amount in {(-10, -5): 0.5, (-5, 0): 1.0, (0, 10): 2.0, (-10, 10): 3.5, (-7.5, 2.5): 1.25}.items():
        assert frames @ means.weights(window) == pytest.approx(amount)


@pytest.mark.parametrize("window", WINDOWS)
def test_trapezoidal_rule_equals_fine_integration(window):
    forecast = made_forecast(missing=False)
    axis, frames = time_axis(forecast), all_rates(forecast)[:, 4, 7]
    fine = np.linspace(*window, 100_001)
    curve = np.interp(fine, axis.times, frames)
    expected = np.mean((curve[1:] + curve[:-1]) / 2) * (window[1] - window[0]) / 60.0
    group = accumulation_groups([], [window], axis)
    (amount,) = amounts(forecast, group, slice(None))
    assert amount[0, 0, 4, 7] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("are_means", [False, True])
def test_mass_of_consecutive_windows_is_that_of_the_whole(are_means):
    forecast = made_forecast(members=3, are_means=are_means, missing=False)
    axis = time_axis(forecast)
    edges = [axis.start, -7.0, 0.0, 1.25, 10.0, 22.0, axis.end]
    parts = accumulation_groups([], list(itertools.pairwise(edges)), axis)
    whole = accumulation_groups([], [(axis.start, axis.end)], axis)
    sums = sum(amount[:, 0] for amount in amounts(forecast, parts, slice(None)))
    np.testing.assert_allclose(sums, amounts(forecast, whole, slice(None))[0][:, 0], rtol=1e-5)
    if are_means:  # every frame once, 5 minutes each
        np.testing.assert_allclose(sums[0], all_rates(forecast).sum(axis=0) * 5 / 60, rtol=1e-5)


def test_mean_rates_of_an_hour_are_the_sum_of_their_frames():
    forecast = made_forecast(are_means=True, frames=13, leads=12)
    (field,) = derive_fields(forecast, ProductSettings(accumulate=(60.0,)))
    assert field.name == "rainfall_amount_60min" and field.windows[0] == (-55.0, 5.0)
    assert field.windows[-1] == (0.0, 60.0)
    frames = all_rates(forecast)
    np.testing.assert_allclose(field.values[0], frames[2:14].sum(axis=0) / 12, rtol=1e-5)
    np.testing.assert_allclose(field.values[-1], frames[13:].sum(axis=0) / 12, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(field.values[3]), np.isnan(forecast.observed))


def test_windows_before_the_first_frame_are_omitted():
    forecast = made_forecast()  # instantaneous, from -15 to 30 minutes
    (field,) = derive_fields(forecast, ProductSettings(accumulate=(40.0,)))
    assert field.windows == ((-15.0, 25.0), (-10.0, 30.0))
    layers = list(layers_of(forecast, field))
    assert layers[0].start == ISSUE - timedelta(minutes=15) and layers[0].valid == ISSUE + timedelta(minutes=25)
    assert [layer.stem for layer in layers] == ["rainfall_amount_40min_025min", "rainfall_amount_40min_030min"]


def test_missing_lead_times_affect_only_windows_that_need_them():
    forecast = made_forecast()
    forecast.values[:, 4:] = np.nan
    (field,) = derive_fields(forecast, ProductSettings(accumulate=(10.0,)))
    lost = [np.isnan(one).all() for one in field.values]
    assert lost == [False, False, False, False, True, True]


def test_reflectivity_is_converted_by_the_relation():
    relation = ZRRelation(a=256.0, b=1.42)
    forecast = made_forecast(unit="dBZ", z_r=relation)
    rates = rain_rate(forecast.values, forecast)
    expected = rain_rate_from_reflectivity(forecast.values, 256.0, 1.42)
    silent = forecast.values <= forecast.no_echo_dbz
    assert silent.any() and (rates[silent] == 0).all()
    np.testing.assert_allclose(rates[~silent], expected[~silent], rtol=2e-5)


@pytest.mark.parametrize(
    ("settings", "unit", "message"),
    [
        ({"accumulate": (60.0,)}, "mm/h", "cover 45 minutes, from -15 to 30 after the issue time; choose at most 45"),
        ({"windows": ((0.0, 35.0),)}, "mm/h", "--window 0:35 must be from -15 to 30 minutes"),
        ({"windows": ((-16.0, 5.0),)}, "mm/h", "--window -16:5 must be from -15 to 30 minutes"),
        ({"accumulate": (15.0,)}, "dBZ", "--z-r A B"),
        ({"accumulate": (15.0,)}, "kg/m^2", "a model in kg/m^2 forecasts no rain rates"),
    ],
)
def test_windows_and_units_that_are_rejected(settings, unit, message):
    forecast, chosen = made_forecast(unit=unit), ProductSettings(**settings)
    with pytest.raises((ConfigError, DataError), match=message.replace("^", r"\^")):
        derive_fields(forecast, chosen)
    with pytest.raises(ConfigError, match=message.replace("^", r"\^")):
        chosen.check(unit, None, time_axis(forecast), is_ensemble=False)
