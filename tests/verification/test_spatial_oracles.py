"""FSS and SAL compared with pysteps, scores and SciPy to 1e-9."""

import importlib
import importlib.util
import math

import numpy as np
import pytest

from simcast_hpc.verification import bootstrap, count, merge, protocol_for, sal, score, scores
from simcast_hpc.verification.structure_amplitude_location import label_objects
from tests.verification.compared_scores import EXACT, Comparison, library, radar, synthetic

THRESHOLDS = (40.0, 90.5, 140.0)
SAL = ("sal", "sal_thresholds")


@pytest.fixture(scope="module")
def comparison():
    table = Comparison("Spatial scores")
    yield table
    print(table)
    table.check_page()


@pytest.fixture(params=["synthetic", "radar"])
def fields(request):
    """Observation and forecast, uint8 [N, T, H, W] without missing pixels."""
    if request.param == "radar":
        return radar()
    return synthetic(0, (2, 3, 64, 64)), synthetic(1, (2, 3, 64, 64))


@pytest.mark.parametrize("window", [1, 4, 5, 16])
def test_fss(fields, window, comparison):
    observed, forecast = (field[:1, :1] for field in fields)
    protocol = protocol_for("own", THRESHOLDS, fss_km=(float(window),), scores=("fss_inside",))
    ours = score(observed, forecast, protocol=protocol)
    fss = library("pysteps.verification.spatialscores").fss
    single = library("scores.spatial").fss_2d_single_field
    truth, predicted = observed[0, 0].astype(float), forecast[0, 0].astype(float)
    for threshold in THRESHOLDS:
        # Here pysteps takes values at or above the threshold, unlike in its tables.
        expected = fss(predicted.copy(), truth.copy(), threshold, window)
        comparison.check("fss", "pysteps", ours, f"fss/{window}/{threshold:g}", [expected])
        if not math.isnan(ours[f"fss_inside/{window}/{threshold:g}"]):  # scores returns 0 without any event
            options = {"window_size": (window, window), "threshold_operator": np.greater_equal}
            inside = float(single(predicted, truth, event_threshold=threshold, **options))
            comparison.check("fss_inside", "scores", ours, f"fss_inside/{window}/{threshold:g}", [inside])
    if window == 5:
        # A margin without events makes windows beyond the frame complete ones.
        options = {"event_threshold": 90.5, "window_size": (5, 5), "threshold_operator": np.greater_equal}
        padded = float(single(np.pad(predicted, 2), np.pad(truth, 2), **options))
        comparison.check("fss", "scores, zero_padding=False, fields padded by 2 pixels", ours, "fss/5/90.5", [padded])
        own = float(single(predicted, truth, zero_padding=True, **options))
        comparison.note("fss", "scores, zero_padding=True", f"{own - ours['fss/5/90.5']:+.1e}")


def test_windows_with_missing_pixels_are_not_inside():
    """Compared with a sum over each window."""
    observed, forecast = synthetic(0, (1, 2, 24, 32)), synthetic(1, (1, 2, 24, 32))
    observed[0, 0, 3:5, 20], forecast[0, 1, 15, :4] = 255, 255
    for size in (4, 5, 24, 30):
        protocol = protocol_for("own", (90.0,), fss_km=(float(size),), scores=("fss_inside",))
        ours = score(observed, forecast, protocol=protocol, per_lead=True)
        numerator, denominator = np.zeros(2), np.zeros(2)
        for lead, row, column in np.ndindex(2, max(0, 25 - size), max(0, 33 - size)):
            cut = np.s_[0, lead, row : row + size, column : column + size]
            y, x = observed[cut], forecast[cut]
            if not ((y == 255) | (x == 255)).any():
                seen, predicted = (y >= 90).sum(), (x >= 90).sum()
                numerator[lead] += (seen - predicted) ** 2
                denominator[lead] += seen**2 + predicted**2
        for lead in range(2):
            expected = 1 - numerator[lead] / denominator[lead] if denominator[lead] else math.nan
            assert ours[f"fss_inside/{size}/90/lead/{lead + 1}"] == pytest.approx(expected, abs=EXACT, nan_ok=True)
        total = 1 - numerator.sum() / denominator.sum() if denominator.sum() else math.nan
        assert ours[f"fss_inside/{size}/90"] == pytest.approx(total, abs=EXACT, nan_ok=True)


def blobs(seed, count=5, size=96):
    """Return showers with 50 pixels or more, of which pysteps omits none, at least 10 pixels apart; 0 between them."""
    generator = np.random.default_rng(seed)
    cells = generator.permutation(9)[:count]
    rows, columns = np.mgrid[:size, :size]
    field = np.zeros((size, size))
    for cell in cells:
        row, column = 16 + 32 * (cell // 3), 16 + 32 * (cell % 3)
        distance = ((rows - row) / generator.uniform(6, 10)) ** 2 + ((columns - column) / generator.uniform(6, 10)) ** 2
        field += np.where(distance < 1, generator.uniform(1, 8) * (1.2 - distance), 0)
    return field


def independent_sal(observed, predicted, masks):
    """Return S, A and L by SciPy, object by object (Wernli et al. 2008, eqs. 1 to 9)."""
    ndimage = library("scipy.ndimage")
    volumes, scatters, centers = [], [], []
    for field, mask in zip((observed, predicted), masks, strict=True):
        labels, number = ndimage.label(mask)
        center = np.array(ndimage.center_of_mass(field))
        totals = [field[labels == n].sum() for n in range(1, number + 1)]
        parts = [total / field[labels == n].max() for n, total in enumerate(totals, start=1)]
        distances = [math.dist(ndimage.center_of_mass(field, labels, n), center) for n in range(1, number + 1)]
        volumes.append(np.dot(totals, parts) / sum(totals) if totals else 0.0)
        scatters.append(np.dot(totals, distances) / sum(totals) if totals else math.nan)
        centers.append(center)
    diagonal = math.hypot(*observed.shape)
    structure = (volumes[1] - volumes[0]) / (0.5 * (volumes[1] + volumes[0])) if sum(volumes) else math.nan
    location = math.dist(*centers) / diagonal + 2 * abs(scatters[1] - scatters[0]) / diagonal
    amplitude = (predicted.mean() - observed.mean()) / (0.5 * (predicted.mean() + observed.mean()))
    return structure, amplitude, location


# S, A and L of pysteps 1.21.5 with scikit-image 0.26.0 for blobs(seed) and blobs(seed + 50, 4), thr_factor=1/15
RECORDED_PYSTEPS = (
    (-0.15219309567156206, -0.049874172175302524, 0.07184780787404926),
    (0.08214256003545964, 0.1285107856398047, 0.08515364378709046),
    (0.02847118916084367, -0.39294012713671933, 0.40727518237878657),
    (0.019855950913515524, 0.13784225379451742, 0.3602153549338649),
)


@pytest.mark.parametrize("seed", range(4))
def test_sal_equals_pysteps(seed, comparison):
    observed, predicted = blobs(seed), blobs(seed + 50, 4)
    found = dict(zip("SAL", sal(observed, predicted), strict=True))
    recorded = RECORDED_PYSTEPS[seed]
    if importlib.util.find_spec("skimage") and importlib.util.find_spec("pandas"):
        live = library("pysteps.verification.salscores").sal(predicted, observed, thr_factor=1 / 15)
        assert live == pytest.approx(recorded, abs=EXACT)
    for name, value in zip("SAL", recorded, strict=True):
        comparison.check(f"{name}", "pysteps, recorded", found, name, [value])


def test_sal_of_radar(comparison):
    """Every component, threshold and lead time, with the mean, the median and the mean of signed values."""
    observed, forecast = (field[..., :64, :64] for field in radar())
    protocol = protocol_for("own", THRESHOLDS, scores=SAL)
    ours = score(observed, forecast, protocol=protocol, per_lead=True)
    y, x = ((field.astype(np.float32) / np.float32(255)).astype(float) for field in (observed, forecast))
    for key, threshold in (("", None), *((f"/{threshold:g}", threshold) for threshold in THRESHOLDS)):
        values = np.full((*observed.shape[:2], 3), math.nan)
        for n, t in np.ndindex(*observed.shape[:2]):
            pair, codes = (y[n, t], x[n, t]), (observed[n, t], forecast[n, t])
            if not all(field.any() for field in pair):
                continue
            if threshold is None:
                masks = [field >= np.quantile(field[field > 0], 0.95) / 15 for field in pair]
            else:
                masks = [code >= threshold for code in codes]
            values[n, t] = independent_sal(*pair, masks)
        assert np.isfinite(values).any()
        for column, name in enumerate(("sal_structure", "sal_amplitude", "sal_location")):
            if key and column == 1:
                continue
            part = values[..., column]
            expected = {
                "": [np.nanmean(np.abs(one)) if np.isfinite(one).any() else math.nan for one in part.T],
                "_signed": [np.nanmean(one) if np.isfinite(one).any() else math.nan for one in part.T],
                "_median": [median(np.abs(one)) for one in part.T],
            }
            if column == 2:
                del expected["_signed"]
            for suffix, by_lead in expected.items():
                comparison.check(f"{name}{suffix}", "SciPy", ours, f"{name}{suffix}{key}", by_lead)
            assert ours[f"{name}_median{key}"] == pytest.approx(median(np.abs(part)), nan_ok=True)


def median(values):
    """Return the median of magnitudes rounded to 0.01."""
    defined = values[np.isfinite(values)]
    return np.median(np.rint(defined * 100)) / 100 if defined.size else math.nan


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (23, 31)], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.3, 0.6, 0.95, 1.0])
def test_objects_equal_those_of_scipy(shape, density):
    mask = np.random.default_rng(0).random(shape) < density
    labels, number = library("scipy.ndimage").label(mask)
    found = label_objects(mask)
    pairs = set(zip(labels[mask].tolist(), found.tolist(), strict=True))
    assert len(pairs) == len(set(found.tolist())) == number


def test_a_spiral_is_one_object():
    """The longest chain of runs that are joined at their ends."""
    mask = np.zeros((41, 41), dtype=bool)
    mask[::4], mask[2::4, 0], mask[2::4, -1] = True, True, True
    mask[1::4, 0], mask[3::4, -1] = True, True
    _, number = library("scipy.ndimage").label(mask)
    assert len(set(label_objects(mask).tolist())) == number


def test_sal_without_objects_and_with_missing_pixels():
    dry, wet = np.zeros((8, 8)), np.zeros((8, 8))
    wet[2:4, 2:5] = 1.0
    assert sal(wet, wet) == (0.0, 0.0, 0.0)
    structure, amplitude, location = sal(dry, wet)
    assert (structure, amplitude) == (2.0, 2.0) and math.isnan(location)
    assert sal(wet, dry)[:2] == (-2.0, -2.0)
    assert all(math.isnan(value) for value in sal(dry, dry))
    assert all(math.isnan(value) for value in sal(wet, np.full((8, 8), np.nan)))
    # A pixel that is missing in the observation is excluded from the forecast too; negative values are 0.
    other, holed = wet.copy(), wet.copy()
    other[6, 6], holed[6, 6], other[0, 0] = 5.0, np.nan, -1.0
    assert sal(holed, other) == (0.0, 0.0, 0.0)
    high = sal(wet, wet * 3, threshold=2.0)
    assert high[0] == 2.0 and high[1] == 1.0 and math.isnan(high[2])


def test_sal_of_members_is_their_mean_and_merges_exactly():
    observed, members = synthetic(0, (3, 2, 24, 24)), synthetic(3, (3, 4, 2, 24, 24))
    members[1, 2, 0, :4] = 255
    protocol = protocol_for("own", THRESHOLDS, scores=SAL)
    events = ["b", "a", "b"]
    whole = count(observed, members, protocol=protocol, events=events)
    merged = merge([count(observed[[n]], members[[n]], protocol=protocol, events=[events[n]]) for n in (2, 1, 0)])
    for name, expected in whole.sums.items():
        if name.startswith("sal"):
            np.testing.assert_allclose(merged.sums[name].numpy(), expected.numpy(), rtol=1e-14)
    found, intervals = scores(whole), bootstrap(whole, draws=20)
    for key in ("sal_structure", "sal_location_median", "sal_structure/40", "sal_amplitude_signed"):
        assert intervals[key].value == pytest.approx(found[key], abs=1e-14), key
        assert intervals[key].low <= found[key] <= intervals[key].high
    # Every member as a forecast, except that a pixel missing in one member is missing in all
    valid = (members != 255).all(1)
    single = [scores(count(observed, members[:, m], protocol=protocol, valid=valid)) for m in range(4)]
    for key in ("sal_structure", "sal_amplitude", "sal_location", "sal_structure/90.5"):
        assert found[key] == pytest.approx(np.mean([one[key] for one in single]), abs=1e-12)
    ignored = score(observed, members, protocol=protocol, missing_members="ignore")
    assert ignored["sal_structure"] != found["sal_structure"]


def test_fields_that_sal_cannot_score_are_named():
    rain = np.random.default_rng(0).gamma(0.5, 2.0, (12, 15))
    gaps = np.ma.masked_greater(rain, 5)
    assert sal(gaps, rain) == sal(gaps.filled(np.nan), rain)
    for fields, message in (
        ((rain, rain[:5]), r"two fields of one shape \[H, W\]"),
        ((rain[None], rain[None]), r"\[H, W\]"),
        ((rain[:0], rain[:0]), r"\[H, W\]"),
        ((np.where(rain > 3, np.inf, rain), rain), "plus infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            sal(*fields)
    for threshold in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="must be a finite number above 0"):
            sal(rain, rain, threshold=threshold)
