"""Layouts of raw data on disk: the field ``layout`` of a dataset description."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from simcast_hpc.config import StrictModel, Unit
from simcast_hpc.config.names import PathBelow


class ArchiveLayout(StrictModel):
    """SEVIR's layout: ``CATALOG.csv`` and HDF5 files of events, read in place or prepared (``archive_windows.py``)."""

    kind: Literal["archive"] = "archive"
    """Selects an archive with a catalog."""


class HKO7Layout(StrictModel):
    """HKO-7's layout: ``radarPNG/YYYY/MM/DD/RADyymmddHHMM00.png``, gray, every 6 minutes; an event is a day.

    ``masks`` contains one zlib-compressed boolean file per frame, true where valid; ``domain_file`` is ``mask_dat.npz``
    of the HKO-7 repository, whose ``exclude_mask`` is 1 outside the radar's circle. ``domain`` and ``noise`` decide
    what masked pixels become: missing, 0 (as in CasCast), or unchanged (``ignore``).
    """

    kind: Literal["hko7"]
    """Selects the layout of HKO-7."""
    images: PathBelow = Path("radarPNG")
    """Folder of the images below the data root."""
    masks: PathBelow = Path("radarPNG_mask")
    """Folder of the noise masks below the data root."""
    domain_file: PathBelow = Path("mask_dat.npz")
    """File below the data root with the mask of the radar's circle."""
    domain: Literal["missing", "zero", "ignore"] = "missing"
    """Value of pixels outside the radar's circle: missing, 0, or unchanged (`ignore`)."""
    noise: Literal["missing", "zero", "ignore"] = "missing"
    """Value of pixels in the noise masks: missing, 0, or unchanged (`ignore`)."""


class Crop(StrictModel):
    """A rectangle of the grid; row 0 is the first row of the file."""

    top: Annotated[int, Unit("pixels")] = Field(default=0, ge=0)
    """First row."""
    left: Annotated[int, Unit("pixels")] = Field(default=0, ge=0)
    """First column."""
    height: Annotated[PositiveInt, Unit("pixels")]
    """Number of rows."""
    width: Annotated[PositiveInt, Unit("pixels")]
    """Number of columns."""


class RainSelection(StrictModel):
    """CasCast's selection of rainy events in a gap-free run of frames.

    The search starts at frame ``first_frame``. A frame whose mean exceeds ``mean`` is a hit. The event consists of the
    ``before`` frames before the hit, the hit, and the next ``after - 1`` frames, if their mean is at least ``mean``;
    the search then continues ``after + 1`` frames after the hit. Means are over the stored values in the unit of the
    file, no echo included.
    """

    mean: Annotated[PositiveFloat, Unit("unit of the file")]
    """Threshold of the mean over a frame."""
    before: Annotated[PositiveInt, Unit("frames")]
    """Number of frames before the hit."""
    after: Annotated[PositiveInt, Unit("frames")]
    """Number of frames from the hit on."""
    first_frame: Annotated[PositiveInt, Unit("1")] = 20
    """Index of the first frame that can be a hit."""


class MeteoNetLayout(StrictModel):
    """MeteoNet's npz files, loose or in tar files: ``data`` int16 ``[T, H, W]``, ``dates``, ``miss_dates``.

    ``reflectivity_old`` is in dBZ with 255 missing, ``reflectivity_new`` in tenths of dBZ with -100 no echo and -200
    missing, ``rainfall`` in hundredths of mm per 5 minutes with -1 missing. An event has ``event_frames`` consecutive
    frames; with ``whole_frames``, a frame with a missing pixel in the crop ends a run.
    """

    kind: Literal["meteonet"]
    """Selects the layout of MeteoNet."""
    product: Literal["reflectivity_old", "reflectivity_new", "rainfall"]
    """Product, which decides the unit and the missing value of the files."""
    region: Literal["NW", "SE"]
    """Region of France."""
    crop: Crop | None = None
    """Rectangle to crop; null keeps the whole grid."""
    event_frames: Annotated[PositiveInt, Unit("frames")] = 24
    """Number of consecutive frames of an event."""
    whole_frames: bool = True
    """Whether a frame with a missing pixel in the crop ends a run of frames."""
    selection: RainSelection | None = None
    """Selection of rainy events; null keeps all events."""


Layout = Annotated[ArchiveLayout | HKO7Layout | MeteoNetLayout, Field(discriminator="kind")]
