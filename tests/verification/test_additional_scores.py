"""Additional scores: worked examples, undefined values, conditions, exact merging, statistics of earlier versions."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from simcast_hpc.verification import (
    OPTIONAL_SCORES,
    PROTOCOLS,
    Accumulator,
    ContingencyTable,
    Pool,
    Statistics,
    bootstrap,
    count,
    merge,
    paired_difference,
    protocol_for,
    score,
    scores,
)
from simcast_hpc.verification.contingency import REQUESTED_TABLE_SCORES
from simcast_hpc.verification.counting import count_windows
from simcast_hpc.verification.error_sums import histogram_sums, separate_sums
from simcast_hpc.verification.scores import is_higher_better

GLOBAL = PROTOCOLS["sevir-global"]
EVERY = dataclasses.replace(GLOBAL, scores=("all",), pools=(Pool(size=4),), ssim=False, fss_km=())


def fields(seed, shape=(6, 3, 12, 12)):
    """Return observation and forecast in [0, 0.95], NaN where missing."""
    generator = np.random.default_rng(seed)
    observed, forecast = generator.random(shape) * 0.95, generator.random(shape) * 0.95
    observed[0, 0, :2], forecast[1, :, :, 3] = np.nan, np.nan
    return observed, forecast


def of_table(name, *counts):
    table = ContingencyTable(
        **dict(
            zip(
                ("hits", "misses", "false_alarms", "correct_negatives"),
                torch.tensor(counts, dtype=torch.float64),
                strict=True,
            )
        )
    )
    return REQUESTED_TABLE_SCORES[name](table).item()


def test_worked_example_of_wwrp():
    hit, false = 82 / 105, 38 / 260
    random = 105 * 120 / 365
    expected = {
        "ets": (82 - random) / (82 + 23 + 38 - random),
        "pofd": false,
        "peirce": hit - false,
        "sedi": math.log(false / hit * (1 - hit) / (1 - false)) / math.log(false * hit * (1 - hit) * (1 - false)),
        "f1": 164 / (164 + 23 + 38),
    }
    for name, value in expected.items():
        assert of_table(name, 82, 23, 38, 222) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        ((0, 0, 0, 9), {"ets", "peirce", "sedi", "f1"}),  # the event does not occur
        ((9, 0, 0, 0), {"ets", "pofd", "peirce", "sedi"}),  # the event is everywhere
        ((0, 9, 0, 0), {"pofd", "peirce", "sedi"}),  # observed everywhere, never forecast
        ((4, 0, 0, 5), {"sedi"}),  # perfect
        ((0, 4, 0, 5), {"sedi"}),  # never forecast
        ((0, 0, 4, 5), {"peirce", "sedi"}),  # never observed
        ((0, 4, 4, 5), {"sedi"}),  # no hits
        ((4, 4, 0, 5), {"sedi"}),  # no false alarms
        ((4, 0, 4, 5), {"sedi"}),  # no misses
        ((4, 4, 4, 0), {"sedi"}),  # no correct negatives
        ((0, 0, 0, 0), set(REQUESTED_TABLE_SCORES)),
    ],
)
def test_undefined_scores_of_the_table(counts, undefined):
    assert {name for name in REQUESTED_TABLE_SCORES if math.isnan(of_table(name, *counts))} == undefined


def test_every_score_is_computed_on_request_and_none_without():
    observed, forecast = fields(0)
    plain, every = (score(observed, forecast, per_lead=True, scores=names) for names in ((), "all"))
    assert {key: every[key] for key in plain} == pytest.approx(plain, nan_ok=True)
    names = {key.split("/")[0] for key in every.keys() - plain.keys()}
    tables = {f"{name}{pool}" for name in REQUESTED_TABLE_SCORES for pool in ("", "_pool4", "_pool16")}
    conditional = {
        f"{n}_{c}" for n in ("mean_error", "mae", "rmse") for c in ("observed", "forecast", "either", "both")
    }
    assert names >= tables | conditional | {"mean_error", "correlation"}
    assert "ets/mean/lead/2" in every and "rmse_both/219/lead/3" in every and "mae_both/mean" not in every
    assert set(score(observed, forecast, scores="ets")) - set(score(observed, forecast)) == {
        f"ets{pool}/{label}" for pool in ("", "_pool4", "_pool16") for label in (*GLOBAL.labels, "mean")
    }
    with pytest.raises(ValueError, match=r"unknown score 'bias'; .*choose from ets, .*, mean_error, .*, all"):
        score(observed, forecast, scores=("bias",))


@pytest.mark.parametrize("condition", ["observed", "forecast", "either", "both"])
def test_conditional_errors(condition):
    observed, forecast = fields(1)
    found = score(observed, forecast, scores=("conditional_errors",), per_lead=True)
    valid = np.isfinite(observed + forecast)
    for label in GLOBAL.labels:
        reached = [field >= np.float32(int(label) / 255) for field in (observed, forecast)]
        keep = {"observed": reached[0], "forecast": reached[1], "either": reached[0] | reached[1],
                "both": reached[0] & reached[1]}[condition] & valid  # fmt: skip
        for suffix, where in (("", keep), ("/lead/2", keep & (np.arange(3) == 1)[:, None, None])):
            error = (forecast - observed)[where]
            assert found[f"mean_error_{condition}/{label}{suffix}"] == pytest.approx(error.mean(), abs=1e-12)
            assert found[f"mae_{condition}/{label}{suffix}"] == pytest.approx(np.abs(error).mean(), abs=1e-12)
            assert found[f"rmse_{condition}/{label}{suffix}"] == pytest.approx((error**2).mean() ** 0.5, abs=1e-12)


def test_conditional_error_without_such_a_pixel_is_undefined():
    low, high = np.full((1, 1, 4, 4), 20, np.uint8), np.full((1, 1, 4, 4), 100, np.uint8)
    found = score(low, high, scores=("conditional_errors",))
    assert math.isnan(found["mae_observed/74"]) and math.isnan(found["mae_both/74"])
    assert found["mean_error_either/74"] == found["mean_error_forecast/74"] == pytest.approx(80 / 255)
    assert math.isnan(found["mean_error_either/133"])


def test_sums_on_a_gpu_are_those_of_the_histogram():
    generator = torch.Generator().manual_seed(0)
    pair = torch.randint(9, (2, 50), generator=generator)
    values = torch.rand(2, 3, 50, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(histogram_sums(pair, values, 9), separate_sums(pair, values, 9), rtol=1e-14, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1.0, 50.0])
def test_correlation_is_that_of_numpy(offset):
    protocol = dataclasses.replace(EVERY, aggregation="lead-mean")
    observed, forecast = fields(2, (3, 2, 20, 20))
    valid = np.isfinite(observed + forecast)
    counted = count(observed, forecast, protocol=protocol)
    # An offset of both fields changes the sums, and not the correlation.
    error, x, y, xx, yy, xy = counted.extra["moments"].unbind(-1)
    n = counted.valid_pixels
    moved = [error, x + n * offset, y + n * offset, xx + 2 * offset * x + n * offset**2,
             yy + 2 * offset * y + n * offset**2, xy + offset * (x + y) + n * offset**2]  # fmt: skip
    shifted = dataclasses.replace(counted, extra={**counted.extra, "moments": torch.stack(moved, -1)})
    by_lead = [np.corrcoef(observed[:, k][valid[:, k]], forecast[:, k][valid[:, k]])[0, 1] for k in range(2)]
    found = scores(shifted, per_lead=True)
    assert found["correlation/lead/2"] == pytest.approx(by_lead[1], abs=1e-9)
    assert found["correlation"] == pytest.approx(np.mean(by_lead), abs=1e-9)
    pooled = scores(shifted.under(EVERY))["correlation"]
    assert pooled == pytest.approx(np.corrcoef(observed[valid], forecast[valid])[0, 1], abs=1e-9)


def test_correlation_of_a_constant_field_is_undefined():
    observed, forecast = fields(3)
    for constant in (0.0, 0.1, 0.7):
        level = np.full_like(observed, constant)
        assert math.isnan(score(observed, level, scores=("correlation",))["correlation"])
        assert math.isnan(score(level, forecast, scores=("correlation",))["correlation"])
    assert score(observed, observed, scores=("correlation",))["correlation"] == pytest.approx(1.0, abs=1e-12)
    assert score(observed, 0.95 - observed, scores=("correlation",))["correlation"] == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize("ensemble", [False, True])
def test_any_split_over_ranks_and_batches_gives_the_same_numbers(ensemble):
    observed, forecast = fields(4)
    if ensemble:
        forecast = np.stack([forecast, forecast[::-1]], axis=1)
    events = ["b", "a", "a", "a", "c", "b"]
    whole = count(observed, forecast, protocol=EVERY, events=events)
    expected, intervals = scores(whole, per_lead=True), bootstrap(whole, draws=20)
    rows = {key: [row for row, event in enumerate(events) if event == key] for key in "abc"}
    for ranks in (["a", "b", "c"], ["cb", "a"], ["ba", "c"], ["acb"]):
        for size in (1, 2, 3):
            parts = []
            for own in ranks:
                accumulator = Accumulator(EVERY)
                for key in own:
                    for begin in range(0, len(rows[key]), size):
                        batch = rows[key][begin : begin + size]
                        accumulator.add(observed[batch], forecast[batch], events=[key] * len(batch))
                parts.append(accumulator.statistics)
            merged = merge(parts)
            for name, sums in whole.sums.items():
                assert torch.equal(merged.sums[name], sums), (name, ranks, size)
            found = scores(merged, per_lead=True)
            assert all(found[key] == value or math.isnan(value) for key, value in expected.items())
    repeated = bootstrap(merged, draws=20)
    assert all(repeated[key] == one or math.isnan(one.value) for key, one in intervals.items())
    assert intervals["correlation"].low < expected["correlation"] < intervals["correlation"].high
    assert intervals["rmse_either/74"].has_bounds and intervals["ets_pool4/219"].has_bounds


def test_rows_of_windows_merge_to_the_sums_of_events():
    observed, forecast = fields(5)
    events = ["a", "b", "a", "b", "b", "a"]
    rows = count_windows(observed, forecast, protocol=EVERY, events=events)
    assert rows.events == tuple(events)
    merged, whole = merge([rows]), count(observed, forecast, protocol=EVERY, events=events)
    assert all(torch.equal(sums, whole.sums[name]) for name, sums in merged.sums.items())


@pytest.mark.parametrize("aggregation", ["frame-mean", "sample-mean"])
def test_table_scores_of_frames_and_windows(aggregation):
    observed, forecast = fields(6)
    protocol = dataclasses.replace(GLOBAL, aggregation=aggregation, scores=("ets", "sedi"), ssim=False, fss_km=())
    found = score(observed, forecast, protocol=protocol)["ets/74"]
    parts = zip(observed, forecast, strict=True)
    if aggregation == "frame-mean":
        parts = ((y[None], x[None]) for pair in parts for y, x in zip(*pair, strict=True))
    each = [score(y, x, scores=("ets",), protocol=protocol_for("own", (74.0,)))["ets/74"] for y, x in parts]
    assert found == pytest.approx(np.mean(each), abs=1e-12)


def test_statistics_of_an_earlier_version_have_the_scores_that_need_no_sums(tmp_path):
    observed, forecast = fields(7)
    counted, path = count(observed, forecast, protocol=GLOBAL), tmp_path / "old.npz"
    counted.save(path)
    with np.load(path) as arrays:
        stored = dict(arrays)
    values = json.loads(str(stored["protocol"]))
    del values["scores"], values["missing_members"]
    np.savez(path, **{**stored, "protocol": np.array(json.dumps(values))})
    old = Statistics.load(path)
    assert scores(old) == pytest.approx(scores(counted), nan_ok=True)
    requested = dataclasses.replace(old.protocol, scores=("ets", "sedi"))
    assert scores(old.under(requested))["ets/74"] == score(observed, forecast, scores=("ets",))["ets/74"]
    assert paired_difference(old, counted, draws=5)["rmse"].value == 0.0
    with pytest.raises(ValueError, match=r"counts of 'sevir-global'.*cannot be scored"):
        old.under(dataclasses.replace(old.protocol, scores=("mean_error",)))


def test_direction_of_every_score():
    better = dict.fromkeys(("ets", "peirce", "sedi_pool4", "f1", "correlation"), True)
    better |= dict.fromkeys(("pofd", "rmse", "mae_observed", "rmse_both"), False)
    better |= {"mean_error": None, "mean_error_either": None}
    assert {key: is_higher_better(f"{key}/74") for key in better} == better
    assert set(REQUESTED_TABLE_SCORES) == {name for name, one in OPTIONAL_SCORES.items() if one.is_table}
