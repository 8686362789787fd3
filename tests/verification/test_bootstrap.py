"""Bootstrap intervals: exact values, seeding, width, coverage, pairing; and intervals over training seeds."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcast_hpc.verification import (
    PROTOCOLS,
    bootstrap,
    bootstrap_over_seeds,
    count,
    paired_difference,
    protocol_for,
    scores,
)
from simcast_hpc.verification.bootstrap import student_t

PROTOCOL = protocol_for("own", (74, 133), fss_km=(4.0,))


def statistics(events, *, noise=60, seed=0, protocol=PROTOCOL):
    generator = np.random.default_rng(seed)
    observed = generator.integers(0, 250, (events, 2, 16, 16), dtype=np.uint8)
    moved = observed + generator.integers(-noise, noise + 1, observed.shape)
    forecast = np.clip(moved, 0, 254).astype(np.uint8)
    return count(observed, forecast, protocol=protocol, events=[f"e{k:03d}" for k in range(events)])


def test_value_is_the_score_and_a_seed_reproduces():
    counted = statistics(12)
    found = bootstrap(counted, draws=200, per_lead=True)
    for key, value in scores(counted, per_lead=True).items():
        assert found[key].value == pytest.approx(value, rel=1e-12, nan_ok=True)
        assert math.isnan(found[key].low) or found[key].low <= value <= found[key].high
    assert bootstrap(counted, draws=200) == bootstrap(counted, draws=200)
    assert bootstrap(counted, draws=200)["csi/mean"] != bootstrap(counted, draws=200, seed=1)["csi/mean"]


def test_resample_equals_selected_events():
    """A resample by weights has the scores of the selected rows."""
    import torch

    counted = statistics(5)
    chosen = torch.randint(5, (1, 5), generator=torch.Generator().manual_seed(7))
    single = bootstrap(counted, draws=1, seed=7)
    expected = scores(counted.select(chosen[0]))
    for key, one in single.items():
        assert one.low == one.high == pytest.approx(expected[key], rel=1e-12, nan_ok=True), key


def test_intervals_narrow_with_more_events():
    few, many = (bootstrap(statistics(n), draws=300)["csi/mean"] for n in (8, 128))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_coverage_of_the_interval():
    truth = scores(statistics(400, seed=99))["csi/mean"]
    covered = 0
    for seed in range(40):
        one = bootstrap(statistics(30, seed=seed), draws=200)["csi/mean"]
        covered += one.low <= truth <= one.high
    # 38 of 40 are expected; the probability of 32 or fewer is below 0.2 %.
    assert covered >= 33


def test_paired_difference_is_narrower_than_single_intervals():
    better, worse = statistics(40, noise=50), statistics(40, noise=60)
    pair = paired_difference(better, worse, draws=300)["csi/mean"]
    assert pair.value > 0 and pair.low > 0 and pair.above_zero == 1.0
    separate = [bootstrap(side, draws=300)["csi/mean"] for side in (better, worse)]
    assert pair.high - pair.low < max(one.high - one.low for one in separate)
    zero = paired_difference(better, better, draws=100)["csi/mean"]
    assert zero.value == zero.low == zero.high == 0.0


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_difference_is_antisymmetric(seed):
    one, two = statistics(6, seed=seed), statistics(6, noise=90, seed=seed)
    forward, back = (paired_difference(a, b, draws=50)["mae"] for a, b in ((one, two), (two, one)))
    assert forward.value == -back.value and forward.low == pytest.approx(-back.high)


def test_rejects_incomparable_statistics():
    with pytest.raises(ValueError, match="at least 2 events, got statistics over 1 event"):
        bootstrap(statistics(1))
    with pytest.raises(ValueError, match="draws=0"):
        bootstrap(statistics(3), draws=0)
    with pytest.raises(ValueError, match="requires the same events"):
        paired_difference(statistics(3), statistics(4))
    strict = dataclasses.replace(PROTOCOL, strict=True)
    with pytest.raises(ValueError, match="requires one protocol"):
        paired_difference(statistics(3), statistics(3, protocol=strict))


def test_frame_scores_are_resampled():
    counted = statistics(6, protocol=PROTOCOLS["sevir-frame-mean"])
    found = bootstrap(counted, draws=50)["csi/74"]
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706205), (2, 4.302653), (4, 2.776445), (9, 2.262157), (30, 2.042272)]
)
def test_student_t_quantiles_equal_published_tables(degrees, quantile):
    assert student_t(0.975, degrees) == pytest.approx(quantile, rel=1e-5)


def test_seed_bootstrap_averages_scores_over_seeds():
    runs = [statistics(8, noise=50 + 10 * k, seed=4) for k in range(3)]
    intervals = bootstrap_over_seeds(runs, draws=100, per_lead=True)
    by_seed = [scores(run, per_lead=True) for run in runs]
    for key, interval in intervals.items():
        assert interval.value == pytest.approx(np.mean([one[key] for one in by_seed]), rel=1e-12, nan_ok=True), key
    csi = intervals["csi/mean"]
    assert csi.seeds == 3 and csi.low < csi.value < csi.high
    assert csi.half_width > student_t(0.975, 2) * np.std([one["csi/mean"] for one in by_seed]) / np.sqrt(3)


def test_seed_bootstrap_pairs_a_difference_in_seeds_and_events():
    first = [statistics(8, noise=50 + 10 * k, seed=4) for k in range(3)]
    second = [statistics(8, noise=60 + 10 * k, seed=4) for k in range(3)]
    difference = bootstrap_over_seeds(first, reference=second, draws=100)["mae"]
    assert difference.high < 0 and difference.half_width < bootstrap_over_seeds(first, draws=100)["mae"].half_width
    zero = bootstrap_over_seeds(first, reference=first, draws=100)["mae"]
    assert zero.value == zero.low == zero.high == 0.0


def test_seed_bootstrap_of_one_seed_has_no_bounds():
    assert not bootstrap_over_seeds([statistics(4)], draws=10)["csi/mean"].has_bounds


def test_seed_bootstrap_rejects_other_events_and_other_numbers_of_seeds():
    with pytest.raises(ValueError, match="got 2 runs and 1 of the reference; give one per training seed"):
        bootstrap_over_seeds([statistics(4)] * 2, reference=[statistics(4)])
    with pytest.raises(ValueError, match="requires the same events"):
        bootstrap_over_seeds([statistics(4), statistics(5)])
