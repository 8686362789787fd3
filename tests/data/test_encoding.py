"""Encodings: exact inverses, thresholds including ties, averages in linear units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from simcast_hpc.data.encoding import Decibel, Encoding, Linear, SevirVil, block_mean, rain_rate_from_reflectivity

VIL = SevirVil()
RAIN = Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, first_code=1, floor=0.1)
RAIN_HIGH_FLOOR = Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, first_code=3, floor=0.2)
ECHO = Linear(unit="dBZ", gain=0.5, offset=-32.0)
NO_ECHO = Linear(unit="dBZ", gain=0.5, offset=-32.0, zero_is_no_echo=True)
ALL = [
    pytest.param(VIL, id="sevir_vil"),
    pytest.param(RAIN, id="decibel"),
    pytest.param(RAIN_HIGH_FLOOR, id="decibel-floor-above-first-code"),
    pytest.param(ECHO, id="linear"),
    pytest.param(NO_ECHO, id="linear-no-echo"),
]
CODES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("encoding", ALL)
def test_encode_returns_the_lowest_code_of_each_value(encoding):
    values = encoding.decode(CODES)
    canonical = np.array([np.flatnonzero(values == value)[0] if value == value else 255 for value in values])

    assert values.dtype == np.float32
    assert np.isnan(values[255]) and not np.isnan(values[:255]).any()
    assert (np.diff(values[:255]) >= 0).all()
    encoded = encoding.encode(values)
    assert encoded.dtype == np.uint8
    np.testing.assert_array_equal(encoded, canonical)


def test_codes_of_no_echo():
    np.testing.assert_array_equal(np.flatnonzero(VIL.decode(CODES) == 0), np.arange(6))
    np.testing.assert_array_equal(np.flatnonzero(RAIN.decode(CODES) == 0), [0])
    np.testing.assert_array_equal(ECHO.encode(ECHO.decode(CODES)), CODES)


@pytest.mark.parametrize("encoding", ALL)
def test_code_of_separates_codes_like_their_values(encoding):
    values = encoding.decode(CODES[:255])
    finite = values[np.isfinite(values)].astype(np.float64)
    between = (finite[1:] + finite[:-1]) / 2
    for threshold in [*finite, *between, finite[-1] + 1, finite[0] - 1]:
        position = encoding.code_of(float(threshold))
        np.testing.assert_array_equal(CODES[:255] >= position, values >= np.float32(threshold), err_msg=f"{threshold}")


@pytest.mark.parametrize("encoding", ALL)
def test_threshold_equal_to_a_code_value_gives_the_code(encoding):
    values = encoding.decode(CODES[:255])
    for value in np.unique(values):
        same = np.flatnonzero(values == value)
        assert encoding.code_of(float(value)) == same[0]
        assert encoding.code_of(float(np.nextafter(value, np.float32(np.inf)))) > same[-1]


@pytest.mark.parametrize(
    ("code", "vil"), [(16, 0.154), (74, 0.775), (133, 3.53), (160, 7.07), (181, 12.14), (219, 32.2)]
)
def test_sevir_thresholds_of_the_paper(code, vil):
    assert VIL.decode(np.array(code, np.uint8)) == pytest.approx(vil, rel=3e-3)
    assert VIL.code_of(vil) == pytest.approx(code, abs=0.3)


def test_sevir_branch_boundaries_equal_the_published_formula():
    decoded = VIL.decode(np.array([5, 6, 18, 19], np.uint8))
    np.testing.assert_allclose(decoded, [0, 4 / 90.66, 16 / 90.66, np.exp((19 - 83.9) / 38.9)], rtol=1e-6)


def test_rain_rate_thresholds():
    assert RAIN.code_of(0.1) == 1
    assert RAIN.code_of(10.0) == pytest.approx(1 + 20 / 0.15)
    assert RAIN.code_of(0.0) == 0
    np.testing.assert_array_equal(RAIN.encode(np.array([0.0, 0.0999, 0.1, 10.0, 1e9, -1.0])), [0, 0, 1, 134, 254, 0])


def test_reflectivity_thresholds_and_ends():
    assert ECHO.code_of(35.0) == 134
    np.testing.assert_array_equal(ECHO.encode(np.array([-np.inf, -40.0, -32.0, 0.0, 500.0])), [0, 0, 0, 64, 254])
    assert NO_ECHO.decode(np.array([0], np.uint8))[0] == -np.inf


@given(vil=st.floats(0, 100, allow_nan=False))
def test_encode_returns_the_nearest_code(vil):
    values = VIL.decode(CODES[:255]).astype(np.float64)
    code = VIL.encode(np.array(vil))
    assert abs(values[code] - vil) <= np.abs(values - vil).min() * (1 + 1e-5) + 1e-7


def test_encode_keeps_the_shape_and_maps_nan_to_missing():
    field = np.full((2, 3, 4), np.nan, np.float32)
    field[1, 2, 3] = 1.0
    codes = VIL.encode(field)
    assert codes.shape == field.shape
    assert (codes == 255).sum() == 23


def test_kind_selects_the_encoding_and_validation_is_strict():
    adapter = TypeAdapter(Encoding)
    assert adapter.validate_python({"kind": "sevir_vil"}) == VIL
    assert adapter.validate_python({"kind": "linear", "unit": "dBZ", "gain": 0.5, "offset": -32.0}) == ECHO
    for wrong in ({"kind": "log"}, {"kind": "sevir_vil", "gain": 1.0}, {"kind": "linear", "unit": "dBZ", "gain": "1"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    with pytest.raises(ValidationError, match="choose a lower floor"):
        Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, floor=1e9)


def test_rejects_wrong_dtype_and_nan_threshold():
    with pytest.raises(TypeError, match="int64"):
        VIL.decode(np.arange(3))
    with pytest.raises(ValueError, match="NaN"):
        RAIN.code_of(float("nan"))


def test_marshall_palmer():
    dbz = np.array([18.19, 27.83, 34.19, 39.01, 46.64, np.nan, -np.inf], np.float32)
    rain = rain_rate_from_reflectivity(dbz)
    assert rain.dtype == np.float32
    np.testing.assert_allclose(rain, [0.5, 2, 5, 10, 30, np.nan, 0], rtol=2e-3)


def test_block_mean_averages_valid_pixels_in_linear_units():
    rain = RAIN.decode(np.array([[1, 201], [255, 201]], np.uint8))
    low, high = rain[0]
    np.testing.assert_allclose(block_mean(rain, 2), [[(low + 2 * high) / 3]], rtol=1e-6)
    assert not np.isclose(block_mean(rain, 2)[0, 0], RAIN.decode(np.array([134], np.uint8))[0], rtol=0.1)


def test_block_mean_with_leading_axes_and_invalid_factor():
    field = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6)
    field[0, :2, :2] = np.nan
    means = block_mean(field, 2)
    assert means.shape == (2, 2, 3) and means.dtype == np.float32
    assert np.isnan(means[0, 0, 0]) and np.isnan(means).sum() == 1
    assert means[1, 1, 2] == field[1, 2:, 4:].mean()
    np.testing.assert_array_equal(block_mean(field, 1), field)
    with pytest.raises(ValueError, match=r"factor=3 .* 4 x 6"):
        block_mean(field, 3)


@pytest.mark.parametrize("encoding", ALL)
def test_value_of_is_monotonic_and_equals_decode_at_codes(encoding):
    at_codes = encoding.value_of(CODES[:255])
    np.testing.assert_array_equal(at_codes.astype(np.float32), encoding.decode(CODES[:255]))
    between = encoding.value_of(np.linspace(0, 254, 2541))
    assert (between[1:] >= between[:-1]).all()
    assert encoding.value_of(np.array(300.0)) == at_codes[254] and np.isnan(encoding.value_of(np.array(np.nan)))


def test_positions_below_half_are_no_echo():
    np.testing.assert_array_equal(NO_ECHO.value_of(np.array([0.49, 0.5, 1.5])), [-np.inf, -31.75, -31.25])
