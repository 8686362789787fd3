"""Positions recovered from the values in forecast files: no pixel changes its side of a threshold."""

import numpy as np
import pytest

from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.evaluation.unit_fields import UnitFields
from simcast_hpc.radar.frame_encoding import ModelEncoding


def neighbors(unit: float, count: int = 40) -> np.ndarray:
    """Return the float32 numbers around one, ``count`` on each side."""
    return (np.float32(unit).view(np.int32) + np.arange(-count, count + 1, dtype=np.int32)).view(np.float32)


@pytest.mark.parametrize("description", ["knmi", "fmi", "sevir"])
def test_a_position_next_to_a_threshold_stays_on_its_side(description):
    """In mm/h, dBZ and kg/m^2: float32 numbers around thresholds and whole codes, written and read again."""
    spec = read_spec(description)
    code = ModelEncoding(spec, 5.0, 1.0)
    thresholds = tuple(spec.codes_of(spec.thresholds.values, unit=spec.thresholds.unit))
    unit = np.concatenate([neighbors(position / 255) for position in (*thresholds, 100, 151, 200)])[None]
    values = np.asarray(code.linear_of_forecast(unit), np.float32)
    code.make_physical(values)
    read = UnitFields(code, thresholds).of(values)
    for threshold in thresholds:
        level = np.float32(threshold / 255)
        np.testing.assert_array_equal(read >= level, unit >= level)
    np.testing.assert_allclose(read, unit, rtol=0, atol=1e-7)


def test_values_that_were_not_written_from_a_position_are_rounded_to_the_code():
    """As of packed files: a value near that of a code or of a threshold is equal to it."""
    spec = read_spec("knmi")
    code = ModelEncoding(spec, 5.0, 1.0)
    value = float(spec.encoding.value_of(np.array(120.0)))
    near = np.array([[value * (1 - 2e-7), value * (1 + 2e-7), 0.0, np.nan]])
    read = UnitFields(code, (120.0,)).of(near)
    assert (np.abs(read[0, :2] * 255 - 120) < 3e-5).all() and read[0, 2] == 0 and np.isnan(read[0, 3])


@pytest.mark.parametrize("description", ["knmi", "fmi", "sevir"])
def test_an_issued_field_is_that_of_its_file(description):
    """Bitwise, with no echo, missing pixels and members; a second conversion changes nothing."""
    spec = read_spec(description)
    code = ModelEncoding(spec, 5.0, 1.0)
    unit = np.random.default_rng(2).random((2, 3, 40, 50), np.float32)
    unit[0, 0, :4], unit[1, 2, 5] = np.nan, 0
    linear = np.stack([code.linear_of_forecast(member) for member in unit]).astype(np.float32)
    for member in linear:
        code.make_physical(member)
    fields = UnitFields(code, (120.0,))
    issued = fields.issued(unit)
    np.testing.assert_array_equal(issued, np.stack([fields.of(member) for member in linear]))
    np.testing.assert_array_equal(fields.issued(issued), issued)
    assert not np.array_equal(issued, unit, equal_nan=True) and np.isnan(issued[0, 0, :4]).all()
