"""Write the evidence page and its figures from packed results: ``python -m benchmarks.evidence.evidence_page``.

All numbers and verdicts on the page are computed from the sums in ``results/``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.evidence_figures import CAPTIONS, draw_all
from benchmarks.evidence.evidence_tables import ORIGINS, arms_tables, claims_tables, summary_table
from benchmarks.evidence.few_data_section import few_data_table
from benchmarks.evidence.hybrid_section import hybrid_tables
from benchmarks.evidence.lead_and_threshold_text import heavy_rain_text, student_leads
from benchmarks.evidence.study_text import convergence, describe_cost, describe_seeds, limitations, method, wrapped
from benchmarks.evidence.unit_results import RESULTS, Evidence, load_evidence
from simcast_hpc.config import SimcastError
from simcast_hpc.storage.atomic_files import write_text

from .claims import FEWEST_SEEDS, HOLDS, IN_FULL, NOT_TESTABLE, PARTLY, REVERSED, UNDECIDED, Verdict, decide
from .figure_style import STEP_MINUTES
from .intervals import Bootstrap
from .study_claims import claims_of
from .summary_text import summary

PAGE = Path("docs/results/evidence.md")


def make_page(evidence: Evidence, page: Path, *, draws: int = 2000) -> list[Verdict]:
    """Write the page, and the figures to a folder of the same name; return the verdicts."""
    bootstrap = Bootstrap(evidence, draws=draws)
    verdicts = decide(claims_of(evidence.study), bootstrap)
    figures = draw_all(bootstrap, verdicts, page.with_suffix(""))

    def shown(*names: str) -> str:
        return "\n\n".join(
            f"[![{CAPTIONS[name]}]({page.stem}/{figures[name].name})]({page.stem}/{figures[name].name})\n\n"
            f"*{CAPTIONS[name]}*"
            for name in names
            if name in figures
        )

    undecided = any(verdict.claim.key == "oracle" and verdict.verdict == UNDECIDED for verdict in verdicts)
    parts = [
        "# Evidence for the method",
        wrapped(_terms(evidence)),
        "\n".join(wrapped(f"- {sentence}", indent="  ") for sentence in summary(evidence, bootstrap, verdicts)),
        summary_table(verdicts, evidence.study),
        wrapped(_verdicts()),
        wrapped(_notes(evidence)),
        shown("summary"),
        "## Networks that start from extrapolation",
        hybrid_tables(evidence, bootstrap),
        shown("hybrid-steps"),
        "## Few training events",
        few_data_table(evidence, bootstrap),
        shown("few-data"),
        "## Claims and controls",
        _tallies(evidence, verdicts),
        claims_tables(verdicts),
        shown("claims", "controls-training", "controls-other", "claims-hybrid", "claims-few-data"),
        "## Scores of all arms",
        arms_tables(evidence, bootstrap),
        "## Scores by lead time",
        student_leads(bootstrap),
        shown("csi-by-lead", "horizons", "csi-long", "fss-crps"),
        "## Heavy rain",
        heavy_rain_text(bootstrap),
        shown("heavy-rain", "csi", "bias", "pod", "far"),
        "## Convergence",
        convergence(evidence),
        shown("loss"),
        "## Limitations",
        limitations(evidence, oracle_undecided=undecided),
        "## Experiment",
        method(evidence),
    ]
    write_text(page, "\n\n".join(filter(None, parts)) + "\n")
    return verdicts


def _terms(evidence: Evidence) -> str:
    """Return the experiment and the terms that the summary needs."""
    half, study = evidence.study.half_horizon, evidence.study
    long = study.sequence.frames_out
    return (
        "We test claims of SimCast (arXiv 2510.07953) with small SimVP networks on synthetic storms of "
        f"{study.archive.size} x {study.archive.size} pixels, not on SEVIR{describe_cost(evidence)}. "
        "*CSI-M* is the critical success index, averaged over SEVIR's six thresholds; larger is better. "
        f"A *direct model* forecasts all {long} frames in one pass. A *teacher* forecasts {half} frames per call and "
        f"is rolled out. A *student* forecasts all {long} frames in one pass and is trained on sequences that its "
        "teacher extends; it begins with random weights (*from scratch*) or with those of its teacher (*warm start*). "
        "A *perfect teacher* (oracle) extends sequences by the later real frames. *Extrapolation* moves the last frame "
        "along the motion estimated from the input frames; a *hybrid* model corrects it (`model.base: extrapolation`). "
        "Brackets are 95 % intervals over seeds and test events; *significant* means that the interval excludes zero."
    )


def _verdicts() -> str:
    """Return the meaning of the verdicts of single comparisons."""
    return (
        f"*Verdict* of a row: *{HOLDS}*: the interval is above zero; *{REVERSED}*: below zero; *not significant*: it "
        f"contains zero; *no verdict*: fewer than {FEWEST_SEEDS} seeds. *{NOT_TESTABLE.capitalize()}* is added to "
        "every gain of distillation from scratch for which a perfect teacher gives no significant gain here, so a gain "
        "through better pseudo-frames is not expected. *Seeds*: a difference uses the seeds of both arms, so it can "
        "differ from the difference of the scores in other tables."
    )


def _notes(evidence: Evidence) -> str:
    """Return the settings of the experiment."""
    study = evidence.study
    minutes = STEP_MINUTES * study.sequence.frames_out
    return (
        f"*Experiment*: {study.archive.events['train']} training events, {study.sequence.frames_in} input frames, a "
        f"forecast of {minutes} minutes, {describe_seeds(evidence)}. The results are valid for this experiment. "
        "*CSI-181*: CSI at the threshold 181 (pixel value, heavy rain); POD-181 and FAR-181 have the same threshold. "
        "`w` is the largest weight of the loss (`w_max`, 10 if not stated). In names of arms, *2x*, *4x* and *16x* are "
        f"multiples of {study.steps} optimizer steps. The steps of a student do not include those of its teacher "
        "unless total steps are stated. *pysteps* is extrapolation with the Lucas-Kanade optical flow of pysteps. "
        "See the [glossary](../concepts/glossary.md). To quote a number, [cite](../project/cite.md) the software and "
        "describe this experiment."
    )


def _tallies(evidence: Evidence, verdicts: Sequence[Verdict]) -> str:
    """Return the number of claims and controls per verdict, and the claims without results."""
    lines = []
    for origin, who in ORIGINS.items():
        own = [verdict for verdict in verdicts if verdict.claim.origin == origin]
        if own:
            lines.append(f"- {who} ({len(own)}, names as in the table below): {_tally(own)}.")
    decided = {verdict.claim.key for verdict in verdicts}
    pending = [claim.key for claim in claims_of(evidence.study) if claim.key not in decided]
    if pending:
        lines.append(f"- Claims without results, because their arms were not trained: {', '.join(pending)}.")
    return "\n".join(lines)


def _tally(verdicts: Sequence[Verdict]) -> str:
    kinds: dict[str, list[str]] = {}
    for verdict in verdicts:
        kinds.setdefault(verdict.verdict, []).append(verdict.claim.key)
    order = (HOLDS, PARTLY, UNDECIDED, NOT_TESTABLE, IN_FULL, REVERSED)
    return "; ".join(f"{kind}: {len(kinds[kind])} ({', '.join(kinds[kind])})" for kind in order if kind in kinds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.evidence_page", description="Write the evidence page."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the packed results")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="page to write; figures go to a folder of the same name"
    )
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
