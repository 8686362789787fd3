"""Arms of the study.

An arm is a way to train, and a unit is an arm with a seed. ``arms_of`` returns the arms in the order of training; an
arm with a teacher names the arm whose weights it uses.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from simcast_hpc.config import ConfigError

from .study import FULL_WEIGHT, Study

Base = Literal["none", "persistence", "extrapolation"]
Extension = Literal["teacher", "oracle", "none"]
Group = Literal["main", "hybrid", "long", "few-data"]
Windows = Literal["strided", "anywhere", "with_future"]

PERSISTENCE, EXTRAPOLATION, PYSTEPS = "persistence", "extrapolation", "pysteps-lk"
BASELINES = (PERSISTENCE, EXTRAPOLATION, PYSTEPS)
"""Forecasts without training, scored like arms; they have no seed."""
GROUPS: tuple[Group, ...] = ("main", "hybrid", "long", "few-data")
"""Groups of arms in the order of training; an arm's teacher is in its own group or an earlier one."""


class Arm(NamedTuple):
    """One way to train.

    ``frames_out`` is the horizon of one pass; if it is shorter than T_l, the network is rolled out. ``steps`` is the
    number of optimizer steps. ``windows`` selects training sequences: at the stride of the archive, ``anywhere`` in the
    event, or those of the stride with T_l later real frames. ``teacher`` is the arm whose weights extend the sequences
    or initialize the student. ``base`` is ``model.base``. ``events`` is the number of training events (None: all).
    ``augment`` trains on the eight symmetries. ``select`` keeps the weights with the highest CSI-M of the val split,
    not those of the last step.
    """

    name: str
    stage: Literal["direct", "teacher", "student"]
    frames_out: int
    steps: int
    weight: float = FULL_WEIGHT
    windows: Windows = "strided"
    teacher: str | None = None
    extension: Extension = "none"
    warm_start: bool = False
    base: Base = "none"
    events: int | None = None
    augment: bool = True
    select: bool = False
    group: Group = "main"


def arms_of(study: Study) -> tuple[Arm, ...]:
    """Return all arms by group; teachers precede their students."""
    arms = (*_main(study), *_hybrid(study), *_long(study), *_few_data(study))
    return tuple(sorted(arms, key=lambda arm: GROUPS.index(arm.group)))


def arm_named(study: Study, name: str) -> Arm:
    """Return an arm by its name.

    Raises:
        ConfigError: the study has no such arm.
    """
    for arm in arms_of(study):
        if arm.name == name:
            return arm
    raise ConfigError(f"the study has no arm {name!r}; its arms are {', '.join(arm.name for arm in arms_of(study))}")


class _Maker:
    """Arms of one group with common settings."""

    def __init__(self, study: Study, **common: Any):
        self.study, self.common = study, {"steps": study.steps, **common}

    def direct(self, name: str, **own: Any) -> Arm:
        return Arm(name, "direct", self.study.sequence.frames_out, **{**self.common, **own})

    def teacher(self, name: str, frames_out: int | None = None, **own: Any) -> Arm:
        return Arm(name, "teacher", frames_out or self.study.half_horizon, **{**self.common, **own})

    def student(self, name: str, of: str, **own: Any) -> Arm:
        settings = {**self.common, "teacher": of, "extension": "teacher", **own}
        return Arm(name, "student", self.study.sequence.frames_out, **settings)

    def oracle(self, name: str, **own: Any) -> Arm:
        settings = {**self.common, "windows": "with_future", "extension": "oracle", **own}
        return Arm(name, "student", self.study.sequence.frames_out, **settings)


def _main(study: Study) -> Iterator[Arm]:
    """Arms of the paper's claims and their controls at equal steps."""
    make, half = _Maker(study), study.half_horizon
    yield make.direct("direct")
    yield make.direct("direct-w1", weight=1.0)
    for horizon in sorted(study.horizons, reverse=True):
        yield make.teacher(f"teacher-{horizon}", horizon)
        yield make.student(f"student-{horizon}", f"teacher-{horizon}")
    yield make.direct("direct-2x", steps=2 * study.steps)
    yield make.direct("crop", windows="anywhere")
    for weight in study.weights:
        if weight not in (1.0, FULL_WEIGHT):
            yield make.direct(f"direct-w{weight:g}", weight=weight)
    yield make.teacher("teacher-w1", weight=1.0)
    yield make.student("student-w1", "teacher-w1", weight=1.0)
    yield make.student("student-warm", f"teacher-{half}", warm_start=True)
    yield make.direct("future-direct", windows="with_future")
    yield make.teacher("future-teacher", windows="with_future")
    yield make.student("future-student", "future-teacher", windows="with_future")
    yield make.oracle("future-oracle")


def _hybrid(study: Study) -> Iterator[Arm]:
    """Networks with ``model.base: extrapolation``."""
    make = _Maker(study, base="extrapolation", group="hybrid")
    yield make.direct("hybrid-direct")
    yield make.teacher("hybrid-teacher")
    yield make.student("hybrid-student", "hybrid-teacher")
    yield make.direct("hybrid-direct-4x", steps=4 * study.steps)
    yield make.teacher("hybrid-teacher-4x", steps=4 * study.steps)
    yield make.student("hybrid-student-4x", "hybrid-teacher-4x", steps=4 * study.steps)
    yield make.student("hybrid-student-warm", "hybrid-teacher", warm_start=True)
    yield make.student("hybrid-student-4x-warm", "hybrid-teacher-4x", steps=4 * study.steps, warm_start=True)
    yield make.direct("hybrid-future-direct", windows="with_future")
    yield make.oracle("hybrid-future-oracle")


def _long(study: Study) -> Iterator[Arm]:
    """Arms with more optimizer steps; the factor is in the name."""
    make, steps = _Maker(study, group="long"), study.steps
    yield make.teacher("teacher-4x", steps=4 * steps)
    yield make.student("student-of-4x", "teacher-4x")
    yield make.direct("direct-4x", steps=4 * steps)
    yield make.direct("direct-5x", steps=5 * steps)
    yield make.student("student-4x", "teacher-4x", steps=4 * steps)
    yield make.student("student-4x-warm", "teacher-4x", steps=4 * steps, warm_start=True)
    yield make.direct("direct-16x", steps=16 * steps)
    yield make.teacher("teacher-16x", steps=16 * steps)
    yield make.student("student-of-16x", "teacher-16x")
    yield make.student("student-4x-of-16x", "teacher-16x", steps=4 * steps)


def _few_data(study: Study) -> Iterator[Arm]:
    """Arms with few training events, without symmetries, with weights selected on the val split."""
    for events in study.few_events:
        make = _Maker(
            study, steps=2 * study.steps, windows="with_future", events=events, augment=False, select=True,
            group="few-data",
        )  # fmt: skip
        yield make.direct(f"direct-n{events}")
        yield make.oracle(f"oracle-n{events}")
        yield make.teacher(f"teacher-n{events}")
        yield make.student(f"student-n{events}", f"teacher-n{events}")
        yield make.student(f"student-warm-n{events}", f"teacher-n{events}", warm_start=True)
