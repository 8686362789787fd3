"""Tables of the evidence page, with at most eight columns each."""

from collections.abc import Iterable, Sequence

from benchmarks.evidence.block_sums import protocol_of
from benchmarks.evidence.study_text import wrapped
from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.verification.bootstrap import Interval

from .arms import BASELINES, Arm, arms_of
from .claims import (
    FEWEST_SEEDS,
    HOLDS,
    IN_FULL,
    NOT_TESTABLE,
    PARTLY,
    REVERSED,
    UNDECIDED,
    Finding,
    Verdict,
    in_words,
    paper_value,
)
from .figure_style import STEP_MINUTES
from .intervals import LABELS, Bootstrap
from .study import Study
from .study_claims import LATER_ORIGINS, STATED_LATER
from .summary_text import bounds, headline_findings

ORIGINS = {
    "paper": "Claims of the paper",
    "control": "Controls",
    "hybrid": "Claims on networks that start from extrapolation",
    "few data": "Claims on few training events",
}

HEAVY = LABELS[-2:]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary_table(verdicts: Sequence[Verdict], study: Study) -> str:
    """Return the main comparisons: claim, comparison, difference, interval, seeds, verdict."""
    head = ("claim", "comparison", "difference", "95 % interval", "seeds", "verdict")
    rows = [
        (text, finding.comparison.label, *_numbers(finding)[:2], f"{finding.interval.seeds}", in_words(finding))
        for text, finding in headline_findings(verdicts, study)
    ]
    return markdown_table(head, rows)


def _numbers(finding: Finding) -> tuple[str, str, str]:
    """Return the cells difference, interval and minimum detectable difference, which is half the interval's width."""
    interval = finding.interval
    detectable = f"{interval.half_width:.4f}" if interval.has_bounds else ""
    return f"{interval.value:+.4f}", bounds(interval), detectable


def claims_tables(verdicts: Sequence[Verdict]) -> str:
    """Return the verdict on every claim, then all comparisons."""
    statements = markdown_table(
        ("claim", "origin", "statement", "verdict"),
        ((v.claim.key, v.claim.origin, v.claim.statement, _overall(v)) for v in verdicts),
    )
    return "\n\n".join(
        [
            statements,
            wrapped(
                f"*Verdict.* A difference is {HOLDS} if its interval is on the claimed side of zero, {REVERSED} if it "
                f"is on the other side, else not significant. A claim is {HOLDS} or {REVERSED} if all its differences "
                f"are, {UNDECIDED} if none is significant, {IN_FULL} if at least one is {REVERSED}, else {PARTLY}. "
                "*Beats* means a higher CSI-M. "
                f"A claim that a student from scratch is better than a direct model, its teacher or another student is "
                f"{NOT_TESTABLE} if the oracle, a student of a perfect teacher, does not have a significantly better "
                "score (that of the claim) than the direct model: a perfect teacher gives no significant gain here, so "
                "a gain through better pseudo-frames is not expected. The verdict of the intervals is in brackets. "
                "Where no oracle was trained (hybrid networks), only the intervals decide. This rule was introduced "
                "after the first results. "
                f"Fewer than {FEWEST_SEEDS} seeds give no verdict. Intervals are not corrected for multiple "
                "comparisons: of twenty differences that are truly zero, one is expected to be significant. These "
                "claims were formulated or changed after the first results, so their evidence is weaker: "
                f"{', '.join(STATED_LATER)}, and all with origin {' or '.join(LATER_ORIGINS)}. For the latter, "
                "prototypes with one or two seeds had been measured before on a part of the test events."
            ),
            "### All comparisons",
            wrapped(
                "In brackets: the sign that the claim expects. *Minimum detectable difference*: half the width of the "
                "interval. A smaller true difference would not be significant here. *Paper*: the difference within the "
                "paper's own tables on SEVIR, from one run each, and whether our interval contains it. Lead times are "
                "counted in frames of 5 minutes. `T_s` is the number of frames that the teacher forecasts per call."
            ),
            *(
                part
                for origin, title in ORIGINS.items()
                if (own := [v for v in verdicts if v.claim.origin == origin])
                for part in (f"{title}:", _comparisons(own, with_paper=origin == "paper"))
            ),
        ]
    )


def _overall(verdict: Verdict) -> str:
    """Return the verdict on a claim, and that of the intervals if it is another."""
    intervals = f" (intervals: {verdict.by_intervals})" if verdict.verdict == NOT_TESTABLE else ""
    return f"*{verdict.verdict}*{intervals}"


def _comparisons(verdicts: Sequence[Verdict], *, with_paper: bool) -> str:
    rows = []
    for verdict in verdicts:
        for number, finding in enumerate(verdict.findings):
            key = f"**{verdict.claim.key}**" if number == 0 else ""
            label = f"{finding.comparison.label} ({'> 0' if finding.comparison.sign > 0 else '< 0'})"
            paper = [paper_value(finding)] if with_paper else []
            rows.append([key, label, *_numbers(finding), f"{finding.interval.seeds}", *paper, in_words(finding)])
    head = ["claim", "comparison", "difference", "95 % interval", "minimum detectable difference", "seeds"]
    return markdown_table([*head, *(["paper"] if with_paper else []), "verdict"], rows)


def differences_by_lead(bootstrap: Bootstrap, pairs: Iterable[tuple[str, str]]) -> str:
    """Return the paired differences of CSI-M by lead time of the pairs with results; empty if there are none."""
    study, trained = bootstrap.evidence.study, bootstrap.evidence.by_arm
    steps = {arm.name: f", {arm.steps} steps" for arm in arms_of(study)}
    rows = []
    for first, second in pairs:
        if first in trained and second in trained:
            intervals = bootstrap.score(((first, 1.0), (second, -1.0)), "csi/mean", by_lead=True)
            cells = (f"{interval.value:+.4f} {bounds(interval)}" for interval in intervals)
            rows.append((f"{first}{steps[first]}, minus {second}{steps.get(second, '')}", *cells))
    times = [f"{STEP_MINUTES * lead} min" for lead in range(1, study.sequence.frames_out + 1)]
    return markdown_table(("difference", *times), rows) if rows else ""


def arms_tables(evidence: Evidence, bootstrap: Bootstrap) -> str:
    """Return the arms' settings and scores: overall, and at the two highest thresholds."""
    protocol, thresholds = protocol_of(evidence.study), evidence.study.scoring.fss_thresholds
    middle = thresholds[len(thresholds) // 2]
    columns = {"CSI-M": ("csi/mean", 1.0), f"FSS-{middle}": (f"fss/{middle}", 1.0), "CRPS x 100": ("mae", 100.0),
               "MSE x 1000": ("mse", 1000.0)}  # fmt: skip
    parts = [
        "An arm is one way to train. Teachers are rolled out to the full horizon; all other arms forecast all frames "
        "in one pass.",
        markdown_table(
            ("arm", "horizon of a pass", "calls", "optimizer steps", "w", "training sequences, base"),
            (_settings(arm, evidence) for arm in arms_of(evidence.study) if arm.name in evidence.by_arm),
        ),
        wrapped(
            f"Scores: protocol `{protocol.name}` ({protocol.hash}), thresholds of `sevir-global`. Counts are pooled "
            "over test windows and lead times. Each cell is the mean over seeds, ± half the width of the 95 % interval."
            " Forecasts are clipped and rounded to encoded values first. For a single forecast the CRPS equals the MAE."
        ),
        _scores_table(evidence, bootstrap, columns, with_costs=True),
    ]
    for label in HEAVY:
        names = (("CSI", "csi"), ("POD", "pod"), ("FAR", "far"), ("frequency bias", "frequency_bias"))
        parts += [
            f"### Scores at pixel value {label}",
            _scores_table(evidence, bootstrap, {name: (f"{score}/{label}", 1.0) for name, score in names}),
        ]
    parts.append("FAR has no interval (or is nan) if a seed, or a resampled set of events, has no forecast event.")
    return "\n\n".join(parts)


def _settings(arm: Arm, evidence: Evidence) -> tuple[str, ...]:
    long = evidence.study.sequence.frames_out
    calls = -(-long // arm.frames_out) if arm.stage == "teacher" else 1
    parts = []
    if arm.extension == "teacher":
        parts.append(f"extended by `{arm.teacher}`")
    if arm.extension == "oracle":
        parts.append("extended by the event's later real frames")
    if arm.warm_start:
        parts.append(f"initial weights of `{arm.teacher}`")
    if arm.windows == "anywhere":
        parts.append("windows start anywhere in the event")
    if arm.windows == "with_future":
        parts.append("only sequences with later real frames")
    if arm.events is not None:
        parts.append(f"{arm.events} events, no symmetries, weights selected on val")
    if arm.base != "none":
        parts.append(f"base {arm.base}")
    return (
        f"`{arm.name}`", f"{arm.frames_out}", f"{calls}", f"{arm.steps}", f"{arm.weight:g}", ", ".join(parts) or "real",
    )  # fmt: skip


def _scores_table(
    evidence: Evidence, bootstrap: Bootstrap, columns: dict[str, tuple[str, float]], *, with_costs: bool = False
) -> str:
    rows = []
    for arm, results in evidence.by_arm.items():
        cells = [cell(bootstrap.one(((arm, scale),), score)) for score, scale in columns.values()]
        if with_costs:
            seconds = [result.record.get("train_cpu_seconds", 0.0) for result in results.values()]
            seeds = "" if arm in BASELINES else str(len(results))
            cells = [seeds, *cells, f"{sum(seconds) / len(seconds):.0f}"]
        rows.append((arm, *cells))
    head = ("arm", "seeds", *columns, "training, CPU s") if with_costs else ("arm", *columns)
    return markdown_table(head, rows)


def cell(interval: Interval) -> str:
    """Return a score ± half the width of its interval."""
    digits = 4 if abs(interval.value) < 1 else 2
    reach = f" ± {interval.half_width:.{digits}f}" if interval.has_bounds else ""
    return f"{interval.value:.{digits}f}{reach}"
