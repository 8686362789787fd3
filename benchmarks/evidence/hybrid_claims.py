"""Claims on networks that start from extrapolation (``model.base: extrapolation``) and on few training events."""

from collections.abc import Iterator

from .arms import EXTRAPOLATION, PERSISTENCE, PYSTEPS
from .claims import Claim, Comparison, difference
from .study import Study

ORACLE = difference(
    "CSI-M, hybrid student of a perfect teacher minus hybrid direct model",
    "hybrid-future-oracle",
    "hybrid-future-direct",
    "csi/mean",
)
"""The control of claims on the distillation of hybrid networks from scratch."""


def _csi(label: str, first: str, second: str) -> Comparison:
    return difference(f"CSI-M, {label}", first, second, "csi/mean")


def _mse(label: str, first: str, second: str) -> Comparison:
    return difference(f"MSE x 1000, {label}", first, second, "mse", -1, scale=1000)


def hybrid_claims(study: Study) -> Iterator[Claim]:
    """Yield the claims on hybrid networks."""

    def claim(key: str, statement: str, *comparisons: Comparison, oracle: Comparison | None = None) -> Claim:
        return Claim(key, statement, comparisons, origin="hybrid", oracle=oracle)

    yield claim(
        "hybrid",
        "A direct model that starts from extrapolation has a higher CSI-M and a lower MSE than one that does not, with "
        "1x steps each.",
        _csi("hybrid direct model minus direct model", "hybrid-direct", "direct"),
        _mse("hybrid direct model minus direct model", "hybrid-direct", "direct"),
    )
    yield claim(
        "hybrid-4x",
        "The same with 4x steps for both.",
        _csi("hybrid direct model minus direct model, 4x steps each", "hybrid-direct-4x", "direct-4x"),
        _mse("hybrid direct model minus direct model, 4x steps each", "hybrid-direct-4x", "direct-4x"),
    )
    yield claim(
        "hybrid-quarter",
        "It needs a quarter of the steps.",
        _csi("hybrid direct model minus direct model with 4x steps", "hybrid-direct", "direct-4x"),
    )
    yield claim(
        "hybrid-quarter-4x",
        "The same with 4x steps against 16x steps.",
        _csi("hybrid direct model with 4x steps minus direct model with 16x steps", "hybrid-direct-4x", "direct-16x"),
    )
    yield claim(
        "hybrid-skill",
        "A hybrid student has a higher CSI-M than extrapolation (pysteps Lucas-Kanade and ours) and a lower MSE than "
        "pysteps Lucas-Kanade.",
        _csi("hybrid student minus pysteps Lucas-Kanade", "hybrid-student", PYSTEPS),
        _csi("hybrid student minus extrapolation", "hybrid-student", EXTRAPOLATION),
        _mse("hybrid student minus pysteps Lucas-Kanade", "hybrid-student", PYSTEPS),
    )
    yield claim(
        "hybrid-skill-4x",
        "The same for a hybrid student with 4x steps.",
        _csi("hybrid student with 4x steps minus pysteps Lucas-Kanade", "hybrid-student-4x", PYSTEPS),
        _csi("hybrid student with 4x steps minus extrapolation", "hybrid-student-4x", EXTRAPOLATION),
        _mse("hybrid student with 4x steps minus pysteps Lucas-Kanade", "hybrid-student-4x", PYSTEPS),
    )
    yield claim(
        "hybrid-skill-warm",
        "The same for a hybrid student with 4x steps that begins with the weights of its teacher (4x steps).",
        _csi("4x hybrid student with warm start minus pysteps Lucas-Kanade", "hybrid-student-4x-warm", PYSTEPS),
        _csi("4x hybrid student with warm start minus extrapolation", "hybrid-student-4x-warm", EXTRAPOLATION),
        _mse("4x hybrid student with warm start minus pysteps Lucas-Kanade", "hybrid-student-4x-warm", PYSTEPS),
    )
    yield claim(
        "hybrid-leads",
        "The latter has a higher CSI-M than extrapolation (pysteps Lucas-Kanade and ours) at every lead time.",
        *(
            difference(
                f"CSI-M at lead time {lead}, 4x hybrid student with warm start minus {name}",
                "hybrid-student-4x-warm", baseline, f"lead/{lead}/csi/mean",
            )
            for baseline, name in ((PYSTEPS, "pysteps Lucas-Kanade"), (EXTRAPOLATION, "extrapolation"))
            for lead in range(1, study.sequence.frames_out + 1)
        ),
    )  # fmt: skip
    yield claim(
        "hybrid-first-lead",
        "A hybrid direct model beats persistence at the first lead time.",
        difference(
            "CSI-M at lead time 1, hybrid direct model minus persistence",
            "hybrid-direct",
            PERSISTENCE,
            "lead/1/csi/mean",
        ),
    )
    yield claim(
        "hybrid-rollout",
        "A rolled-out hybrid teacher beats the hybrid direct model at equal steps.",
        _csi("hybrid teacher minus hybrid direct model", "hybrid-teacher", "hybrid-direct"),
    )
    yield claim(
        "hybrid-rollout-4x",
        "The same with 4x steps for both.",
        _csi("hybrid teacher minus hybrid direct model, 4x steps each", "hybrid-teacher-4x", "hybrid-direct-4x"),
    )
    yield claim(
        "hybrid-oracle",
        "A hybrid student of a perfect teacher beats the hybrid direct model (both on sequences with later frames).",
        ORACLE,
    )
    yield claim(
        "hybrid-distillation",
        "A hybrid student from scratch has a higher CSI-M than its teacher, rolled out, and the hybrid direct model.",
        _csi("hybrid student minus hybrid teacher", "hybrid-student", "hybrid-teacher"),
        _csi("hybrid student minus hybrid direct model", "hybrid-student", "hybrid-direct"),
        oracle=ORACLE,
    )
    yield claim(
        "hybrid-distillation-4x",
        "The same with 4x steps for all.",
        _csi("hybrid student minus hybrid teacher, 4x steps each", "hybrid-student-4x", "hybrid-teacher-4x"),
        _csi("hybrid student minus hybrid direct model, 4x steps each", "hybrid-student-4x", "hybrid-direct-4x"),
        oracle=ORACLE,
    )
    yield claim(
        "hybrid-warm",
        "A hybrid student initialized with the teacher's weights has a higher CSI-M and a lower FAR than its "
        "rolled-out teacher.",
        _csi("hybrid student with warm start minus hybrid teacher", "hybrid-student-warm", "hybrid-teacher"),
        difference(
            "FAR-181, hybrid student with warm start minus hybrid teacher",
            "hybrid-student-warm",
            "hybrid-teacher",
            "far/181",
            -1,
        ),
    )
    yield claim(
        "hybrid-warm-4x",
        "With 4x steps for both, a hybrid student initialized with the teacher's weights has a higher CSI-M than its "
        "rolled-out teacher.",
        _csi(
            "4x hybrid student with warm start minus hybrid teacher with 4x steps",
            "hybrid-student-4x-warm",
            "hybrid-teacher-4x",
        ),
    )
    yield claim(
        "hybrid-warm-16x",
        "It beats a direct model without extrapolation that has 16x steps.",
        _csi(
            "4x hybrid student with warm start minus direct model with 16x steps",
            "hybrid-student-4x-warm",
            "direct-16x",
        ),
    )


def few_data_claims(study: Study) -> Iterator[Claim]:
    """Yield the claims on few training events: the oracle, the student from scratch, the warm start."""
    for events in study.few_events:
        direct, oracle, teacher, student, warm = (
            f"{arm}-n{events}" for arm in ("direct", "oracle", "teacher", "student", "student-warm")
        )
        control = _csi(f"student of a perfect teacher minus direct model, {events} events", oracle, direct)
        yield Claim(
            f"few-oracle-{events}",
            f"With {events} training events, a student of a perfect teacher beats the direct model.",
            (control,),
            origin="few data",
        )
        yield Claim(
            f"few-student-{events}",
            f"With {events} training events, the student has a higher CSI-M than the direct model and its teacher.",
            (
                _csi(f"student minus direct model, {events} events", student, direct),
                _csi(f"student minus teacher, {events} events", student, teacher),
            ),
            origin="few data",
            oracle=control,
        )
        yield Claim(
            f"few-error-{events}",
            f"With {events} training events, the student has a lower MSE than the direct model.",
            (_mse(f"student minus direct model, {events} events", student, direct),),
            origin="few data",
            oracle=_mse(f"student of a perfect teacher minus direct model, {events} events", oracle, direct),
        )
        yield Claim(
            f"few-warm-{events}",
            f"With {events} training events, a student initialized with the teacher's weights has a higher CSI-M than "
            "its teacher and than the direct model.",
            (
                _csi(f"student with warm start minus teacher, {events} events", warm, teacher),
                _csi(f"student with warm start minus direct model, {events} events", warm, direct),
            ),
            origin="few data",
        )
