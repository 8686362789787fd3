"""The table of scores that an evaluation computed on request (``simcast evaluate --scores``), with RMSE."""

from simcast_hpc.verification.optional_scores import OPTIONAL_SCORES

from .findings_text import with_unit
from .pipeline_results import ScoreFile
from .score_tables import Group, Row, Table, bounded, places

_ERRORS = {"mean_error": "Mean error", "mae": "MAE", "rmse": "RMSE"}


def additional_keys(scores: ScoreFile, protocol: str) -> dict[str, str]:
    """Return the columns of the table: keys with their titles; empty if no score was requested.

    Conditional errors are those where the highest threshold of the means was observed; the CSV file has all of them.
    """
    requested = scores.protocols[protocol].additional_scores
    titles = {"rmse": "RMSE"} if requested else {}
    for name in requested:
        title = OPTIONAL_SCORES[name].title if name in OPTIONAL_SCORES else name
        titles |= {name: title, f"{name}/mean": f"Mean {title}"}
    if "conditional_errors" in requested and scores.supported_thresholds:
        label = scores.supported_thresholds[-1]
        where = f"observed ≥ {with_unit(label, scores.unit)}"
        titles |= {f"{name}_observed/{label}": f"{title}, {where}" for name, title in _ERRORS.items()}
    by_entry = [scores.scores[name][protocol] for name in scores.names]
    return {key: title for key, title in titles.items() if any(one.get(key) is not None for one in by_entry)}


def additional_table(scores: ScoreFile, protocol: str) -> Table | None:
    """Return the requested scores with their intervals, one row per entry; None if no score was requested."""
    keys = additional_keys(scores, protocol)
    if not keys:
        return None
    rows = tuple(
        Row(name, tuple(bounded(scores, name, protocol, key, places=places(key)) for key in keys))
        for name in scores.names
    )
    return Table(
        caption=f"Additional scores under protocol {protocol}, hash {scores.protocols[protocol].hash}. Errors are of "
        "the [0, 1] field. In brackets 95 % intervals over events.",
        columns=("Forecast", *keys.values()),
        groups=(Group("", rows),),
    )
