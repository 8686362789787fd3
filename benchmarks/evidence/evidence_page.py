"""Make the evidence page and its figures from packed results: ``python -m benchmarks.evidence.evidence_page``.

No number and no verdict on the page is typed by hand: both follow from the sums in ``results/``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.block_sums import protocol_of
from benchmarks.evidence.evidence_figures import CAPTIONS, draw_all
from benchmarks.evidence.paper_claims import (
    FEWEST_SEEDS,
    HOLDS,
    IN_FULL,
    PARTLY,
    REVERSED,
    STATED_LATER,
    UNDECIDED,
    Verdict,
    claims_of,
    decide,
    in_words,
)
from benchmarks.evidence.study_text import convergence, making, missing, seeds_in_words
from benchmarks.evidence.unit_results import Evidence, load_evidence
from simcast_hpc.config import SimcastError
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.verification.bootstrap import Interval

from .collect import RESULTS
from .intervals import LABELS, Bootstrap
from .study import PERSISTENCE, Arm, arms_of

PAGE = Path("docs/evidence.md")


def make_page(evidence: Evidence, page: Path, *, draws: int = 2000) -> list[Verdict]:
    """Write the page and, in a folder of its name beside it, the figures; return the verdicts."""
    bootstrap = Bootstrap(evidence, draws=draws)
    verdicts = decide(claims_of(evidence.study), bootstrap)
    figures = draw_all(bootstrap, verdicts, page.with_suffix(""))

    def figure(name: str) -> str:
        return f"![{CAPTIONS[name]}]({page.stem}/{figures[name].name})\n\n{CAPTIONS[name]}"

    parts = [
        _head(evidence, verdicts),
        "## Claims",
        _claims_table(verdicts),
        figure("claims"),
        "## Arms",
        _arms_table(evidence, bootstrap),
        *(figure(name) for name in figures if name not in ("claims", "loss")),
        "## Converged or not",
        convergence(evidence),
        figure("loss"),
        "## How it was made",
        making(evidence),
        "## What is missing",
        missing(evidence),
    ]
    write_text(page, "\n\n".join(parts) + "\n")
    return verdicts


def _head(evidence: Evidence, verdicts: Sequence[Verdict]) -> str:
    sequence, size = evidence.study.sequence, evidence.study.archive.size
    lines = [
        "# The evidence for the method",
        "",
        "_Made by `python -m benchmarks.evidence.evidence_page` from `benchmarks/evidence/results/`. No number of ours "
        "and no verdict on this page is typed by hand._",
        "",
        "SimCast (arXiv 2510.07953) reports one run an arm. Here its claims are put to small SimVP models on synthetic "
        f"storms, {sequence.frames_in} -> {sequence.frames_out} frames on {size} x {size} pixels, "
        f"{seeds_in_words(evidence)}, with the controls that the paper lacks. **This says what the method does in this "
        "small world, not what it does on SEVIR.**",
        "",
    ]
    for origin, who in (("paper", "Of the paper's claims"), ("control", "Of the controls' statements")):
        own = [verdict for verdict in verdicts if verdict.claim.origin == origin]
        lines.append(f"- {who} ({len(own)}): {_tally(own)}.")
    decided = {verdict.claim.key for verdict in verdicts}
    waiting = [claim.key for claim in claims_of(evidence.study) if claim.key not in decided]
    if waiting:
        lines.append(f"- Without results yet: {', '.join(waiting)}.")
    return "\n".join(lines)


def _tally(verdicts: Sequence[Verdict]) -> str:
    kinds: dict[str, list[str]] = {}
    for verdict in verdicts:
        kinds.setdefault(verdict.verdict, []).append(verdict.claim.key)
    order = (HOLDS, PARTLY, UNDECIDED, IN_FULL, REVERSED)
    return "; ".join(f"{kind}: {len(kinds[kind])} ({', '.join(kinds[kind])})" for kind in order if kind in kinds)


def _claims_table(verdicts: Sequence[Verdict]) -> str:
    rows = ["| claim | difference | here, 95 % interval | paper | verdict | how sure |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        for number, finding in enumerate(verdict.findings):
            comparison = finding.comparison
            claim = f"**{verdict.claim.key}**: {verdict.claim.statement} *{verdict.verdict}*" if number == 0 else ""
            paper = "" if comparison.paper is None else f"{comparison.paper:+.4f}"
            wants = "> 0" if comparison.sign > 0 else "< 0"
            rows.append(
                f"| {claim} | {comparison.label} ({wants}) | {_signed(finding.interval)} | {paper} "
                f"| {finding.verdict} | {in_words(finding)} |"
            )
    rows += [
        "",
        f"A difference is *{HOLDS}* if its interval lies wholly on the claimed side of zero, *{REVERSED}* if wholly on "
        f"the other, else *{UNDECIDED}*; a claim holds if all of its differences do. Fewer than {FEWEST_SEEDS} seeds "
        "give no verdict. Each interval stands for itself: of twenty true zeros, one would be seen as a difference. "
        "The paper's values are differences within its own tables on SEVIR, from one run each. Put, or put in this "
        f"form, after the first results had been seen, hence weaker evidence: {', '.join(STATED_LATER)}.",
    ]
    return "\n".join(rows)


def _signed(interval: Interval) -> str:
    if not interval.has_bounds:
        return f"{interval.value:+.4f}"
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _columns(evidence: Evidence) -> dict[str, str]:
    """Return the scores of the arms' table by their heading."""
    thresholds = evidence.study.scoring.fss_thresholds
    heavy = {
        f"{name}-{label}": f"{score}/{label}"
        for label in LABELS[-2:]
        for name, score in (("CSI", "csi"), ("POD", "pod"), ("FAR", "far"), ("bias", "frequency_bias"))
    }
    middle = thresholds[len(thresholds) // 2]
    return {"CSI-M": "csi/mean", **heavy, f"FSS-{middle}": f"fss/{middle}"}


def _arms_table(evidence: Evidence, bootstrap: Bootstrap) -> str:
    columns = _columns(evidence)
    rows = [
        f"| arm | seeds | {' | '.join(columns)} | CRPS x 100 | training, CPU s |",
        "|---|" + "---|" * (len(columns) + 3),
    ]
    for arm, results in evidence.by_arm.items():
        cells = [_cell(bootstrap.one(((arm, 1.0),), score)) for score in columns.values()]
        cells.append(_cell(bootstrap.one(((arm, 100.0),), "mae")))
        seconds = [result.record.get("train_cpu_seconds", 0.0) for result in results.values()]
        seeds = "" if arm == PERSISTENCE else str(len(results))
        rows.append(f"| {arm} | {seeds} | {' | '.join(cells)} | {sum(seconds) / len(seconds):.0f} |")
    explained = "\n".join(
        f"- `{arm.name}`: {_in_words(arm, evidence)}" for arm in arms_of(evidence.study) if arm.name in evidence.by_arm
    )
    protocol = protocol_of(evidence.study)
    return (
        f"Protocol `{protocol.name}` ({protocol.hash}), thresholds of `sevir-global`: counts pooled over test "
        "windows and leads, mean of seeds, ± half the 95 % interval. Forecasts are clipped and rounded to code "
        "first. FAR is undefined (nan) where a seed never forecasts the threshold.\n\n"
        + "\n".join(rows)
        + "\n\n"
        + explained
    )


def _cell(interval: Interval) -> str:
    digits = 4 if abs(interval.value) < 1 else 2
    reach = f" ± {interval.half_width:.{digits}f}" if interval.has_bounds else ""
    return f"{interval.value:.{digits}f}{reach}"


def _in_words(arm: Arm, evidence: Evidence) -> str:
    long = evidence.study.sequence.frames_out
    calls = -(-long // arm.frames_out)
    rolled = f"T's {arm.frames_out}, rolled out in {calls} calls"
    parts = [rolled if arm.stage == "teacher" else f"all {long} frames in one pass"]
    parts += [f"{arm.steps} steps", f"w_max {arm.weight:g}"]
    if arm.extension == "teacher":
        parts.append(f"sequences extended by `{arm.teacher}`")
    if arm.extension == "oracle":
        parts.append("sequences extended by the event's own later frames")
    if arm.warm_start:
        parts.append(f"begins from the weights of `{arm.teacher}`")
    if arm.windows == "anywhere":
        parts.append("sequences begin anywhere in the event")
    if arm.windows == "with_future":
        parts.append("only sequences with real frames after them")
    return ", ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.evidence_page", description="Make the evidence page."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the packed results")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write it; figures go into a folder beside it")
    options = parser.parse_args(arguments)
    try:
        verdicts = make_page(load_evidence(options.results), options.page)
    except SimcastError as error:
        print(error, file=sys.stderr)
        return 2
    for verdict in verdicts:
        print(f"{verdict.claim.key}: {verdict.verdict}")
    print(options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
