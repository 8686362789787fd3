"""Configuration of the study, and its arms.

An arm is a way to train, and a unit is an arm with a seed. ``arms_of`` returns the arms in the order of training; an
arm with a teacher names the arm whose weights it uses.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from simcast_hpc.config import ConfigError, OptimizerConfig, SimVPConfig, StrictModel, read_config
from simcast_hpc.verification import PROTOCOLS

STUDY = Path(__file__).with_name("study.yaml")
BOX_KM = 384
"""Side of an event in km, as in SEVIR, for any number of pixels."""
FULL_WEIGHT = 10.0
"""w_max of the paper (SimCast Eq. 2): the default weight of an arm."""

Extension = Literal["teacher", "oracle", "none"]
Windows = Literal["strided", "anywhere", "with_future"]


class ArchiveSettings(StrictModel):
    """The synthetic archive of ``simcast_hpc/data/synthetic.py``: splits by index, events of SEVIR's length."""

    seed: int = Field(ge=0)
    events: dict[Literal["train", "val", "test"], PositiveInt]
    size: PositiveInt
    frames_per_event: PositiveInt = 49


class Frames(StrictModel):
    """T and T_l, in frames."""

    frames_in: PositiveInt
    frames_out: PositiveInt


class ScoringSettings(StrictModel):
    """Counting of forecasts: test events are summed in blocks of consecutive generator indices.

    ``window_stride`` applies to ``test`` and ``val``; ``fss_pixels`` is the odd width of the neighborhood.
    """

    window_stride: PositiveInt
    events_per_block: PositiveInt
    fss_pixels: PositiveInt
    fss_thresholds: tuple[int, ...]
    batch_size: PositiveInt = 32


class Study(StrictModel):
    """All settings of the study.

    ``steps`` is the number of optimizer steps of an arm without a factor in its name; ``horizons`` are the T_s of the
    teachers.
    """

    name: str
    archive: ArchiveSettings
    sequence: Frames
    window_stride: PositiveInt
    model: SimVPConfig
    batch_size: PositiveInt
    optimizer: OptimizerConfig
    steps: PositiveInt
    horizons: tuple[PositiveInt, ...]
    weights: tuple[PositiveFloat, ...]
    seeds: tuple[int, ...]
    scoring: ScoringSettings

    @model_validator(mode="after")
    def _fits(self) -> "Study":
        future = self.sequence.frames_in + 2 * self.sequence.frames_out
        if future > self.archive.frames_per_event:
            raise ValueError(
                f"archive.frames_per_event={self.archive.frames_per_event} is too short for the oracle extension, "
                f"which requires {future}"
            )
        if not self.horizons or max(self.horizons) > self.sequence.frames_out:
            raise ValueError(f"horizons={self.horizons} must be lengths of at most {self.sequence.frames_out} frames")
        if FULL_WEIGHT not in self.weights or 1.0 not in self.weights:
            raise ValueError(f"weights={self.weights} must contain 1 and {FULL_WEIGHT:g}")
        known = PROTOCOLS["sevir-global"].thresholds
        unknown = [value for value in self.scoring.fss_thresholds if value not in known]
        if unknown:
            raise ValueError(f"scoring.fss_thresholds contains {unknown[0]}; choose from {known}")
        if self.scoring.fss_pixels % 2 == 0:
            raise ValueError(f"scoring.fss_pixels={self.scoring.fss_pixels} must be odd")
        if self.archive.events["test"] % self.scoring.events_per_block:
            raise ValueError(
                f"archive.events.test={self.archive.events['test']} is not a multiple of scoring.events_per_block="
                f"{self.scoring.events_per_block}"
            )
        return self

    @property
    def half_horizon(self) -> int:
        """T_s of the paper: the longest of ``horizons``."""
        return max(self.horizons)


def read_study(path: Path = STUDY, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study.

    Raises:
        ConfigError: it is invalid.
    """
    return read_config(Study, path, overrides)


class Arm(NamedTuple):
    """One way to train.

    ``frames_out`` is the horizon of one pass; if it is shorter than T_l, the network is rolled out. ``steps`` is the
    number of optimizer steps. ``windows`` selects training sequences: at the stride of the archive, ``anywhere`` in the
    event, or those of the stride with T_l later real frames. ``teacher`` is the arm whose weights extend the sequences
    or initialize the student.
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


PERSISTENCE = "persistence"


def arms_of(study: Study) -> tuple[Arm, ...]:
    """Return all arms; teachers precede their students, the most expensive arms are last."""
    steps, long, half = study.steps, study.sequence.frames_out, study.half_horizon

    def direct(name: str, **other: object) -> Arm:
        return Arm(name, "direct", long, **{"steps": steps, **other})  # pyright: ignore[reportArgumentType]

    def teacher(name: str, frames_out: int = half, **other: object) -> Arm:
        return Arm(name, "teacher", frames_out, **{"steps": steps, **other})  # pyright: ignore[reportArgumentType]

    def student(name: str, of: str, **other: object) -> Arm:
        settings = {"steps": steps, "teacher": of, "extension": "teacher", **other}
        return Arm(name, "student", long, **settings)  # pyright: ignore[reportArgumentType]

    pairs = [
        arm
        for horizon in sorted(study.horizons, reverse=True)
        for arm in (teacher(f"teacher-{horizon}", horizon), student(f"student-{horizon}", f"teacher-{horizon}"))
    ]
    return (
        direct("direct"),
        direct("direct-w1", weight=1.0),
        *pairs,
        direct("direct-2x", steps=2 * steps),
        direct("crop", windows="anywhere"),
        *(direct(f"direct-w{weight:g}", weight=weight) for weight in study.weights if weight not in (1.0, FULL_WEIGHT)),
        teacher("teacher-w1", weight=1.0),
        student("student-w1", "teacher-w1", weight=1.0),
        student("student-warm", f"teacher-{half}", warm_start=True),
        direct("future-direct", windows="with_future"),
        teacher("future-teacher", windows="with_future"),
        student("future-student", "future-teacher", windows="with_future"),
        Arm("future-oracle", "student", long, steps, windows="with_future", extension="oracle"),
        teacher("teacher-4x", steps=4 * steps),
        student("student-of-4x", "teacher-4x"),
        direct("direct-5x", steps=5 * steps),
        student("student-4x", "teacher-4x", steps=4 * steps),
        teacher("teacher-16x", steps=16 * steps),
        student("student-of-16x", "teacher-16x"),
        student("student-4x-of-16x", "teacher-16x", steps=4 * steps),
    )


def arm_named(study: Study, name: str) -> Arm:
    """Return an arm by its name.

    Raises:
        ConfigError: the study has no such arm.
    """
    for arm in arms_of(study):
        if arm.name == name:
            return arm
    raise ConfigError(f"the study has no arm {name!r}; its arms are {', '.join(arm.name for arm in arms_of(study))}")
