"""Arrays of any dtype, shape and layout: encodings keep order and missing values, scores are numbers or an error."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import simcast_hpc as sc
from simcast_hpc.data.dataset_spec import built_in_specs, read_spec

FIXED = settings(deadline=None, derandomize=True)
ENCODINGS = {name: read_spec(name).encoding for name in built_in_specs()}
PHYSICAL = hnp.arrays(
    st.sampled_from([np.float32, np.float64, ">f4", ">f8"]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=5, min_side=0),
    elements=st.floats(-200, 400, width=32),
)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@settings(FIXED, max_examples=20)
@given(physical=PHYSICAL, share=st.floats(0, 1))
def test_encoding_is_within_half_a_step_monotone_and_keeps_missing(name, physical, share):
    encoding = ENCODINGS[name]
    missing = np.random.default_rng(0).random(physical.shape) < share
    codes = encoding.encode(np.where(missing, np.nan, physical))
    decoded = encoding.decode(codes)
    assert codes.dtype == np.uint8 and codes.shape == physical.shape and decoded.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(decoded), missing)
    np.testing.assert_array_equal(codes == 255, missing)
    # Half a step: no other value of the table is nearer, in the domain of the encoding.
    table = _table(name)
    values, found = physical[~missing].astype(np.float64), decoded[~missing].astype(np.float64)
    inside = (values >= table[1]) & (values <= table[-1])
    own = np.abs(_domain(name, found[inside]) - _domain(name, values[inside]))
    nearest = np.abs(_domain(name, table[1:, None]) - _domain(name, values[inside])).min(0)
    assert (own <= nearest * (1 + 1e-5) + 2e-5).all()
    assert (found[values > table[-1]] == table[-1]).all() and (found[values < table[0]] == table[0]).all()
    found = np.maximum(found, -1e9)  # no echo is -inf dBZ
    assert (np.diff(found[np.argsort(values, kind="stable")]) >= 0).all()


def _table(name: str) -> np.ndarray:
    """Return the different values of the codes, ascending; the first is no echo."""
    return np.unique(ENCODINGS[name].decode(np.arange(255, dtype=np.uint8)).astype(np.float64))


def _domain(name: str, values: np.ndarray) -> np.ndarray:
    encoding = ENCODINGS[name]
    return 10 * np.log10(values) if encoding.kind == "decibel" and encoding.unit == "mm/h" else values


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_values_a_quarter_step_from_a_code_get_this_code(name):
    table = _table(name)[2:]
    step = np.diff(table)
    for values, expected in ((table[:-1] + step / 4, table[:-1]), (table[1:] - step / 4, table[1:])):
        np.testing.assert_array_equal(
            ENCODINGS[name].decode(ENCODINGS[name].encode(values)), expected.astype(np.float32)
        )


DTYPES = [
    np.uint8,
    np.float16,
    np.float32,
    np.float64,
    np.int16,
    np.int64,
    np.bool_,
    np.complex64,
    ">f4",
    "O",
    "U3",
    "M8[s]",
]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
LAYOUTS = st.sampled_from([np.array, np.asfortranarray, np.flip, np.transpose, np.atleast_1d])


@st.composite
def _pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """Return two fields of any of nine dtypes, more often than not of one shape."""
    shape = draw(SHAPES)
    shapes = (shape, draw(st.sampled_from([shape, shape, shape[:1] + shape]) | SHAPES))
    kinds = st.sampled_from([np.dtype(kind) for kind in (*DTYPES[:9], np.uint8, np.float32)])
    first, second = (draw(hnp.arrays(draw(kinds), one)) for one in shapes)
    return first, second


@settings(FIXED, max_examples=80)
@given(fields=_pairs(), layout=LAYOUTS)
def test_any_arrays_are_scored_or_an_error(fields, layout):
    try:
        result = sc.score(layout(fields[0]), layout(fields[1]))
    except (TypeError, ValueError):
        return
    assert all(isinstance(value, float) for value in result.values())


@pytest.mark.parametrize("kind", DTYPES[4:], ids=str)
def test_other_dtypes_are_errors(kind):
    if kind == ">f4":
        return
    field = np.zeros((1, 2, 4, 4), np.uint8).astype(kind)
    with pytest.raises((TypeError, ValueError)):
        sc.score(field, field)


@settings(FIXED, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.tuples(*[st.integers(1, 3)] * 2, st.integers(16, 20), st.integers(16, 20))
)
def test_scores_do_not_depend_on_layout_and_byte_order(seed, shape):
    numbers = np.random.default_rng(seed)
    observation, forecast = (numbers.random(shape, np.float32) for _ in range(2))
    expected = sc.score(observation, forecast)
    for other in (
        np.asfortranarray,
        lambda field: field.astype(">f4"),
        lambda field: np.repeat(field, 2, -1)[..., ::2],
    ):
        result = sc.score(other(observation), other(forecast))
        assert result.keys() == expected.keys()
        assert all(
            math.isclose(result[key], value, rel_tol=1e-6) or math.isnan(value) for key, value in expected.items()
        )
