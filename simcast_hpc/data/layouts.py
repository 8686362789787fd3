"""How raw data stands on disk before it is prepared, as the field ``layout`` of a description says it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from simcast_hpc.config import StrictModel


class ArchiveLayout(StrictModel):
    """SEVIR's: ``CATALOG.csv`` and HDF5 files of whole events, read in place or prepared (``archive.py``)."""

    kind: Literal["archive"] = "archive"


class HKO7Layout(StrictModel):
    """HKO-7's: ``radarPNG/YYYY/MM/DD/RADyymmddHHMM00.png``, grey, every 6 minutes; an event is a day.

    ``masks`` holds a zlib-compressed boolean file a frame, true where valid; ``domain_file`` is the repository's
    ``mask_dat.npz``, whose ``exclude_mask`` is 1 outside the radar's circle. Pixels that a mask excludes become
    missing, or 0 as in CasCast, or the mask is not looked at.
    """

    kind: Literal["hko7"]
    images: Path = Path("radarPNG")
    masks: Path = Path("radarPNG_mask")
    domain_file: Path = Path("mask_dat.npz")
    domain: Literal["missing", "zero", "ignore"] = "missing"
    noise: Literal["missing", "zero", "ignore"] = "missing"


class Crop(StrictModel):
    """A part of the grid; row 0 is the first row of the file."""

    top: int = Field(default=0, ge=0)
    left: int = Field(default=0, ge=0)
    height: PositiveInt
    width: PositiveInt


class RainSelection(StrictModel):
    """CasCast's choice of rainy events in an unbroken run of frames (method.md 4.3).

    Frame i, from ``first_frame`` on, is a hit where its mean exceeds ``mean``; the event is the ``before`` frames
    before it and ``after`` from it on, if their mean is at least ``mean``; the search goes on ``after + 1`` frames
    later. Means are over the values of the file, in its own unit, no echo counting as it is written there.
    """

    mean: PositiveFloat
    before: PositiveInt
    after: PositiveInt
    first_frame: PositiveInt = 20


class MeteoNetLayout(StrictModel):
    """MeteoNet's npz files, loose or inside its tar files: ``data`` int16 ``[T, H, W]``, ``dates``, ``miss_dates``.

    ``reflectivity_old`` is in dBZ with 255 missing, ``reflectivity_new`` in tenths of dBZ with -100 no echo and -200
    missing, ``rainfall`` in hundredths of mm per 5 minutes with -1 missing. An event has ``event_frames`` frames of
    one unbroken run; a frame with a missing pixel in the crop breaks a run if ``whole_frames``.
    """

    kind: Literal["meteonet"]
    product: Literal["reflectivity_old", "reflectivity_new", "rainfall"]
    region: Literal["NW", "SE"]
    crop: Crop | None = None
    event_frames: PositiveInt = 24
    whole_frames: bool = True
    selection: RainSelection | None = None


Layout = Annotated[ArchiveLayout | HKO7Layout | MeteoNetLayout, Field(discriminator="kind")]
