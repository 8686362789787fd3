"""Section of the evidence page on networks that start from extrapolation: CSI-M by lead time."""

from benchmarks.evidence.evidence_tables import cell, differences_by_lead, markdown_table
from benchmarks.evidence.study_text import wrapped
from benchmarks.evidence.unit_results import Evidence

from .arms import EXTRAPOLATION, PERSISTENCE, PYSTEPS, arms_of
from .figure_style import STEP_MINUTES
from .intervals import Bootstrap

DIFFERENCES = (
    ("hybrid-direct", "direct"),
    ("hybrid-direct", EXTRAPOLATION),
    ("hybrid-direct-4x", "direct-4x"),
    ("hybrid-direct-4x", EXTRAPOLATION),
    ("hybrid-direct-4x", PYSTEPS),
    ("hybrid-student", PYSTEPS),
    ("hybrid-student-4x", PYSTEPS),
    ("hybrid-student-4x-warm", PYSTEPS),
    ("hybrid-student-4x-warm", EXTRAPOLATION),
)


def hybrid_tables(evidence: Evidence, bootstrap: Bootstrap) -> str:
    """Return CSI-M of baselines and main arms by lead time, and the differences of hybrid arms by lead time."""
    half, leads = evidence.study.half_horizon, evidence.study.sequence.frames_out
    shown = (
        PERSISTENCE, EXTRAPOLATION, PYSTEPS, "direct", f"teacher-{half}", f"student-{half}", "student-warm",
        "direct-4x", "student-4x", "direct-16x", "teacher-16x", "hybrid-direct", "hybrid-teacher", "hybrid-student",
        "hybrid-student-warm", "hybrid-direct-4x", "hybrid-teacher-4x", "hybrid-student-4x", "hybrid-student-4x-warm",
    )  # fmt: skip
    steps = {arm.name: f", {arm.steps} steps" for arm in arms_of(evidence.study)}
    times = [f"{STEP_MINUTES * lead} min" for lead in range(1, leads + 1)]
    scores = [
        (
            f"{arm}{steps.get(arm, '')}",
            *(cell(lead) for lead in bootstrap.score(((arm, 1.0),), "csi/mean", by_lead=True)),
        )
        for arm in shown
        if arm in evidence.by_arm
    ]
    differences = differences_by_lead(bootstrap, DIFFERENCES)
    parts = [
        "CSI-M by lead time, mean over seeds ± half the width of the 95 % interval:",
        markdown_table(("arm", *times), scores),
    ]
    if differences:
        parts += [
            wrapped(
                "Paired differences of CSI-M by lead time. A hybrid network before training has the scores of "
                "`extrapolation`; where a lead time is below it, the figure shows the change with the number of "
                "training steps:"
            ),
            differences,
        ]
    return "\n\n".join(parts)
