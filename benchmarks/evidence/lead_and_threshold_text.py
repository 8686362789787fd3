"""Text of the evidence page on students by lead time, and on heavy rain compared with the baselines."""

from benchmarks.evidence.evidence_tables import HEAVY, differences_by_lead
from benchmarks.evidence.study_text import wrapped

from .arms import EXTRAPOLATION, PERSISTENCE, arm_named
from .intervals import Bootstrap
from .summary_text import side_of, signed

HYBRID = "hybrid-student-4x-warm"


def student_leads(bootstrap: Bootstrap) -> str:
    """Return the paired differences of students from scratch and of a perfect teacher from the direct model."""
    half = bootstrap.evidence.study.half_horizon
    pairs = (
        (f"student-{half}", "direct"),
        ("future-student", "future-direct"),
        ("future-oracle", "future-direct"),
        ("student-4x", "direct-4x"),
        ("student-4x-of-16x", "direct-4x"),
        ("student-warm", f"teacher-{half}"),
    )
    table = differences_by_lead(bootstrap, pairs)
    intro = (
        "Paired differences of CSI-M by lead time: students minus direct models or teachers (`oracle`: a perfect one):"
    )
    return f"{intro}\n\n{table}" if table else ""


def heavy_rain_text(bootstrap: Bootstrap) -> str:
    """Compare a direct model with persistence at the highest threshold, and a hybrid student with extrapolation."""
    middle, highest = HEAVY
    sentences = [
        _compared(bootstrap, "The direct model", "direct", PERSISTENCE, "csi", highest),
        _compared(bootstrap, "The hybrid student with warm start", HYBRID, EXTRAPOLATION, "pod", middle),
    ]
    return wrapped(" ".join(filter(None, sentences)))


def _compared(bootstrap: Bootstrap, name: str, arm: str, baseline: str, score: str, threshold: str) -> str:
    """Return a sentence with both scores and their difference; empty if one has no results."""
    evidence = bootstrap.evidence
    if not {arm, baseline} <= set(evidence.by_arm):
        return ""
    label = f"{score}/{threshold}"
    own, other = (bootstrap.one(((one, 1.0),), label).value for one in (arm, baseline))
    difference = bootstrap.one(((arm, 1.0), (baseline, -1.0)), label)
    side = "" if side_of(difference) else ", not significantly"
    level = "higher" if difference.value > 0 else "lower"
    return (
        f"{name} ({arm_named(evidence.study, arm).steps} steps) has a {level} {score.upper()}-{threshold} "
        f"({own:.4f}) than {baseline} ({other:.4f}; difference {signed(difference)}){side}."
    )
