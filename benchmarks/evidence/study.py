"""Configuration of the study.

Its arms are in :mod:`benchmarks.evidence.arms`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from simcast_hpc.config import OptimizerConfig, SimVPConfig, StrictModel, read_config
from simcast_hpc.verification import PROTOCOLS

STUDY = Path(__file__).with_name("study.yaml")
BOX_KM = 384
"""Side of an event in km, as in SEVIR, for any number of pixels."""
FULL_WEIGHT = 10.0
"""w_max of the paper (SimCast Eq. 2): the default weight of an arm."""


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
    teachers. ``few_events`` are the numbers of training events of the arms with few data.
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
    few_events: tuple[PositiveInt, ...] = (12, 36, 100)
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
        if not self.few_events or max(self.few_events) > self.archive.events["train"]:
            raise ValueError(
                f"few_events={self.few_events} must be numbers of at most archive.events.train="
                f"{self.archive.events['train']} events"
            )
        known = PROTOCOLS["sevir-global"].thresholds
        unknown = [value for value in self.scoring.fss_thresholds if value not in known]
        if unknown:
            raise ValueError(f"scoring.fss_thresholds contains {unknown[0]}; choose from {known}")
        if self.scoring.fss_pixels % 2 == 0:
            raise ValueError(f"scoring.fss_pixels={self.scoring.fss_pixels} must be odd")
        for split in ("val", "test"):
            if self.archive.events[split] % self.scoring.events_per_block:
                raise ValueError(
                    f"archive.events.{split}={self.archive.events[split]} is not a multiple of "
                    f"scoring.events_per_block={self.scoring.events_per_block}"
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
