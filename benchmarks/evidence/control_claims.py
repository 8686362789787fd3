"""Controls of the paper's claims: equal compute, longer training, other data, warm start, baselines."""

from collections.abc import Iterator

from .arms import EXTRAPOLATION, PERSISTENCE
from .claims import Claim, Comparison, difference
from .study import Study

ORACLE = difference(
    "CSI-M, student of a perfect teacher minus direct model", "future-oracle", "future-direct", "csi/mean"
)
"""The control of claims on distillation from scratch with all training events."""


def control_claims(study: Study) -> Iterator[Claim]:
    """Yield the controls: equal compute, longer training, other data, warm start, baselines."""
    yield from _equal_compute(study)
    yield from _other_data(study)
    yield from _warm_start(study)
    yield from _skill(study)


def control(key: str, statement: str, *comparisons: Comparison, oracle: Comparison | None = None) -> Claim:
    """Return a control."""
    return Claim(key, statement, comparisons, origin="control", oracle=oracle)


def csi(label: str, first: str, second: str) -> Comparison:
    """Return the comparison of CSI-M of two arms."""
    return difference(f"CSI-M, {label}", first, second, "csi/mean")


def _equal_compute(study: Study) -> Iterator[Claim]:
    student = f"student-{study.half_horizon}"
    yield control(
        "own-steps",
        "A student from scratch beats a direct model with the student's own number of steps.",
        csi("student minus direct model, 1x steps each", student, "direct"),
        oracle=ORACLE,
    )
    yield control(
        "own-steps-future",
        "The same if both are trained only on sequences with later real frames.",
        csi("student minus direct model, sequences with later frames", "future-student", "future-direct"),
        oracle=ORACLE,
    )
    yield control(
        "own-steps-4x",
        "A student from scratch with 4x steps, of a teacher with 4x steps or 16x steps, beats a direct model with "
        "4x steps.",
        csi("4x student of the 4x teacher minus direct model with 4x steps", "student-4x", "direct-4x"),
        csi("4x student of the 16x teacher minus direct model with 4x steps", "student-4x-of-16x", "direct-4x"),
        oracle=ORACLE,
    )
    yield control(
        "compute",
        "The student beats a direct model with as many training steps as teacher and student together.",
        csi("student minus direct model with 2x steps", student, "direct-2x"),
        oracle=ORACLE,
    )
    yield control(
        "converged",
        "With a teacher trained four times as long, the student beats the direct model trained as long as the student, "
        "and the one trained as long as teacher and student together.",
        csi("student of the 4x teacher minus direct model", "student-of-4x", "direct"),
        csi("student of the 4x teacher minus direct model with 5x steps", "student-of-4x", "direct-5x"),
        oracle=ORACLE,
    )
    yield control(
        "long",
        "With four times the steps, rollout still beats a direct model with five times the steps.",
        csi("rolled-out 4x teacher minus direct model with 5x steps", "teacher-4x", "direct-5x"),
    )
    yield control(
        "longest",
        "With 16 times the steps for both, rollout still beats the direct model.",
        csi("rolled-out 16x teacher minus direct model with 16x steps", "teacher-16x", "direct-16x"),
    )
    yield control(
        "long-student",
        "With four times the steps, the student still beats a direct model with five times the steps.",
        csi("4x student minus direct model with 5x steps", "student-4x", "direct-5x"),
        oracle=ORACLE,
    )
    yield control(
        "long-distillation",
        "With four times the steps for both, the student has a higher CSI-M than its rolled-out teacher.",
        csi("4x student minus rolled-out 4x teacher", "student-4x", "teacher-4x"),
        oracle=ORACLE,
    )
    yield control(
        "teacher-steps",
        "A teacher trained four times as long gives a better student.",
        csi("student of the 4x teacher minus student", "student-of-4x", student),
        oracle=ORACLE,
    )
    yield control(
        "best-case",
        "A student (4x steps) of a teacher with 16x steps beats the direct model with 5x steps.",
        csi("4x student of the 16x teacher minus direct model with 5x steps", "student-4x-of-16x", "direct-5x"),
        oracle=ORACLE,
    )
    yield control(
        "longer-teacher",
        "A teacher with 16x steps has a better rollout than one with 4x steps.",
        csi("16x teacher minus 4x teacher, both rolled out", "teacher-16x", "teacher-4x"),
    )
    yield control(
        "longer-teacher-students",
        "A teacher with 16x steps gives better students than one with 4x steps.",
        csi("student of the 16x teacher minus that of the 4x teacher", "student-of-16x", "student-of-4x"),
        csi("4x student of the 16x teacher minus that of the 4x teacher", "student-4x-of-16x", "student-4x"),
        oracle=ORACLE,
    )
    yield control(
        "unweighted",
        "Distillation also helps without the weighted loss.",
        csi("student minus direct model, both `w = 1`", "student-w1", "direct-w1"),
        csi("student minus rolled-out teacher, both `w = 1`", "student-w1", "teacher-w1"),
        oracle=ORACLE,
    )


def _other_data(study: Study) -> Iterator[Claim]:
    student = f"student-{study.half_horizon}"
    yield control(
        "crop",
        "The student beats a direct model trained on random crops of the events.",
        csi("student minus direct model on random crops", student, "crop"),
        oracle=ORACLE,
    )
    yield control(
        "crop-alone",
        "Random crops improve the direct model.",
        csi("direct model on random crops minus direct model", "crop", "direct"),
    )
    yield control(
        "oracle",
        "Real frames instead of pseudo-frames give a better student (all arms on sequences with later frames).",
        csi("student of a perfect teacher minus student of a trained teacher", "future-oracle", "future-student"),
        ORACLE,
    )


def _warm_start(study: Study) -> Iterator[Claim]:
    teacher, student = f"teacher-{study.half_horizon}", f"student-{study.half_horizon}"
    yield control(
        "warm",
        "A student initialized with the teacher's weights beats one trained from scratch, and a direct model with as "
        "many training steps as teacher and student together.",
        csi("student with warm start minus student from scratch", "student-warm", student),
        csi("student with warm start minus direct model with 2x steps", "student-warm", "direct-2x"),
    )
    yield control(
        "warm-distillation",
        "A student initialized with the teacher's weights has a higher CSI-M than its rolled-out teacher.",
        csi("student with warm start minus rolled-out teacher", "student-warm", teacher),
    )
    yield control(
        "warm-false-alarms",
        "It has a lower FAR than the rolled-out teacher, a lower POD, and a lower MSE.",
        difference("FAR-181, student with warm start minus rolled-out teacher", "student-warm", teacher, "far/181", -1),
        difference("POD-181, student with warm start minus rolled-out teacher", "student-warm", teacher, "pod/181", -1),
        difference(
            "MSE x 1000, student with warm start minus rolled-out teacher",
            "student-warm",
            teacher,
            "mse",
            -1,
            scale=1000,
        ),
    )
    yield control(
        "warm-long",
        "With four times the steps for both, a student initialized with the teacher's weights has a higher CSI-M than "
        "its rolled-out teacher and than one trained from scratch.",
        csi("4x student with warm start minus rolled-out 4x teacher", "student-4x-warm", "teacher-4x"),
        csi("4x student with warm start minus 4x student from scratch", "student-4x-warm", "student-4x"),
    )


def _skill(study: Study) -> Iterator[Claim]:
    teacher, student = f"teacher-{study.half_horizon}", f"student-{study.half_horizon}"
    kinds = {"direct": "direct model", teacher: "rolled-out teacher", student: "student"}
    longest = {"direct-16x": "16x direct model", "teacher-16x": "rolled-out 16x teacher", "student-4x": "4x student"}
    yield control(
        "skill",
        "After 1x steps, every kind of model beats persistence and extrapolation.",
        *(csi(f"{name} minus persistence", arm, PERSISTENCE) for arm, name in kinds.items()),
        *(csi(f"{name} minus extrapolation", arm, EXTRAPOLATION) for arm, name in kinds.items()),
    )
    yield control(
        "skill-long",
        "With the most training steps, every kind of model beats extrapolation.",
        *(csi(f"{name} minus extrapolation", arm, EXTRAPOLATION) for arm, name in longest.items()),
    )
    yield control(
        "first-lead",
        "After 1x steps, every kind of model beats persistence at the first lead time.",
        *(
            difference(f"CSI-M at lead time 1, {name} minus persistence", arm, PERSISTENCE, "lead/1/csi/mean")
            for arm, name in kinds.items()
        ),
    )
