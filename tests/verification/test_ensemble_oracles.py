"""Scores of ensembles compared with scores and pysteps, and with sums over single pixels, to 1e-9."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch

from simcast_hpc.verification import bootstrap, count, merge, protocol_for, score, scores
from tests.verification.compared_scores import EXACT, Comparison, library, radar, synthetic

THRESHOLDS = (40.0, 90.5, 140.0)
LABELS = [f"{threshold:g}" for threshold in THRESHOLDS]
SCORES = ("twcrps", "crps_decomposition", "brier_fair", "brier_decomposition")
PROTOCOL = protocol_for("own", THRESHOLDS, scores=SCORES)


@pytest.fixture(scope="module")
def comparison():
    table = Comparison("Ensembles")
    yield table
    print(table)
    table.check_page()


def ensemble(kind, members):
    """Return observation [N, T, H, W] and members [N, M, T, H, W] with many ties, uint8."""
    observed = synthetic(0, (2, 2, 32, 32)) if kind == "synthetic" else radar()[0][:2, :2, :64, :64]
    noise = np.random.default_rng(members).integers(-30, 31, (len(observed), members, *observed.shape[1:]))
    dry = observed[:, None] == 0
    return observed, np.where(dry, 0, np.clip(observed[:, None].astype(int) + noise, 0, 254)).astype(np.uint8)


def unit(field):
    return (field.astype(np.float32) / np.float32(255)).astype(float)


def arrays(observed, members):
    """Return float fields as DataArrays for the library scores."""
    xarray = library("xarray")
    return (
        xarray.DataArray(unit(members), dims=("n", "m", "t", "y", "x")),
        xarray.DataArray(unit(observed), dims=("n", "t", "y", "x")),
    )


@pytest.mark.parametrize("members", [2, 5, 11])
@pytest.mark.parametrize("kind", ["synthetic", "radar"])
def test_ensemble_scores_equal_the_library_scores(kind, members, comparison):
    library("scores")
    probability = importlib.import_module("scores.probability")
    observed, forecast = ensemble(kind, members)
    x, y = arrays(observed, forecast)
    ours = score(observed, forecast, protocol=PROTOCOL, per_lead=True)
    keep = ["t"]
    for key, method in (("crps", "fair"), ("crps_standard", "ecdf")):
        expected = probability.crps_for_ensemble(x, y, "m", method=method, preserve_dims=keep).values
        comparison.check(key, "scores", ours, key, expected)
    for threshold, label in zip(THRESHOLDS, LABELS, strict=True):
        for key, method in (("twcrps", "fair"), ("twcrps_standard", "ecdf")):
            expected = probability.tail_tw_crps_for_ensemble(
                x, y, "m", threshold=threshold / 255, tail="upper", method=method, preserve_dims=keep
            ).values
            comparison.check(key, "scores", ours, f"{key}/{label}", expected)
        for key, fair in (("brier", False), ("brier_fair", True)):
            expected = probability.brier_score_for_ensemble(
                x, y, "m", float(np.float32(threshold / 255)), fair_correction=fair, preserve_dims=keep
            )
            comparison.check(key, "scores", ours, f"{key}/{label}", expected.values.ravel())
    # The climatology of the observations as an ensemble
    for lead in range(observed.shape[1]):
        sample = y.isel(t=lead).values.ravel()
        few = sample[:: max(1, len(sample) // 1024)]
        xarray = library("xarray")
        climatology = xarray.DataArray(np.tile(few, (len(few), 1)), dims=("p", "m"))
        expected = float(probability.crps_for_ensemble(climatology, xarray.DataArray(few, dims="p"), "m"))
        codes = np.round(few * 255).astype(np.uint8).reshape(1, 1, 1, -1)
        found = score(codes, np.stack([codes, codes], axis=1), protocol=PROTOCOL)
        comparison.check("crps_uncertainty", "scores", found, "crps_uncertainty", [expected])


def hersbach(y, members):
    """Return reliability and potential CRPS, pixel by pixel (Hersbach 2000, eqs. 26 to 37)."""
    size = len(members)
    alpha, beta, below, above = np.zeros(size + 1), np.zeros(size + 1), 0, 0
    for truth, x in zip(y, np.sort(members, axis=0).T, strict=True):
        edges = [-math.inf, *x, math.inf]
        for i in range(size + 1):
            low, high = edges[i], edges[i + 1]
            if truth > high:
                alpha[i] += high - low
            elif truth < low:
                beta[i] += high - low
            else:
                alpha[i] += truth - low if i > 0 else 0
                beta[i] += high - truth if i < size else 0
        below, above = below + (truth < x[0]), above + (truth > x[-1])
    alpha, beta, below, above = (part / len(y) for part in (alpha, beta, below, above))
    reliability = potential = 0.0
    for i in range(size + 1):
        if i == 0:
            observed, width = below, beta[0] / below if below else 0
        elif i == size:
            observed, width = 1 - above, alpha[size] / above if above else 0
        else:
            width = alpha[i] + beta[i]
            observed = beta[i] / width if width else 0
        reliability += width * (observed - i / size) ** 2
        potential += width * observed * (1 - observed)
    return reliability, potential


@pytest.mark.parametrize("members", [2, 7])
@pytest.mark.parametrize("kind", ["synthetic", "radar"])
def test_decompositions(kind, members, comparison):
    observed, forecast = ensemble(kind, members)
    observed, forecast = observed[:, :, :20, :20], forecast[..., :20, :20]
    ours = score(observed, forecast, protocol=PROTOCOL, per_lead=True)
    y, x = unit(observed).swapaxes(0, 1), unit(forecast).transpose(2, 1, 0, 3, 4)
    parts = np.array([hersbach(truth.ravel(), some.reshape(members, -1)) for truth, some in zip(y, x, strict=True)])
    comparison.check("crps_reliability", "Hersbach 2000", ours, "crps_reliability", parts[:, 0])
    comparison.check("crps_potential", "Hersbach 2000", ours, "crps_potential", parts[:, 1])
    pooled = hersbach(y.ravel(), x.swapaxes(0, 1).reshape(members, -1))
    assert ours["crps_reliability"] == pytest.approx(pooled[0], abs=EXACT)
    assert ours["crps_potential"] == pytest.approx(pooled[1], abs=EXACT)
    for suffix in ("", "/lead/1", "/lead/2"):
        found = {name: ours[f"crps_{name}{suffix}"] for name in ("reliability", "potential", "resolution")}
        assert found["reliability"] + found["potential"] == pytest.approx(ours[f"crps_standard{suffix}"], abs=1e-14)
        assert found["potential"] + found["resolution"] == pytest.approx(ours[f"crps_uncertainty{suffix}"], abs=1e-14)
    for threshold, label in zip(THRESHOLDS, LABELS, strict=True):
        probability, event = (forecast >= threshold).mean(1), observed >= threshold
        for lead in range(2):
            p, o = probability[:, lead], event[:, lead]
            groups = [(value, (p == value).mean(), o[p == value].mean()) for value in np.unique(p)]
            expected = {
                "brier_reliability": sum(share * (value - rate) ** 2 for value, share, rate in groups),
                "brier_resolution": sum(share * (rate - o.mean()) ** 2 for _, share, rate in groups),
                "brier_uncertainty": o.mean() * (1 - o.mean()),
            }
            for key, value in expected.items():
                comparison.check(key, "Murphy 1973", ours, f"{key}/{label}/lead/{lead + 1}", [value])
            assert expected["brier_reliability"] - expected["brier_resolution"] + expected[
                "brier_uncertainty"
            ] == pytest.approx(ours[f"brier/{label}/lead/{lead + 1}"], abs=EXACT)


def test_crps_of_pysteps_drops_intervals_that_end_at_the_observation(comparison):
    """Its condition for the inner interval is strict on both sides; without ties it is equal to the standard CRPS."""
    crps = library("pysteps.verification.probscores").CRPS
    tie = score(np.full((1, 1, 1, 1), 0.5), np.array([0.0, 0.5]).reshape(1, 2, 1, 1, 1), protocol=PROTOCOL)
    assert tie["crps_standard"] == pytest.approx(0.125) and crps(np.array([[0.0], [0.5]]), np.array([0.5])) == 0.0
    observed, forecast = ensemble("radar", 5)
    ours = score(observed, forecast, protocol=PROTOCOL, per_lead=True)
    y, x = unit(observed).swapaxes(0, 1), unit(forecast).transpose(2, 1, 0, 3, 4)
    exact = [crps(some, truth + 1e-13) for truth, some in zip(y, x, strict=True)]
    comparison.check("crps_standard", "pysteps, ties moved by 1e-13", ours, "crps_standard", exact)
    low = [crps(some, truth) for truth, some in zip(y, x, strict=True)]
    comparison.note("crps_standard", "pysteps", f"{100 * (np.mean(low) / ours['crps_standard'] - 1):.1f} % on radar")
    assert np.mean(low) < ours["crps_standard"]


def test_spread_and_skill_by_lead_time(comparison):
    """Half the mean squared difference of two members is their variance; skill is the error of the mean."""
    pairs = library("pysteps.verification.ensscores").ensemble_spread
    error = library("pysteps.verification.detcontscores").det_cont_fct
    observed, forecast = ensemble("radar", 6)
    ours = score(observed, forecast, protocol=PROTOCOL, per_lead=True)
    y, x = unit(observed).swapaxes(0, 1), unit(forecast).transpose(2, 1, 0, 3, 4)
    variance = np.array([pairs(some.reshape(6, -1, 64), "MSE") / 2 for some in x])
    rmse = np.array([error(some.mean(0), truth, "RMSE")["RMSE"] for truth, some in zip(y, x, strict=True)])
    comparison.check("spread", "pysteps", ours, "spread", np.sqrt(variance))
    comparison.check("spread_skill", "pysteps", ours, "spread_skill", np.sqrt(7 / 6 * variance) / rmse)


@pytest.mark.parametrize("aggregation", ["global", "lead-mean"])
def test_twcrps_of_a_single_forecast_is_its_error_after_chaining(aggregation):
    """An ensemble of one member and of equal members has the same score; missing pixels are not counted."""
    observed, forecast = synthetic(0, (3, 2, 24, 24)), synthetic(1, (3, 2, 24, 24))
    observed[0, 0, :3], forecast[1, 1, 5:9] = 255, 255
    protocol = protocol_for("own", THRESHOLDS, aggregation=aggregation, scores=SCORES)
    single = score(observed, forecast, protocol=protocol, per_lead=True)
    keep = (observed != 255) & (forecast != 255)
    for threshold, label in zip(THRESHOLDS, LABELS, strict=True):
        error = np.abs(np.maximum(unit(forecast), threshold / 255) - np.maximum(unit(observed), threshold / 255))
        by_lead = [error[:, lead][keep[:, lead]].mean() for lead in range(2)]
        expected = np.mean(by_lead) if aggregation == "lead-mean" else error[keep].mean()
        assert single[f"twcrps/{label}"] == pytest.approx(expected, abs=EXACT)
        assert single[f"twcrps/{label}/lead/2"] == pytest.approx(by_lead[1], abs=EXACT)
    for members in (1, 3):
        repeated = score(observed, np.stack([forecast] * members, axis=1), protocol=protocol, per_lead=True)
        for key in (f"{name}/{label}" for name in ("twcrps", "twcrps_standard") for label in LABELS):
            assert repeated[key] == pytest.approx(single[key], abs=1e-12)


@pytest.mark.parametrize("kind", ["synthetic", "radar"])
def test_members_that_are_missing_at_some_pixels(kind, comparison):
    """Ignored, they equal the library scores with NaN members; masked, the pixel is removed."""
    library("scores")
    probability = importlib.import_module("scores.probability")
    observed, forecast = ensemble(kind, 4)
    x, y = arrays(observed, forecast)
    hidden = np.random.default_rng(0).random(forecast.shape) < 0.3
    hidden[0, 1:, 0, :2], hidden[0, :, 0, 2] = True, True  # one member only, and none
    hidden[0, 0, 0, :2] = False
    x = x.where(~hidden)
    codes = np.where(hidden, 255, forecast).astype(np.uint8)
    ours = score(observed, codes, protocol=PROTOCOL, per_lead=True, missing_members="ignore")
    name = "missing members ignored"
    for key, method in (("crps", "fair"), ("crps_standard", "ecdf")):
        expected = probability.crps_for_ensemble(x, y, "m", method=method, preserve_dims=["t"]).values
        comparison.check(f"{key}, {name}", "scores", ours, key, expected)
    for threshold, label in zip(THRESHOLDS, LABELS, strict=True):
        for key, method in (("twcrps", "fair"), ("twcrps_standard", "ecdf")):
            expected = probability.tail_tw_crps_for_ensemble(
                x, y, "m", threshold=threshold / 255, tail="upper", method=method, preserve_dims=["t"]
            ).values
            comparison.check(f"{key}, {name}", "scores", ours, f"{key}/{label}", expected)
        # Unlike its fair CRPS, the fair Brier score of the library includes pixels with one member, uncorrected.
        several = x.where(x.notnull().sum("m") > 1)
        for key, fair, some in (("brier", False, x), ("brier_fair", True, several)):
            expected = probability.brier_score_for_ensemble(
                some, y, "m", float(np.float32(threshold / 255)), fair_correction=fair, preserve_dims=["t"]
            )
            comparison.check(f"{key}, {name}", "scores", ours, f"{key}/{label}", expected.values.ravel())
    size = (~hidden).sum(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pixels with one member or none
        variance = np.nanvar(x.values, axis=1, ddof=1)
        error = np.square(np.nanmean(x.values, axis=1) - y.values)
    several = size > 1
    spread = np.sqrt((variance[several] * (1 + 1 / size[several])).mean())
    assert ours["spread_skill"] == pytest.approx(spread / np.sqrt(error[several].mean()), abs=EXACT)
    # Bins and ranks are those of pixels with all members, as with masked pixels
    masked = score(observed, codes, protocol=PROTOCOL, per_lead=True)
    complete = score(observed, forecast, protocol=PROTOCOL, per_lead=True, valid=~hidden.any(1))
    assert all(masked[key] == pytest.approx(value, abs=1e-12, nan_ok=True)
               for key, value in complete.items() if key != "coverage" and not key.startswith("coverage/"))  # fmt: skip
    assert ours["crps_reliability"] == masked["crps_reliability"] and ours["roc_area/40"] == masked["roc_area/40"]


def test_fair_scores_are_independent_of_the_number_of_members():
    """The mean over ensembles from one distribution; the standard forms decrease with the number of members."""
    generator = np.random.default_rng(0)
    observed, members = generator.random((1, 1, 300, 300)), generator.random((1, 16, 1, 300, 300))
    protocol = protocol_for("own", (127.5,), scores=SCORES)
    few, many = (score(observed, members[:, :size], protocol=protocol) for size in (2, 16))
    for fair, standard in (("crps", "crps_standard"), ("twcrps/127.5", "twcrps_standard/127.5"),
                           ("brier_fair/127.5", "brier/127.5")):  # fmt: skip
        assert few[fair] == pytest.approx(many[fair], rel=0.02)
        assert few[standard] > 1.2 * many[standard]


def test_merged_events_and_intervals():
    """Any division of the windows gives the same scores; every score has an interval."""
    observed, forecast = synthetic(0, (4, 2, 16, 16)), synthetic(5, (4, 3, 2, 16, 16))
    events = ["b", "a", "c", "a"]
    whole = count(observed, forecast, protocol=PROTOCOL, events=events)
    parts = [count(observed[[row]], forecast[[row]], protocol=PROTOCOL, events=[events[row]]) for row in (1, 0, 3, 2)]
    merged = merge(parts)
    for name, expected in whole.sums.items():
        assert torch.equal(merged.sums[name], expected), name
    found, intervals = scores(whole), bootstrap(whole, draws=20)
    for key in ("twcrps/40", "twcrps_standard/mean", "brier_fair/90.5", "crps_reliability", "brier_resolution/40"):
        assert intervals[key].value == found[key] and intervals[key].low < intervals[key].high
    for key in ("crps_potential", "crps_resolution", "crps_uncertainty"):
        assert intervals[key].low <= intervals[key].value <= intervals[key].high


def test_an_ensemble_without_a_valid_pixel():
    observed = np.full((1, 1, 4, 4), 255, dtype=np.uint8)
    found = score(observed, np.zeros((1, 3, 1, 4, 4), dtype=np.uint8), protocol=PROTOCOL)
    for key in ("twcrps/40", "crps_reliability", "crps_potential", "crps_uncertainty", "brier_fair/40"):
        assert math.isnan(found[key]), key
