"""Which data set a run reads, how windows are cut from its events, and how many frames a window has."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from .path_expansion import FieldPath, NameOrPath
from .stage_sections import Added, Operational, Section, StrictModel, Unit


class SequenceConfig(Section):
    """Numbers of input and output frames; output k (from 1) is valid ``k * step_minutes`` after the last input."""

    frames_in: Annotated[PositiveInt, Unit("frames")] = 13
    """Number of observed frames that the model receives."""
    frames_out: Annotated[PositiveInt, Unit("frames")] = 12
    """Number of frames that the stages `student`, `direct` and `diffusion` forecast: the long horizon."""
    teacher_frames_out: Annotated[PositiveInt, Unit("frames")] = 6
    """Number of frames that the teacher forecasts: the short horizon (SimCast section 3: half of the long one)."""

    @model_validator(mode="after")
    def _teacher_is_shorter(self) -> Self:
        if self.teacher_frames_out > self.frames_out:
            raise ValueError(
                f"sequence.teacher_frames_out={self.teacher_frames_out} is longer than sequence.frames_out="
                f"{self.frames_out}; choose at most {self.frames_out}, usually half of it"
            )
        return self


class HoldOutConfig(StrictModel):
    """Train without one fold of the events; an event's fold is a hash of its identifier."""

    folds: Annotated[int, Unit("folds")] = Field(ge=2)
    """Number of folds into which the events are divided."""
    fold: Annotated[int, Unit("1")] = Field(ge=0)
    """Index of the fold that is excluded from training, from 0."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(
                f"data.hold_out.fold={self.fold} is not below data.hold_out.folds={self.folds}; "
                f"choose 0 to {self.folds - 1}"
            )
        return self


class ImportanceSamplingConfig(StrictModel):
    """Draw training windows and crops by their mean rain rate.

    The relative probability of a mean rain rate R is
    ``min(1, minimum_probability + mean_weight (1 - exp(-R / saturation)))``. Each epoch draws as many windows as there
    are; wet windows occur more than once, dry ones not in every epoch.
    """

    kind: Literal["importance"]
    """Selects importance sampling (DGMR, Ravuri et al. 2021; defaults of mlcast-dataset-sampler)."""
    minimum_probability: Annotated[float, Unit("1")] = Field(default=1e-4, gt=0, le=1)
    """Relative probability of a window without rain."""
    mean_weight: Annotated[float, Unit("1")] = Field(default=0.1, ge=0, le=1)
    """Additional relative probability of a window whose mean rain rate is far above ``saturation``."""
    saturation: Annotated[PositiveFloat, Unit("mm/h")] = 1.0
    """Mean rain rate at which the probability levels off; in the unit of the encoding for data in another unit than
    mm/h or dBZ."""
    crop_candidates: Annotated[int, Unit("crops")] = Field(default=8, ge=1, le=64)
    """Number of random positions from which the crop of a sample is drawn, by the same probability; 1 draws crops
    uniformly."""


class CropConfig(StrictModel):
    """A random square crop of each training sample, with a margin that the loss does not count."""

    size: Annotated[PositiveInt, Unit("pixels")]
    """Side of the square that the loss counts."""
    margin: Annotated[int, Unit("pixels")] = Field(default=0, ge=0)
    """Width of the border around it that the network sees and the loss does not count. Near the border of a crop the
    rain that moves in is unknown. ``simcast predict`` discards the same margin of each tile."""
    minimum_coverage: Annotated[float, Unit("1")] = Field(default=0.1, ge=0, le=1)
    """Smallest share of valid pixels in the square. Crops with less are drawn again, up to 16 times."""

    @model_validator(mode="after")
    def _margin_fits(self) -> Self:
        if 2 * self.margin > self.size:
            raise ValueError(
                f"data.crop.margin={self.margin} is more than half of data.crop.size={self.size}; choose at most "
                f"{self.size // 2}"
            )
        return self

    @property
    def side(self) -> int:
        """Side of the square that is read: size and both margins."""
        return self.size + 2 * self.margin


def _crop_tag(value: Any) -> str:
    return "(mapping)" if isinstance(value, dict | CropConfig) else "(pixels)"


# The tags keep the errors of one form out of those of the other.
Crop = Annotated[
    Annotated[PositiveInt, Tag("(pixels)")] | Annotated[CropConfig, Tag("(mapping)")], Discriminator(_crop_tag)
]


class DataConfig(Section):
    """The data set, its location, and how windows are cut from its events."""

    dataset: Operational[NameOrPath | None] = "sevir"
    """A built-in data set description (``sevir``, ``synthetic``, ...), or the path of a YAML file with one; null reads
    ``dataset.yaml`` in ``data.root``, which ``simcast data import`` writes.

    Operational, because the run adds the content of the description to its scientific identity."""
    root: Operational[FieldPath | None] = None
    """Folder of the archive or of the prepared shards."""
    frame_stride: Annotated[PositiveInt, Unit("frames")] = 1
    """Use every n-th frame of an event; the time step becomes n times longer."""
    window_stride: Annotated[PositiveInt, Unit("frames")] = 12
    """Number of frames between the first frames of consecutive windows of an event, counted after ``frame_stride``."""
    block_mean: Annotated[PositiveInt, Unit("pixels")] = 1
    """Side of the blocks of pixels that are averaged to one pixel, in physical units and over valid pixels; 1 keeps the
    grid. Requires a data set with a known encoding."""
    recode_as: Operational[NameOrPath | None] = None
    """Name of another data set whose encoding the frames are converted to; both need a known encoding. null keeps the
    encoding."""
    file_names: tuple[str, ...] | None = None
    """Use only events in these files (column ``file_name`` of the catalog); null uses all files."""
    max_percent_missing: Annotated[float | None, Unit("%")] = 0.0
    """Skip events in which more than this share of the pixels is missing; null keeps all events. Without this key, null
    for a data set description in a file, because a composite has pixels that no radar covers."""
    workers: Operational[Annotated[int, Unit("processes per rank")]] = Field(default=0, ge=0)
    """Number of data loader processes per rank; 0 reads in the training process."""
    augment: bool = False
    """Flip and rotate each training sample at random; the random numbers depend only on seed, sample and epoch."""
    crop: Crop | None = None
    """Side in pixels of the random square that is cropped from each training sample, or a mapping with ``size`` and
    ``margin``; null trains on full frames."""
    sampling: Added[ImportanceSamplingConfig | None] = None
    """How training windows are drawn: null draws each once per epoch; ``{kind: importance}`` prefers windows and crops
    with rain, and needs prepared data."""
    stage_to: Operational[str | None] = None
    """Folder on the node's local disk, such as ``$SLURM_TMPDIR``: prepared shards are copied to ``simcast-UID`` in it
    before training; null reads them from ``data.root``."""
    hold_out: HoldOutConfig | None = None
    """Fold of the events to exclude from the split ``train``; null trains on all events."""

    @property
    def cropping(self) -> CropConfig | None:
        """The crop as a section; an integer is a uniform crop without margin."""
        if isinstance(self.crop, int):
            return CropConfig(size=self.crop, margin=0, minimum_coverage=0.0)
        return self.crop

    @model_validator(mode="after")
    def _keep_missing_pixels_of_own_data(self) -> Self:
        """Set the default of ``max_percent_missing`` for descriptions that are not built in."""
        is_own = self.dataset is None or self.dataset.endswith((".yaml", ".yml"))
        if is_own and "max_percent_missing" not in self.model_fields_set:
            object.__setattr__(self, "max_percent_missing", None)  # the model is frozen
        return self
