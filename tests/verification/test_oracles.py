"""Compared with pysteps and scores to 1e-9, on synthetic fields and on real radar."""

import importlib
import operator

import numpy as np
import pytest
import torch

from simcast_hpc.verification import (
    Pool,
    count,
    power_spectra,
    protocol_for,
    radial_power,
    rank_histogram,
    reliability,
    roc_area,
    score,
    scores,
    ssim,
)
from tests.verification.compared_scores import EXACT, library, radar, synthetic

THRESHOLDS = (40.0, 90.5, 140.0)


@pytest.fixture(params=["synthetic", "radar"])
def fields(request):
    """Observation and forecast, uint8 [N, T, H, W] without missing pixels."""
    if request.param == "radar":
        return radar()
    return synthetic(0, (2, 3, 64, 64)), synthetic(1, (2, 3, 64, 64))


@pytest.fixture(params=["synthetic", "radar"])
def ensembles(request):
    """Observation [N, T, H, W] and five members [N, M, T, H, W] with ties, integers / 255."""
    observed = synthetic(0, (2, 2, 32, 32)) if request.param == "synthetic" else radar()[0][:2, :2, :64, :64]
    generator = np.random.default_rng(3)
    noise = generator.integers(-30, 31, (len(observed), 5, *observed.shape[1:]))
    members = np.clip(observed[:, None].astype(int) + noise, 0, 254)
    return observed, members.astype(np.uint8)


@pytest.mark.parametrize("strict", [True, False])
def test_tables_and_their_scores(fields, strict):
    observed, forecast = fields
    ours = score(observed, forecast, protocol=protocol_for("own", THRESHOLDS, strict=strict))
    for threshold in THRESHOLDS:
        if strict:
            det = library("pysteps.verification.detcatscores").det_cat_fct
            reference = det(
                forecast.astype(float), observed.astype(float), threshold, ["CSI", "POD", "FAR", "HSS", "BIAS"]
            )
            expected = [reference[name] for name in ("CSI", "POD", "FAR", "HSS", "BIAS")]
        else:
            xarray, manager = library("xarray"), library("scores.categorical").ThresholdEventOperator
            events = manager(default_event_threshold=threshold, default_op_fn=operator.ge)
            axes = ("n", "t", "y", "x")
            table = events.make_contingency_manager(
                xarray.DataArray(forecast.astype(float), dims=axes), xarray.DataArray(observed.astype(float), dims=axes)
            ).transform()
            expected = [
                float(getattr(table, name)())
                for name in (
                    "critical_success_index",
                    "probability_of_detection",
                    "false_alarm_ratio",
                    "heidke_skill_score",
                    "frequency_bias",
                )
            ]
        for name, value in zip(("csi", "pod", "far", "hss", "frequency_bias"), expected, strict=True):
            assert ours[f"{name}/{threshold:g}"] == pytest.approx(value, abs=EXACT), (name, threshold)


def test_ranks_reliability_and_roc(ensembles):
    observed, members = ensembles
    threshold = 90.5
    statistics = count(observed, members, protocol=protocol_for("own", (threshold,)))
    probability = (members >= threshold).mean(1)
    library("pysteps")
    reference = importlib.import_module("pysteps.verification.probscores")
    roc = reference.ROC_curve_init(threshold, 6)
    # A probability of 3/5 is below the bin edge 0.6 of pysteps by a rounding error.
    reference.ROC_curve_accum(roc, probability + 1e-9, observed.astype(float))
    _, _, area = reference.ROC_curve_compute(roc, compute_area=True)
    assert scores(statistics)[f"roc_area/{threshold:g}"] == pytest.approx(area, abs=EXACT)
    diagram = reliability(statistics)
    for row, value in enumerate(diagram["probability"].tolist()):
        here = np.isclose(probability, value)
        assert int(diagram["forecasts"][0, row]) == here.sum()
        assert diagram["observed_frequency"][0, row] == pytest.approx((observed[here] >= threshold).mean(), nan_ok=True)
    brier = ((probability - (observed >= threshold)) ** 2).mean()
    assert scores(statistics)[f"brier/{threshold:g}"] == pytest.approx(brier, abs=EXACT)
    ranks = rank_histogram(statistics).sum(0).numpy()
    assert ranks.sum() == observed.size
    # Ties are broken at random within the ranks they span: the bounds are all low and all high.
    below, upto = (members < observed[:, None]).sum(1), (members <= observed[:, None]).sum(1)
    lowest = np.bincount(below.ravel(), minlength=6).cumsum()
    highest = np.bincount(upto.ravel(), minlength=6).cumsum()
    assert (highest <= ranks.cumsum()).all() and (ranks.cumsum() <= lowest).all()


def test_ranks_without_ties_equal_pysteps():
    generator = np.random.default_rng(0)
    observed, members = generator.random((1, 2, 20, 20)), generator.random((1, 7, 2, 20, 20))
    rankhist = library("pysteps.verification.ensscores").rankhist
    statistics = count(observed, members, protocol=protocol_for("own", THRESHOLDS))
    expected = rankhist(members[0].reshape(7, -1), observed.reshape(-1), normalize=False)
    assert np.array_equal(rank_histogram(statistics).sum(0).numpy(), expected)


def test_power_spectra(fields):
    observed, forecast = fields
    library("pysteps")
    rapsd = importlib.import_module("pysteps.utils.spectral").rapsd
    field = observed[0, 0].astype(float) / 255
    np.testing.assert_allclose(
        radial_power(torch.from_numpy(field)).numpy(), rapsd(field, fft_method=np.fft), rtol=EXACT
    )
    statistics = count(observed, forecast, protocol=protocol_for("own", THRESHOLDS, spectrum=True))
    mean = np.mean([rapsd(one[0] / np.float32(255), fft_method=np.fft) for one in forecast], axis=0)
    np.testing.assert_allclose(power_spectra(statistics)["forecast"][0].numpy(), mean, rtol=1e-6)


@pytest.mark.parametrize("grid", [(48, 33), (7, 40), (5, 5)], ids=str)
def test_power_of_a_rectangular_field(grid):
    """Compared with a direct sum over the rings, frequency by frequency."""
    field = np.random.default_rng(0).random(grid)
    power, longest = np.abs(np.fft.fft2(field)) ** 2 / field.size, max(grid)
    sums, counts = np.zeros(longest), np.zeros(longest)
    for row, up in enumerate(np.fft.fftfreq(grid[0], d=1 / longest)):
        for column, across in enumerate(np.fft.fftfreq(grid[1], d=1 / longest)):
            ring = round(float(np.hypot(up, across)))
            sums[ring] += power[row, column]
            counts[ring] += 1
    half = (longest + 1) // 2
    np.testing.assert_allclose(radial_power(torch.from_numpy(field)).numpy(), sums[:half] / counts[:half], rtol=EXACT)


def test_power_of_members_and_of_their_mean(ensembles):
    """The mean of the members has less power than each of them; both are compared with pysteps."""
    observed, members = ensembles
    library("pysteps")
    rapsd = importlib.import_module("pysteps.utils.spectral").rapsd
    unit = members[:, :, 0].astype(float) / 255
    statistics = count(observed, members, protocol=protocol_for("own", THRESHOLDS, spectrum=True))
    found = power_spectra(statistics)
    single = np.mean([rapsd(member, fft_method=np.fft) for window in unit for member in window], axis=0)
    averaged = np.mean([rapsd(window.mean(0), fft_method=np.fft) for window in unit], axis=0)
    np.testing.assert_allclose(found["members"][0].numpy(), single, rtol=1e-5)
    np.testing.assert_allclose(found["forecast"][0].numpy(), averaged, rtol=1e-5)
    assert (found["members"][0, 5:] > found["forecast"][0, 5:]).all()
    each = count(observed, members, protocol=protocol_for("own", THRESHOLDS, spectrum=True, members="each"))
    assert set(power_spectra(each)) == {"observed", "forecast"}
    np.testing.assert_allclose(power_spectra(each)["forecast"][0].numpy(), single, rtol=1e-5)


@pytest.mark.parametrize("pool", [Pool(size=4), Pool(size=4, kind="avg"), Pool(size=5, overlapping=True)])
def test_pools_equal_scipy(fields, pool):
    ndimage = library("scipy.ndimage")
    observed, forecast = (field[..., :62, :61] for field in fields)  # a remainder in both directions
    protocol = protocol_for("own", THRESHOLDS, pools=(pool,))
    ours = score(observed, forecast, protocol=protocol)
    blocks = []
    for field in (observed, forecast):
        if pool.overlapping:
            blocks.append(ndimage.maximum_filter(field, size=(1, 1, 5, 5), mode="constant", cval=0).astype(float))
        else:
            cut = field[..., :60, :60].reshape(*field.shape[:2], 15, 4, 15, 4)
            blocks.append(cut.max(axis=(3, 5)) if pool.kind == "max" else cut.mean(axis=(3, 5)))
    plain = score(*(block[None, 0] / 255.0 if pool.kind == "avg" else block.astype(np.uint8) for block in blocks),
                  protocol=protocol_for("own", THRESHOLDS)) if pool.kind == "max" else None  # fmt: skip
    for threshold in THRESHOLDS:
        truth, predicted = (block >= threshold for block in blocks)
        union = (truth | predicted).sum()
        expected = (truth & predicted).sum() / union if union else float("nan")
        assert ours[f"csi_{pool.key}/{threshold:g}"] == pytest.approx(expected, abs=EXACT, nan_ok=True)
        if plain is not None:
            assert ours[f"hss_{pool.key}/{threshold:g}"] == pytest.approx(
                plain[f"hss/{threshold:g}"], abs=EXACT, nan_ok=True
            )


def test_ssim_equals_the_published_formula():
    """Compared with a direct sum over one window (Wang et al. 2004, equations 13 to 17)."""
    generator = np.random.default_rng(0)
    x, y = generator.random((11, 11)), generator.random((11, 11))
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    assert ssim(torch.from_numpy(x)[None], torch.from_numpy(y)[None]).item() == pytest.approx(expected, abs=1e-12)


def test_roc_area_of_a_perfect_ensemble_is_one():
    events = torch.tensor([0, 0, 10])
    assert roc_area(events + torch.tensor([90, 0, 0]), events).item() == 1.0
