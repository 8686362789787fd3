"""Layouts of raw data on disk: the field ``layout`` of a dataset description."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from simcast_hpc.config import StrictModel


class ArchiveLayout(StrictModel):
    """SEVIR's layout: ``CATALOG.csv`` and HDF5 files of events, read in place or prepared (``archive_windows.py``)."""

    kind: Literal["archive"] = "archive"


class HKO7Layout(StrictModel):
    """HKO-7's layout: ``radarPNG/YYYY/MM/DD/RADyymmddHHMM00.png``, gray, every 6 minutes; an event is a day.

    ``masks`` contains one zlib-compressed boolean file per frame, true where valid; ``domain_file`` is ``mask_dat.npz``
    of the HKO-7 repository, whose ``exclude_mask`` is 1 outside the radar's circle. ``domain`` and ``noise`` decide
    what masked pixels become: missing, 0 (as in CasCast), or unchanged (``ignore``).
    """

    kind: Literal["hko7"]
    images: Path = Path("radarPNG")
    masks: Path = Path("radarPNG_mask")
    domain_file: Path = Path("mask_dat.npz")
    domain: Literal["missing", "zero", "ignore"] = "missing"
    noise: Literal["missing", "zero", "ignore"] = "missing"


class Crop(StrictModel):
    """A rectangle of the grid; row 0 is the first row of the file."""

    top: int = Field(default=0, ge=0)
    left: int = Field(default=0, ge=0)
    height: PositiveInt
    width: PositiveInt


class RainSelection(StrictModel):
    """CasCast's selection of rainy events in a gap-free run of frames.

    Frame i, starting at ``first_frame``, is a hit if its mean exceeds ``mean``. The event is the ``before`` frames
    before it and ``after`` frames from it on, if their mean is at least ``mean``; the search then continues
    ``after + 1`` frames later. Means are over the stored values in the unit of the file, no echo included.
    """

    mean: PositiveFloat
    before: PositiveInt
    after: PositiveInt
    first_frame: PositiveInt = 20


class MeteoNetLayout(StrictModel):
    """MeteoNet's npz files, loose or in tar files: ``data`` int16 ``[T, H, W]``, ``dates``, ``miss_dates``.

    ``reflectivity_old`` is in dBZ with 255 missing, ``reflectivity_new`` in tenths of dBZ with -100 no echo and -200
    missing, ``rainfall`` in hundredths of mm per 5 minutes with -1 missing. An event has ``event_frames`` consecutive
    frames; with ``whole_frames``, a frame with a missing pixel in the crop ends a run.
    """

    kind: Literal["meteonet"]
    product: Literal["reflectivity_old", "reflectivity_new", "rainfall"]
    region: Literal["NW", "SE"]
    crop: Crop | None = None
    event_frames: PositiveInt = 24
    whole_frames: bool = True
    selection: RainSelection | None = None


Layout = Annotated[ArchiveLayout | HKO7Layout | MeteoNetLayout, Field(discriminator="kind")]
