"""Dataset descriptions, read from YAML: quantity, encoding, cadence, grid, thresholds, splits, license.

The built-in descriptions are in ``specs/``; a user-defined radar needs one more such file.
"""

import difflib
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from simcast_hpc.config import ConfigError, DataError, StrictModel, Unit, expand_path, read_config
from simcast_hpc.config.names import Name, PathBelow, check_below

from .encoding import MISSING_CODE, Encoding
from .raw_layouts import ArchiveLayout, Layout
from .split_lists import read_day_list, read_split_table

logger = logging.getLogger(__name__)
DATASET_FILE = "dataset.yaml"
_CHOICES = "the name of a built-in description or the path of a YAML file"

Split = Literal["train", "val", "test", "all"]
SplitChooser = Callable[[str, datetime], str]


class PixelGrid(StrictModel):
    """Number of pixels and their spacing; the shape in the files takes precedence (a crop, a coarser copy)."""

    height: Annotated[PositiveInt, Unit("pixels")]
    """Number of rows."""
    width: Annotated[PositiveInt, Unit("pixels")]
    """Number of columns."""
    spacing_km: Annotated[PositiveFloat, Unit("km")]
    """Grid spacing."""


class Thresholds(StrictModel):
    """Evaluation thresholds, ascending; a pixel at or above a threshold is an event.

    Their unit is ``code`` (encoded values) or the physical unit of the encoding.
    """

    values: Annotated[tuple[float, ...], Unit("`thresholds.unit`")]
    """Evaluation thresholds, ascending."""
    unit: str
    """Unit of the thresholds: `code` (encoded values), the unit of the encoding, or `mm/h` with a Z-R relation."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"thresholds.values={list(self.values)} must be ascending and not empty")
        return self


class Coverage(StrictModel):
    """Pixels that are covered by a radar."""

    file: PathBelow
    """HDF5 file below the data root: `valid_frames`, the number of frames in which a pixel is valid, and `covered`."""
    min_percent: Annotated[float, Unit("%")] = Field(ge=0, lt=100)
    """A pixel is covered if it is valid in more than this percentage of the frames."""
    percent: Annotated[float, Unit("%")] = Field(ge=0, le=100)
    """Percentage of the pixels of the domain that are covered."""


class DateSplits(StrictModel):
    """Splits by date: train until ``train_until`` (inclusive), val until ``val_until`` (inclusive), then test."""

    kind: Literal["dates"]
    """Selects splits by date."""
    train_until: datetime
    """Last time of the split `train`, inclusive, in UTC without a time zone."""
    val_until: datetime
    """Last time of the split `val`, inclusive, in UTC without a time zone; later events belong to `test`."""
    gap_days: Annotated[float, Unit("days")] = Field(default=0.0, ge=0)
    """Events less than this after `train_until` or `val_until` belong to no split, so that weather is not shared."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.train_until.tzinfo is not None or self.val_until.tzinfo is not None:
            raise ValueError(
                f"splits: the dates {self.train_until} and {self.val_until} must be UTC without a time zone, such as "
                '"2019-01-01T00:00:00"'
            )
        if self.val_until < self.train_until:
            raise ValueError(f"splits.val_until={self.val_until} is before splits.train_until={self.train_until}")
        if self.gap_days and self.val_until <= self.train_until + timedelta(days=self.gap_days):
            raise ValueError(
                f"splits.gap_days={self.gap_days:g} leaves no time for val between splits.train_until="
                f"{self.train_until} and splits.val_until={self.val_until}"
            )
        return self

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split."""
        gap = timedelta(days=self.gap_days)

        def choose(_event: str, time: datetime) -> str:
            for end in (self.train_until, self.val_until):
                if end < time <= end + gap:
                    return ""
            return "train" if time <= self.train_until else "val" if time <= self.val_until else "test"

        return choose


class TableSplits(StrictModel):
    """Splits by a CSV table below the data root, one row per event, columns ``id`` and ``split``."""

    kind: Literal["table"]
    """Selects splits by a table."""
    file: PathBelow
    """CSV file below the data root with the columns `id` and `split`."""

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split, empty for events that are not in the table.

        Raises:
            DataError: the table is missing or invalid; names its file and line.
        """
        rows = read_split_table(root / self.file)
        return lambda event, _time: rows.get(event, "")


class SingleSplit(StrictModel):
    """All events belong to one split, for example test data that is never trained on."""

    kind: Literal["single"]
    """Selects one split for all events."""
    split: Literal["train", "val", "test"]
    """Split of all events."""

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split."""
        return lambda _event, _time: self.split


class DayListSplits(StrictModel):
    """Splits by lists of days below the data root, one ``YYYYMMDD`` per line, text after a comma ignored (HKO-7)."""

    kind: Literal["day_lists"]
    """Selects splits by lists of days."""
    train: PathBelow
    """File below the data root with the days of the split `train`."""
    val: PathBelow
    """File below the data root with the days of the split `val`."""
    test: PathBelow
    """File below the data root with the days of the split `test`."""

    def days(self, root: Path) -> dict[str, str]:
        """Return the split of each listed day.

        Raises:
            DataError: a list is missing, a line is not a day, or a day is on two lists.
        """
        days: dict[str, str] = {}
        for split in ("train", "val", "test"):
            path = root / getattr(self, split)
            for line, day in read_day_list(path, split=split):
                if days.setdefault(day, split) != split:
                    raise DataError(f"{path}, line {line}: day {day} is also on the list of {days[day]}")
        return days

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split, empty for days that are on no list."""
        days = self.days(root)
        return lambda _event, time: days.get(f"{time:%Y%m%d}", "")


class ZRRelation(StrictModel):
    """Z = a R^b between linear reflectivity and rain rate R in mm/h."""

    a: Annotated[PositiveFloat, Unit("1")]
    """Factor a of the Z-R relation, for Z in mm^6/m^3 and R in mm/h."""
    b: Annotated[PositiveFloat, Unit("1")]
    """Exponent b of the Z-R relation."""

    def reflectivity(self, rain_rate: float) -> float:
        """Return the reflectivity in dBZ of a rain rate above 0 in mm/h."""
        return 10 * math.log10(self.a) + 10 * self.b * math.log10(rain_rate)


class DatasetSpec(StrictModel):
    """Description of a data set."""

    name: Name
    """Short name of the data set: letters, digits, and `. _ + -`."""
    title: str
    """Title of the data set in reports and forecast files."""
    quantity: str
    """Physical quantity, such as `reflectivity` or `rain rate`."""
    encoding: Annotated[Encoding, Field(discriminator="kind")]
    """Relation between pixel values (uint8) and physical values."""
    image_type: str
    """Value of the catalog column `img_type` that belongs to this data set, and name of the array in the HDF5 files."""
    folder: Annotated[str, AfterValidator(check_below)]
    """Folder between the data root and the `file_name` of a catalog row (`data` in SEVIR)."""
    step_minutes: Annotated[PositiveFloat, Unit("minutes")]
    """Time between two frames of a file."""
    frames_per_event: Annotated[PositiveInt | None, Unit("frames")]
    """Number of frames per event; null reads the number from the files."""
    grid: PixelGrid
    """Number of pixels and grid spacing."""
    thresholds: Thresholds
    """Evaluation thresholds."""
    splits: Annotated[DateSplits | TableSplits | DayListSplits | SingleSplit, Field(discriminator="kind")]
    """Rule that assigns events to the splits `train`, `val` and `test`."""
    z_r: ZRRelation | None = None
    """Z-R relation of a data set in dBZ; with it, thresholds can be given in mm/h."""
    layout: Layout = ArchiveLayout()
    """Layout of the raw data before preparation."""
    coverage: Coverage | None = None
    """Pixels that are covered by a radar; null if unknown."""
    license: str
    """License of the data."""
    attribution: str = ""
    """Credit that the license requires with the data and everything made from them; empty uses `citation`."""
    citation: str
    """Reference to cite."""
    source: str
    """Origin of the data and of this description."""

    def hashed_json(self, *, exclude: Collection[str]) -> str:
        """Return the description as JSON for a hash: without the fields ``exclude``, and without those that are newer.

        A field that was added later is omitted at its default, so that hashes of older descriptions stay equal.
        """
        excluded: dict[str, Any] = dict.fromkeys([*exclude, "coverage", "attribution"], True)
        if "splits" not in excluded and isinstance(self.splits, DateSplits) and not self.splits.gap_days:
            excluded["splits"] = {"gap_days"}
        return self.model_dump_json(exclude=excluded)

    @model_validator(mode="after")
    def _thresholds_are_codes(self) -> Self:
        self.codes_of(self.thresholds.values, unit=self.thresholds.unit)
        return self

    def codes_of(self, thresholds: tuple[float, ...], *, unit: str) -> tuple[float, ...]:
        """Return thresholds given in ``unit`` as positions on the 0..254 code axis.

        Raises:
            DataError: ``unit`` is not ``code``, the unit of the encoding, or mm/h with a Z-R relation; or a value is
                outside the range of the encoding.
        """
        if unit == "code":
            codes = tuple(float(value) for value in thresholds)
        elif unit == self.encoding.unit:
            codes = tuple(float(self.encoding.code_of(value)) for value in thresholds)
        elif unit == "mm/h" and self.z_r is not None and min(thresholds, default=1) > 0:
            codes = tuple(float(self.encoding.code_of(self.z_r.reflectivity(value))) for value in thresholds)
        else:
            raise DataError(
                f"thresholds {list(thresholds)} are in {unit!r}, but {self.name} is encoded in {self.encoding.unit!r}; "
                f"use {self.encoding.unit!r} or 'code'"
            )
        for value, code in zip(thresholds, codes, strict=True):
            if not 0 < code < MISSING_CODE:
                raise DataError(
                    f"threshold {value:g} {unit} of {self.name} is code {code:g}, outside 1..{MISSING_CODE - 1}; "
                    f"check the unit: the thresholds of this dataset are in {self.thresholds.unit!r}"
                )
        return codes

    @property
    def credit(self) -> str:
        """The text that credits the data in model cards and forecast files: ``attribution``, else ``citation``."""
        return self.attribution or self.citation

    def threshold_codes(self) -> tuple[float, ...]:
        """Return the evaluation thresholds as positions on the code axis."""
        return self.codes_of(self.thresholds.values, unit=self.thresholds.unit)

    def threshold_labels(self) -> tuple[str, ...]:
        """Return the names of the evaluation thresholds in results, in their own unit."""
        return tuple(f"{value:g}" for value in self.thresholds.values)


def built_in_specs() -> Mapping[str, Path]:
    """Return the built-in descriptions: name and file, sorted by name."""
    folder = Path(str(resources.files("simcast_hpc.data") / "specs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_spec(name_or_path: str) -> DatasetSpec:
    """Return the built-in description of this name, or the description in this YAML file.

    Raises:
        ConfigError: no such name or file, or a field is invalid.
    """
    built_in = built_in_specs()
    if name_or_path in built_in:
        return read_config(DatasetSpec, built_in[name_or_path])
    path = Path(expand_path(name_or_path, where="dataset"))
    if path.suffix in {".yaml", ".yml"}:
        return read_config(DatasetSpec, path)
    near = difflib.get_close_matches(name_or_path.lower(), built_in, n=1)
    raise ConfigError(
        f"the dataset {name_or_path!r} (data.dataset, --dataset) is neither a built-in description "
        f"({', '.join(built_in)}) nor the path of a YAML file" + (f"; did you mean {near[0]}?" if near else "")
    )


def find_spec(dataset: str | None, root: Path | None) -> DatasetSpec:
    """Return the description ``dataset``, or for None that in ``dataset.yaml`` in the data folder ``root``.

    Raises:
        ConfigError: there is none, or a field is invalid.
    """
    if dataset is not None:
        return read_spec(dataset)
    if root is None:
        raise ConfigError(
            f"data.dataset is null and data.root is not set; set data.root (--root) to a folder with {DATASET_FILE}, "
            f"or data.dataset (--dataset) to {_CHOICES}"
        )
    path = root / DATASET_FILE
    if not path.is_file():
        raise ConfigError(
            f"data.dataset is null and {path} does not exist; set data.root (--root) to a folder that contains "
            f"{DATASET_FILE}, or data.dataset (--dataset) to {_CHOICES}"
        )
    return read_config(DatasetSpec, path)


def name_conflict(name: str, spec: DatasetSpec) -> str | None:
    """Return why the name of a run is misleading, or None.

    It is if one of its words is that of a built-in data set (the first of ``hko7-cascast``) to which the run's data set
    does not belong, such as ``sevir-direct`` for one's own radar.
    """
    own = _words(spec.name)
    families = {_words(built_in)[0] for built_in in built_in_specs()}
    foreign = [word for word in _words(name) if word in families and word not in own]
    if not foreign:
        return None
    return (
        f"the run is named {name!r}, but its data set is {spec.name!r}, not {foreign[0]!r}; forecast files, pictures "
        f"and reports show this name: set name, for example name={spec.name}-model"
    )


def warn_about_name(name: str, spec: DatasetSpec) -> None:
    """Log a warning if :func:`name_conflict` finds one."""
    conflict = name_conflict(name, spec)
    if conflict is not None:
        logger.warning("%s", conflict)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word] or [""]
