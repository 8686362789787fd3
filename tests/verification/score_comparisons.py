"""Largest differences between deterministic scores and those of pysteps and scores, as a table.

``python -m tests.verification.score_comparisons`` prints the rows of docs/results/compatibility.md, which
``test_score_comparisons.py`` checks.
"""

import contextlib
import importlib
import io
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from simcast_hpc.verification import Pool, protocol_for, score

THRESHOLDS = (40.0, 90.5, 140.0)
REQUESTED = ("ets", "pofd", "peirce", "sedi", "f1", "mean_error", "correlation", "conditional_errors")
PYSTEPS, SCORES = "pysteps", "scores"
# Rows of the table: scores by title, whose largest difference is given.
ROWS: dict[str, tuple[str, ...]] = {
    "CSI": ("csi",), "POD": ("pod",), "FAR": ("far",), "HSS": ("hss",), "Frequency bias": ("frequency_bias",),
    "ETS": ("ets",), "POFD": ("pofd",), "Peirce skill score": ("peirce",), "SEDI": ("sedi",), "F1": ("f1",),
    "MAE": ("mae",), "MSE": ("mse",), "RMSE": ("rmse",), "Mean error": ("mean_error",),
    "Correlation": ("correlation",),
} | {
    f"Mean error, MAE, RMSE where {field} a threshold": tuple(
        f"{name}_{condition}" for name in ("mean_error", "mae", "rmse")
    )
    for condition, field in (
        ("observed", "the observation reaches"), ("forecast", "the forecast reaches"),
        ("either", "either field reaches"), ("both", "both fields reach"),
    )
}  # fmt: skip
_PYSTEPS_TABLE = {
    "csi": "CSI", "pod": "POD", "far": "FAR", "hss": "HSS", "frequency_bias": "BIAS", "ets": "ETS", "pofd": "FA",
    "peirce": "HK", "sedi": "SEDI", "f1": "F1",
}  # fmt: skip
_SCORES_TABLE = {
    "csi": "critical_success_index", "pod": "probability_of_detection", "far": "false_alarm_ratio",
    "hss": "heidke_skill_score", "frequency_bias": "frequency_bias", "ets": "equitable_threat_score",
    "pofd": "probability_of_false_detection", "peirce": "peirce_skill_score",
    "sedi": "symmetric_extremal_dependence_index", "f1": "f1_score",
}  # fmt: skip
_PYSTEPS_ERRORS = {"mean_error": "ME", "mae": "MAE", "mse": "MSE", "rmse": "RMSE", "correlation": "corr_p"}
_SCORES_ERRORS = {
    "mean_error": "mean_error", "mae": "mae", "mse": "mse", "rmse": "rmse", "correlation": "correlation.pearsonr",
}  # fmt: skip
TEST = "tests/verification/test_score_comparisons.py"
Row = tuple[str, str, float]
Pair = tuple[np.ndarray, np.ndarray]


def sample_fields() -> tuple[np.ndarray, np.ndarray]:
    """Return observation and forecast ``[2, 3, 64, 64]``: float64 in [0, 1), correlated, NaN where missing."""
    generator = np.random.default_rng(0)
    coarse = np.kron(generator.random((2, 3, 8, 8)) - 0.4, np.ones((8, 8))).clip(min=0)
    observed = coarse * (0.8 + 0.7 * generator.random((2, 3, 64, 64)))
    forecast = np.roll(observed, 3, axis=-1) * (0.7 + 0.4 * generator.random(observed.shape))
    observed[0, :, :4], forecast[1, 1, :, :5] = np.nan, np.nan
    return observed, forecast


def _module(name: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration file
        return importlib.import_module(name)


def _pairs(observed: np.ndarray, forecast: np.ndarray) -> Iterator[tuple[str, Pair]]:
    """Yield the suffix of a key and the valid pixels that it covers: all lead times, and each of them."""
    yield "", (observed, forecast)
    for lead in range(observed.shape[1]):
        yield f"/lead/{lead + 1}", (observed[:, lead], forecast[:, lead])


def _blocks(field: np.ndarray, missing: np.ndarray, size: int) -> np.ndarray:
    """Return the maxima of blocks over the pixels that are valid in both fields."""
    rows, columns = field.shape[-2] // size, field.shape[-1] // size
    blocks = np.where(missing, -1.0, field).reshape(*field.shape[:2], rows, size, columns, size).max((3, 5))
    return np.where(blocks < 0, np.nan, blocks)


def _table_values(observed: np.ndarray, forecast: np.ndarray, threshold: float, *, strict: bool) -> dict[str, float]:
    """Return table scores of pysteps (``>``) or of scores (``>=``) by our names."""
    if strict:
        function = _module("pysteps.verification.detcatscores").det_cat_fct
        valid = np.isfinite(observed + forecast)
        found = function(forecast[valid], observed[valid], threshold, list(_PYSTEPS_TABLE.values()))
        return {name: float(found[own]) for name, own in _PYSTEPS_TABLE.items()}
    xarray, categorical = _module("xarray"), _module("scores.categorical")
    operators = categorical.ThresholdEventOperator(default_event_threshold=threshold, default_op_fn=operator.ge)
    axes = [f"axis{number}" for number in range(observed.ndim)]
    fields = (xarray.DataArray(field, dims=axes) for field in (forecast, observed))
    table = operators.make_contingency_manager(*fields).transform()
    return {name: float(getattr(table, own)()) for name, own in _SCORES_TABLE.items()}


def _error_values(observed: np.ndarray, forecast: np.ndarray, library: str, **conditions: Any) -> dict[str, float]:
    if library == PYSTEPS:
        function = _module("pysteps.verification.detcontscores").det_cont_fct
        valid = np.isfinite(observed + forecast)
        found = function(forecast[valid], observed[valid], list(_PYSTEPS_ERRORS.values()), **conditions)
        return {name: float(found[own]) for name, own in _PYSTEPS_ERRORS.items()}
    xarray, continuous = _module("xarray"), _module("scores.continuous")
    axes = [f"axis{number}" for number in range(observed.ndim)]
    valid = np.isfinite(observed + forecast)
    fields = [xarray.DataArray(np.where(valid, field, np.nan), dims=axes) for field in (forecast, observed)]
    return {name: float(operator.attrgetter(own)(continuous)(*fields)) for name, own in _SCORES_ERRORS.items()}


def library_values(
    observed: np.ndarray, forecast: np.ndarray, thresholds: tuple[float, ...], *, strict: bool
) -> dict[str, float]:
    """Return the scores of pysteps (``>``) or of scores (``>=``) by our keys, over all lead times."""
    values = _error_values(observed, forecast, PYSTEPS if strict else SCORES)
    for threshold in thresholds:
        table = _table_values(observed, forecast, threshold, strict=strict)
        values |= {f"{name}/{threshold:g}": value for name, value in table.items()}
        for condition, kind in (("either", "single"), ("both", "double")) if strict else ():
            errors = _error_values(observed, forecast, PYSTEPS, conditioning=kind, thr=threshold)
            values |= {f"{name}_{condition}/{threshold:g}": errors[name] for name in ("mean_error", "mae", "rmse")}
    return values


def compare() -> list[Row]:
    """Return the largest absolute difference of each score and library over thresholds, lead times and pools."""
    observed, forecast = sample_fields()
    largest: dict[tuple[str, str], float] = {}

    def note(name: str, library: str, ours: float, theirs: float) -> None:
        if not (np.isfinite(ours) and np.isfinite(theirs)):
            raise ValueError(f"{name} of {library} is not finite: {ours} and {theirs}; choose other fields")
        largest[name, library] = max(largest.get((name, library), 0.0), abs(ours - theirs))

    # 1. Contingency tables, of pixels and of blocks
    missing = ~np.isfinite(observed + forecast)
    pooled = (_blocks(observed, missing, 4), _blocks(forecast, missing, 4))
    for strict, library in ((True, PYSTEPS), (False, SCORES)):
        protocol = protocol_for("own", THRESHOLDS, strict=strict, pools=(Pool(size=4),))
        ours = score(observed, forecast, protocol=protocol, per_lead=True, scores=REQUESTED)
        for suffix, fields in (("", (observed, forecast)), ("_pool4", pooled)):
            for lead, pair in _pairs(*fields):
                for threshold in THRESHOLDS:
                    for name, value in _table_values(*pair, threshold / 255, strict=strict).items():
                        note(name, library, ours[f"{name}{suffix}/{threshold:g}{lead}"], value)
        # 2. Errors of all pixels
        for lead, pair in _pairs(observed, forecast):
            for name, value in _error_values(*pair, library).items():
                note(name, library, ours[f"{name}{lead}"], value)
    # 3. Errors of the pixels where a threshold is reached
    strictly = protocol_for("own", THRESHOLDS, strict=True)
    ours = score(observed, forecast, protocol=strictly, per_lead=True, scores=REQUESTED)
    for lead, pair in _pairs(observed, forecast):
        for threshold in THRESHOLDS:
            reached = [field > threshold / 255 for field in pair]
            for condition, kept in (("observed", reached[0]), ("forecast", reached[1])):
                # Neither library selects pixels by one field, so that the selected pixels are given to scores.
                masked = (np.where(kept, pair[0], np.nan), np.where(kept, pair[1], np.nan))
                for name in ("mean_error", "mae", "rmse"):
                    value = _error_values(*masked, SCORES)[name]
                    note(f"{name}_{condition}", SCORES, ours[f"{name}_{condition}/{threshold:g}{lead}"], value)
            for condition, kind in (("either", "single"), ("both", "double")):
                values = _error_values(*pair, PYSTEPS, conditioning=kind, thr=threshold / 255)
                for name in ("mean_error", "mae", "rmse"):
                    key = f"{name}_{condition}/{threshold:g}{lead}"
                    note(f"{name}_{condition}", PYSTEPS, ours[key], values[name])
    by_row = {
        (title, library): max(largest[name, library] for name in names)
        for title, names in ROWS.items()
        for library in (PYSTEPS, SCORES)
        if (names[0], library) in largest
    }
    return [(title, library, value) for (title, library), value in by_row.items()]


def markdown(rows: list[Row]) -> str:
    """Return one row of Markdown per score, with the libraries and differences, rounded up to a power of ten."""
    lines = []
    for title, names in ROWS.items():
        own = [(library, value) for row, library, value in rows if row == title]
        bounds = ["0" if value == 0 else f"1e{int(np.ceil(np.log10(value)))}" for _, value in own]
        keys = ", ".join(f"`{name}`" for name in names)
        libraries = ", ".join(library for library, _ in own)
        lines.append(f"| {title}: {keys} | {libraries} | {', '.join(bounds)} | `{TEST}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(compare()))
