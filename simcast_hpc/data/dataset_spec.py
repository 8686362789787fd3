"""Dataset descriptions, read from YAML: quantity, encoding, cadence, grid, thresholds, splits, license.

The built-in descriptions are in ``specs/``; a user-defined radar needs one more such file.
"""

import csv
import difflib
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from simcast_hpc.config import ConfigError, DataError, StrictModel, read_config

from .encoding import MISSING_CODE, Encoding
from .raw_layouts import ArchiveLayout, Layout

Split = Literal["train", "val", "test", "all"]
SplitChooser = Callable[[str, datetime], str]


class PixelGrid(StrictModel):
    """Number of pixels and their spacing; the shape in the files takes precedence (a crop, a coarser copy)."""

    height: PositiveInt
    width: PositiveInt
    spacing_km: PositiveFloat


class Thresholds(StrictModel):
    """Evaluation thresholds, ascending, in ``code`` or the physical unit of the encoding; an event is ``>=``."""

    values: tuple[float, ...]
    unit: str

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"thresholds.values={list(self.values)} must be ascending and not empty")
        return self


class DateSplits(StrictModel):
    """Splits by date: train until ``train_until`` (inclusive), val until ``val_until`` (inclusive), then test."""

    kind: Literal["dates"]
    train_until: datetime
    val_until: datetime

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.train_until.tzinfo is not None or self.val_until.tzinfo is not None:
            raise ValueError(
                f"splits: the dates {self.train_until} and {self.val_until} must be UTC without a time zone, such as "
                '"2019-01-01T00:00:00"'
            )
        if self.val_until < self.train_until:
            raise ValueError(f"splits.val_until={self.val_until} is before splits.train_until={self.train_until}")
        return self

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split."""

        def choose(_event: str, time: datetime) -> str:
            return "train" if time <= self.train_until else "val" if time <= self.val_until else "test"

        return choose


class TableSplits(StrictModel):
    """Splits by a CSV table below the data root, one row per event, columns ``id`` and ``split``."""

    kind: Literal["table"]
    file: Path

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split, empty for events that are not in the table.

        Raises:
            DataError: the table or a column of it is missing.
        """
        table = root / self.file
        try:
            with table.open(newline="", encoding="utf-8") as file:
                rows = {row["id"]: row["split"] for row in csv.DictReader(file)}
        except OSError as error:
            raise DataError(f"the split table {table} cannot be read: {error.strerror}") from error
        except KeyError as error:
            raise DataError(f"the split table {table} has no column {error}; it must have id and split") from error
        return lambda event, _time: rows.get(event, "")


class SingleSplit(StrictModel):
    """All events belong to one split, for example test data that is never trained on."""

    kind: Literal["single"]
    split: Literal["train", "val", "test"]

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split."""
        return lambda _event, _time: self.split


class DayListSplits(StrictModel):
    """Splits by lists of days below the data root, one ``YYYYMMDD`` per line, text after a comma ignored (HKO-7)."""

    kind: Literal["day_lists"]
    train: Path
    val: Path
    test: Path

    def days(self, root: Path) -> dict[str, str]:
        """Return the split of each listed day.

        Raises:
            DataError: a list is missing, a line is not a day, or a day is on two lists.
        """
        days: dict[str, str] = {}
        for split in ("train", "val", "test"):
            path = root / getattr(self, split)
            try:
                lines = path.read_text(encoding="utf-8").split()
            except OSError as error:
                raise DataError(f"the list of {split} days {path} cannot be read: {error.strerror}") from error
            for day in (word.rstrip(",") for word in lines if len(word.rstrip(",")) == 8):
                if not day.isdigit():
                    raise DataError(f"{path} contains {day!r}; a day must be YYYYMMDD")
                if days.setdefault(day, split) != split:
                    raise DataError(f"{path}: day {day} is also on the list of {days[day]}")
        return days

    def chooser(self, root: Path) -> SplitChooser:
        """Return the function from (event id, time) to its split, empty for days that are on no list."""
        days = self.days(root)
        return lambda _event, time: days.get(f"{time:%Y%m%d}", "")


class ZRRelation(StrictModel):
    """Z = a R^b between linear reflectivity and rain rate R in mm/h."""

    a: PositiveFloat
    b: PositiveFloat

    def reflectivity(self, rain_rate: float) -> float:
        """Return the reflectivity in dBZ of a rain rate above 0 in mm/h."""
        return 10 * math.log10(self.a) + 10 * self.b * math.log10(rain_rate)


class DatasetSpec(StrictModel):
    """Description of a dataset.

    ``folder`` is the folder between the data root and the ``file_name`` of a catalog row (``data`` in SEVIR).
    ``frames_per_event`` null takes the number from the files. ``step_minutes`` is the cadence of the files.
    ``z_r`` is the Z-R relation of a dataset in dBZ; with it, thresholds may be given in mm/h.
    ``layout`` is the layout of raw data before preparation; the default is an archive.
    """

    name: str
    title: str
    quantity: str
    encoding: Annotated[Encoding, Field(discriminator="kind")]
    image_type: str
    folder: str
    step_minutes: PositiveFloat
    frames_per_event: PositiveInt | None
    grid: PixelGrid
    thresholds: Thresholds
    splits: Annotated[DateSplits | TableSplits | DayListSplits | SingleSplit, Field(discriminator="kind")]
    z_r: ZRRelation | None = None
    layout: Layout = ArchiveLayout()
    license: str
    citation: str
    source: str

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
    if Path(name_or_path).suffix in {".yaml", ".yml"}:
        return read_config(DatasetSpec, Path(name_or_path))
    near = difflib.get_close_matches(name_or_path.lower(), built_in, n=1)
    raise ConfigError(
        f"the dataset {name_or_path!r} (data.dataset, --dataset) is neither a built-in description "
        f"({', '.join(built_in)}) nor the path of a YAML file" + (f"; did you mean {near[0]}?" if near else "")
    )
