"""The claims of the paper as comparisons of arms."""

from collections.abc import Iterator

from .claims import Claim, Comparison, difference
from .control_claims import ORACLE
from .study import FULL_WEIGHT, Study


def paper_claims(study: Study) -> Iterator[Claim]:
    """Yield the claims of SimCast's tables and figures."""
    half, shorter = study.half_horizon, sorted(study.horizons, reverse=True)[1:]
    teacher, student = f"teacher-{half}", f"student-{half}"
    full = "12-frame" if study.sequence.frames_out == 12 else "full-horizon"
    yield Claim(
        "weighting",
        "The weighted loss raises CSI-M and the CSI at the two highest thresholds.",
        (
            difference("CSI-M, `w = 10` minus `w = 1`", "direct", "direct-w1", "csi/mean", paper=0.4354 - 0.4166),
            difference("CSI-181, `w = 10` minus `w = 1`", "direct", "direct-w1", "csi/181"),
            difference("CSI-219, `w = 10` minus `w = 1`", "direct", "direct-w1", "csi/219"),
        ),
    )
    yield from _weight_ladder(study)
    yield Claim(
        "price",
        "The weighted loss, and SimCast with it, increase the CRPS (for a single forecast the MAE).",
        (
            difference("MAE, `w = 10` minus `w = 1`", "direct", "direct-w1", "mae"),
            difference(
                "MAE, student minus direct model with `w = 1`", student, "direct-w1", "mae", paper=0.0270 - 0.0259
            ),
        ),
    )
    yield Claim(
        "autoregression",
        f"A teacher of half the horizon, rolled out, beats the {full} model.",
        (
            difference(
                "CSI-M, rolled-out teacher minus direct model", teacher, "direct", "csi/mean", paper=0.4517 - 0.4354
            ),
        ),
    )
    paper = {2: (0.4517 - 0.4472, 0.4517 - 0.4184)}.get(len(shorter), (None,) * len(shorter))
    yield Claim(
        "horizon",
        "A teacher with a shorter horizon has a worse rollout.",
        tuple(
            difference(
                f"CSI-M, `T_s = {half}` minus `T_s = {horizon}`",
                teacher,
                f"teacher-{horizon}",
                "csi/mean",
                paper=value,
            )
            for horizon, value in zip(shorter, paper, strict=True)
        ),
    )
    yield Claim(
        "distillation",
        "Distillation raises the CSI-M of the rolled-out teacher in one pass (the paper: preserves or raises).",
        (difference("CSI-M, student minus rolled-out teacher", student, teacher, "csi/mean", paper=0.4521 - 0.4517),),
        oracle=ORACLE,
    )
    gains = {2: (0.4516 - 0.4472, 0.4338 - 0.4184)}.get(len(shorter), (None,) * len(shorter))
    gain = 0.4521 - 0.4517
    yield Claim(
        "short-horizon",
        "Distillation raises the CSI of teachers with a shorter horizon.",
        tuple(
            difference(f"CSI-M, student minus teacher at `T_s = {horizon}`", f"student-{horizon}", f"teacher-{horizon}",
                 "csi/mean", paper=value)
            for horizon, value in zip(shorter, gains, strict=True)
        ),
        oracle=ORACLE,
    )  # fmt: skip
    yield Claim(
        "robustness",
        "The gain of distillation is larger for a shorter horizon of the teacher.",
        tuple(
            Comparison(
                f"CSI-M, student minus teacher at `T_s = {horizon}`, minus the same at `T_s = {half}`",
                ((f"student-{horizon}", 1.0), (f"teacher-{horizon}", -1.0), (student, -1.0), (teacher, 1.0)),
                "csi/mean",
                paper=None if value is None else value - gain,
            )
            for horizon, value in zip(shorter, gains, strict=True)
        ),
        oracle=ORACLE,
    )
    yield Claim(
        "false-alarms",
        "The student has a lower FAR than the rolled-out teacher, and a lower POD.",
        tuple(
            difference(
                f"{score.upper()}-{threshold}, student minus teacher", student, teacher, f"{score}/{threshold}", -1
            )
            for threshold in (181, 219)
            for score in ("far", "pod")
        ),
    )
    yield Claim(
        "saw-tooth",
        "The rolled-out teacher's frequency bias jumps at the start of its second call; the student's jumps less.",
        (
            Comparison(
                f"bias-181 of the teacher, lead time {half + 1} minus {half}", ((teacher, 1.0),), f"jump/181/{half}"
            ),
            difference("jump of bias-181, student minus teacher", student, teacher, f"jump/181/{half}", -1),
        ),
    )
    yield Claim(
        "simcast",
        "SimCast's student beats the direct model at equal student steps.",
        (difference("CSI-M, student minus direct model", student, "direct", "csi/mean", paper=0.4521 - 0.4354),),
        oracle=ORACLE,
    )


def _weight_ladder(study: Study) -> Iterator[Claim]:
    weights = sorted(study.weights)
    names = ["direct" if weight == FULL_WEIGHT else f"direct-w{weight:g}" for weight in weights]
    paper = {(1.0, 3.0): 0.4273 - 0.4166, (3.0, 10.0): 0.4354 - 0.4273}
    steps = list(zip(weights, weights[1:], names, names[1:], strict=False))
    yield Claim(
        "monotone",
        "Each larger `w` gives a higher CSI-M (the largest `w` in the paper is 10).",
        tuple(
            difference(
                f"CSI-M, `w = {high:g}` minus `w = {low:g}`", upper, lower, "csi/mean", paper=paper.get((low, high))
            )
            for low, high, lower, upper in steps
        ),
    )
    yield Claim(
        "trade",
        "A larger `w` increases POD, FAR and frequency bias.",
        tuple(
            difference(
                f"{label}-181, `w = {weights[-1]:g}` minus `w = {weights[0]:g}`", names[-1], names[0], f"{score}/181"
            )
            for label, score in (("POD", "pod"), ("FAR", "far"), ("bias", "frequency_bias"))
        ),
    )
