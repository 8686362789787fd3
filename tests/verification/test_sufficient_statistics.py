"""Sufficient statistics: merging, selecting, scoring under another protocol, files."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcast_hpc.verification import PROTOCOLS, Statistics, count, merge, protocol_for, scores

GLOBAL = PROTOCOLS["sevir-global"]
INTEGERS = ("hits", "misses", "false_alarms", "correct_negatives", "valid_pixels", "observed_pixels")
FLOATS = ("squared_error", "absolute_error")


def random_statistics(seed, events, *, leads=2, largest=2**40):
    generator = np.random.default_rng(seed)
    rows, thresholds = len(events), len(GLOBAL.thresholds)
    tables = {
        name: torch.from_numpy(generator.integers(0, largest, (rows, thresholds, leads))) for name in INTEGERS[:4]
    }
    pixels = {name: torch.from_numpy(generator.integers(0, largest, (rows, leads))) for name in INTEGERS[4:]}
    errors = {name: torch.from_numpy(generator.random((rows, leads))) for name in FLOATS}
    return Statistics(protocol=GLOBAL, events=tuple(events), **tables, **pixels, **errors)


def assert_same(left, right):
    assert left.protocol == right.protocol
    assert left.events == right.events
    for name in INTEGERS:
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    for name in FLOATS:
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=1e-12, atol=0)


event_lists = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6)


@settings(deadline=None, max_examples=25)
@given(batches=st.lists(event_lists, min_size=1, max_size=4), data=st.data())
def test_merge_is_independent_of_order_and_grouping(batches, data):
    parts = [random_statistics(seed, events) for seed, events in enumerate(batches)]
    merged = merge(parts)
    assert_same(merge(data.draw(st.permutations(parts))), merged)
    pairwise = parts[0]
    for part in parts[1:]:
        pairwise = pairwise.merge(part)
    assert_same(merge([pairwise]), merged)
    assert merged.events == tuple(sorted({key for events in batches for key in events}))
    assert int(merged.hits.sum()) == sum(int(part.hits.sum()) for part in parts)


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(7)))
def test_scores_are_independent_of_event_order(order):
    statistics = random_statistics(3, "abcdefg", largest=10**6)
    before, after = scores(statistics, per_lead=True), scores(statistics.select(order), per_lead=True)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-12, nan_ok=True), key


def test_sums_past_2_to_the_24_and_to_the_31_are_exact():
    one = random_statistics(0, ["a"])
    big = dataclasses.replace(one, hits=torch.full_like(one.hits, 21_499_999_999))
    unit = dataclasses.replace(one, hits=torch.ones_like(one.hits))
    assert int(big.merge(unit).hits[0, 0, 0]) == 21_500_000_000
    assert int(merge([big] * 3).hits[0, 0, 0]) == 64_499_999_997


def test_merge_rejects_another_protocol():
    left = random_statistics(0, ["a"])
    right = dataclasses.replace(left, protocol=PROTOCOLS["sevir-global-released"])
    with pytest.raises(ValueError, match=r"sevir-global.*with.*sevir-global-released") as caught:
        left.merge(right)
    assert GLOBAL.hash in str(caught.value)
    assert right.protocol.hash in str(caught.value)


def test_merge_rejects_another_number_of_lead_times():
    with pytest.raises(ValueError, match="2 lead times with 3 lead times"):
        random_statistics(0, ["a"]).merge(random_statistics(0, ["b"], leads=3))


def test_merge_accepts_equal_hashes():
    renamed = protocol_for("my-radar", GLOBAL.thresholds)
    assert renamed.hash == GLOBAL.hash
    left = random_statistics(0, ["a"])
    assert left.merge(dataclasses.replace(left, protocol=renamed)).events == ("a",)


def test_select_repeats_rows():
    statistics = random_statistics(5, "abc")
    selected = statistics.select([2, 0, 2])
    assert selected.events == ("c", "a", "c")
    assert torch.equal(selected.hits.sum(0), statistics.hits[0] + 2 * statistics.hits[2])
    assert merge([selected]).events == ("a", "c")


@pytest.mark.parametrize("rows", [[3], [-1], [0, 5]])
def test_select_rejects_rows_out_of_range(rows):
    with pytest.raises(IndexError, match="valid rows are 0 to 2"):
        random_statistics(5, "abc").select(rows)


def test_counts_can_be_scored_with_another_aggregation_but_not_comparison():
    codes = np.random.default_rng(0).integers(0, 255, (3, 2, 8, 8), dtype=np.uint8)
    counted = count(codes, codes[::-1], protocol=GLOBAL)
    lead_mean = PROTOCOLS["sevir-lead-mean"]
    assert_same(counted.under(lead_mean), count(codes, codes[::-1], protocol=lead_mean))
    with pytest.raises(ValueError, match="count the frames again"):
        counted.under(PROTOCOLS["sevir-global-released"])


def test_rejects_float32_sums():
    one = random_statistics(0, ["a"])
    with pytest.raises(ValueError, match=r"squared_error must be torch.float64"):
        dataclasses.replace(one, squared_error=one.squared_error.float())
    with pytest.raises(ValueError, match=r"hits must be torch.int64 \(1, 6, 2\)"):
        dataclasses.replace(one, hits=one.hits[:, :2])


def test_save_and_load_round_trip(tmp_path):
    statistics = random_statistics(1, ["S001", "R18", "Zürich/2015"])
    path = tmp_path / "persistence.npz"
    statistics.save(path)
    loaded = Statistics.load(path)
    assert_same(loaded, statistics)
    for name in FLOATS:
        assert torch.equal(getattr(loaded, name), getattr(statistics, name))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_load_rejects_other_files(tmp_path, content):
    path = tmp_path / "scores.npz"
    if content is None:
        np.savez(path, hits=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"scores\.npz does not contain verification statistics"):
        Statistics.load(path)


def test_load_rejects_truncated_file(tmp_path):
    path = tmp_path / "scores.npz"
    random_statistics(1, ["a"]).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"scores\.npz does not contain"):
        Statistics.load(path)
