"""Write docs/reference/protocols.md from the named protocols: ``python -m docs.generate.protocols_page``."""

import dataclasses
from typing import Any

from docs.generate.markdown_page import REFERENCE, table, write
from simcast_hpc.verification.protocols import Pool, ScoreProtocol
from simcast_hpc.verification.published_protocols import PROTOCOLS

PAGE = REFERENCE / "protocols.md"
# Fields with a column of their own; the table of further rules has the others.
_COLUMNS = (
    "name",
    "thresholds",
    "labels",
    "unit",
    "missing",
    "missing_rule",
    "aggregation",
    "pool_aggregation",
    "source",
)
_SCORES = ("pools", "fss_km", "ssim", "spectrum", "oddities", "scores")
_INTRODUCTION = """\
# Protocols

<!-- Written by `make reference` from `simcast_hpc/verification/published_protocols.py`; do not edit. -->

A verification protocol defines how scores are computed from observations and forecasts: thresholds, comparison,
missing pixels, aggregation. Two results are comparable only if their protocols have the same hash. The hash covers
every rule that changes a score; it excludes the name, the source and the choice of additional scores, so protocols with
different names can have the same hash. [Scores](scores.md) defines the scores and their keys.

`simcast evaluate --protocol NAME` accepts the names of the tables below. It also accepts `global`, `lead-mean`,
`frame-mean` and `sample-mean`: these use the thresholds of the data set, its unit, and the default rules
(see [Fields of a protocol](#fields-of-a-protocol)).

## Definitions

An event is a pixel at or above the threshold, unless the rule `strict` is listed.

{protocols}

- **Missing pixels**: *excluded* ignores pixels that are missing in the observation or in the forecast; *non-event*
  counts them as correct negatives; *none* means that every pixel value is valid.
- **Aggregation**: *global* adds the counts of all windows and lead times. *lead-mean* adds the counts over windows,
  computes the score of each lead time and averages these scores. *frame-mean* averages the scores of single frames, and
  *sample-mean* those of single windows; undefined scores are excluded from the average.
- A name with the suffix `-released` reproduces a published evaluator, including its deviations. Use it only to compare
  with published tables. The measured differences are in
  [Comparison with published evaluators](scores.md#comparison-with-published-evaluators).

## Further rules

Rules and additional scores that differ from the defaults of `ScoreProtocol`.

{rules}

{fields}
"""


def page() -> str:
    """Return the text of the page."""
    protocols = table(
        ("Protocol", "Hash", "Thresholds", "Missing pixels", "Aggregation", "Source"),
        [
            [f"`{one.name}`", f"`{one.hash}`", _thresholds(one), _missing(one), _aggregation(one), one.source]
            for one in PROTOCOLS.values()
        ],
    )
    rules = table(
        ("Protocol", "Rules", "Additional scores"),
        [[f"`{one.name}`", _changes(one, rules=True), _changes(one, rules=False)] for one in PROTOCOLS.values()],
    )
    return _INTRODUCTION.format(protocols=protocols, rules=rules, fields=_fields())


def _thresholds(protocol: ScoreProtocol) -> str:
    unit = "encoded value" if protocol.unit == "code" else protocol.unit
    return f"{', '.join(protocol.labels)} {unit}"


def _missing(protocol: ScoreProtocol) -> str:
    return "none" if protocol.missing is None else protocol.missing_rule


def _aggregation(protocol: ScoreProtocol) -> str:
    pooled = protocol.pool_aggregation
    return protocol.aggregation + (f"; pools: {pooled}" if pooled else "")


def _changes(protocol: ScoreProtocol, *, rules: bool) -> str:
    """Return the fields that differ from their defaults, either the rules or the additional scores."""
    changes = []
    for field in dataclasses.fields(protocol):
        value = getattr(protocol, field.name)
        if field.name in _COLUMNS or value == field.default or (field.name in _SCORES) == rules:
            continue
        changes.append(f"`{field.name}={_value(value)}`")
    return ", ".join(changes)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    return value.key if isinstance(value, Pool) else f"{value:g}" if isinstance(value, float) else str(value)


def _fields() -> str:
    """Return the documented fields of a protocol, from the docstring of the class."""
    text = (ScoreProtocol.__doc__ or "").partition("Attributes:")[2]
    rows: list[list[str]] = []
    for line in filter(str.strip, text.splitlines()):
        name, colon, description = line.strip().partition(": ")
        if colon and name.isidentifier() and line.startswith(" " * 8) and not line.startswith(" " * 9):
            rows.append([f"`{name}`", description])
        else:
            rows[-1][1] += f" {line.strip()}"
    lines = [[name, text.replace("``", "`")] for name, text in rows]
    return "## Fields of a protocol\n\n" + table(("Field of `ScoreProtocol`", "Meaning"), lines)


if __name__ == "__main__":
    write(PAGE, page())
