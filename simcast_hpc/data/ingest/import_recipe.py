"""Recipe of an import: options as given, and the complete recipe that is derived from them and the data."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from simcast_hpc.config import ConfigError, StrictModel
from simcast_hpc.config.names import Name
from simcast_hpc.data.dataset_spec import (
    Coverage,
    DatasetSpec,
    DateSplits,
    PixelGrid,
    SingleSplit,
    Thresholds,
    ZRRelation,
)
from simcast_hpc.data.encoding import Decibel, Encoding, Linear, SevirVil
from simcast_hpc.radar.radar_frame import RadarGrid, Unit

from .default_splits import default_splits, event_minutes, parse_minutes
from .frame_selection import FrameSeries
from .inventory import COVERED_PERCENT
from .scan_table import FrameKind
from .wet_rule import MARSHALL_PALMER, WetRule, parse_wet_rule, tile_slices

COVERAGE = "coverage.h5"
SIDE_MULTIPLE = 16  # pixels; networks halve the grid up to four times
_RATES = (0.5, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class ImportOptions:
    """Options as given by the user; None derives a value from the data, or takes it from the import to append to."""

    name: str | None = None
    step: float | None = None
    event: str | None = None
    wet: str | None = None
    keep_dry: str | None = None
    importance: tuple[float, float] | None = None
    max_missing: str | None = None
    tile: int | None = None
    train_until: str | None = None
    val_until: str | None = None
    gap_days: float | None = None
    seed: int | None = None
    codec: str | None = None
    license: str | None = None
    attribution: str | None = None
    unit: Unit | None = None
    dataset: int | None = None
    importer: str | None = None
    z_r: tuple[float, float] | None = None
    any_interval: bool = False
    grid_of: str | None = None

    def check(self) -> None:
        """Check what can be checked without data.

        Raises:
            ConfigError: an option is invalid.
        """
        if self.wet is not None:
            parse_wet_rule(self.wet)
        for name in ("keep_dry", "max_missing"):
            parse_share(getattr(self, name) or "0", option=f"--{name.replace('_', '-')}")
        if self.event is not None:
            parse_minutes(self.event)
        for name in ("train_until", "val_until"):
            if getattr(self, name) is not None:
                _parse_end(getattr(self, name), option=f"--{name.replace('_', '-')}")
        if (self.train_until is None) != (self.val_until is None):
            raise ConfigError("--train-until and --val-until belong together; give both or none")
        if self.z_r is not None and min(self.z_r) <= 0:
            raise ConfigError(f"--z-r {self.z_r[0]:g} {self.z_r[1]:g}: both must be above 0, for example 200 1.6")
        if self.tile is not None and self.tile < SIDE_MULTIPLE:
            raise ConfigError(f"--tile {self.tile} is invalid; it must be at least {SIDE_MULTIPLE} pixels")
        if self.tile is not None and self.tile % SIDE_MULTIPLE:
            below = self.tile // SIDE_MULTIPLE * SIDE_MULTIPLE
            raise ConfigError(
                f"--tile {self.tile} is invalid; networks need a multiple of {SIDE_MULTIPLE}: choose {below} or "
                f"{below + SIDE_MULTIPLE}"
            )
        if self.importance is not None and not (0 <= self.importance[0] <= 1 and self.importance[1] >= 0):
            raise ConfigError(
                f"--importance {self.importance[0]:g} {self.importance[1]:g} is invalid; the smallest probability must "
                "be 0 to 1 and the weight of the mean rate at least 0"
            )
        if self.codec not in (None, "lz4", "zstd"):
            raise ConfigError(f"--codec {self.codec!r} is invalid; choose lz4 or zstd")
        if self.keep_dry is not None and self.wet is None and self.importance is None:
            raise ConfigError("--keep-dry needs --wet, the rule by which the other events are wet")

    @property
    def rule(self) -> WetRule:
        """The rule by which statistics are made; 1 mm/h (kg/m^2 for such frames) on 2 % without ``--wet``."""
        default = "1 kg/m^2 on 2 %" if self.unit == "kg/m^2" else "1 mm/h on 2 %"
        return parse_wet_rule(self.wet or default)

    @property
    def relation(self) -> ZRRelation:
        """The Z-R relation of the statistics."""
        return ZRRelation(a=self.z_r[0], b=self.z_r[1]) if self.z_r else MARSHALL_PALMER


class Recipe(StrictModel):
    """Everything on which the frames, events and splits of an import depend; an append keeps it."""

    name: Name
    step_minutes: float
    phase_seconds: float
    quantity: str
    unit: Unit
    prefer: Unit
    grid: dict[str, Any]
    event_minutes: float
    tile: Annotated[int, Field(ge=8)] | None
    wet: str | None
    keep_dry: float
    importance: tuple[float, float] | None
    max_missing: float
    train_until: datetime | None
    val_until: datetime | None
    gap_days: float
    seed: int
    codec: str
    license: str
    attribution: str
    dataset: int | None
    importer: str | None
    z_r: tuple[float, float] | None
    any_interval: bool
    encoding: Annotated[Encoding, Field(discriminator="kind")]
    side_multiple: Annotated[int, Field(ge=1)] = 1
    """Height and width of events are padded to a multiple of it with missing pixels, at the south and east."""

    @property
    def series(self) -> FrameSeries:
        """What the frames have in common."""
        step = round(self.step_minutes * 60e6)
        phase = round(self.phase_seconds * 1e6)
        return FrameSeries(step, phase, self.quantity, self.unit, RadarGrid(**self.grid), self.any_interval)

    @property
    def frames(self) -> int:
        """Frames per event."""
        return round(self.event_minutes / self.step_minutes)

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Pixels of an event, (H, W), with padding."""
        rows, columns = tile_slices(RadarGrid(**self.grid).shape, self.tile)[0]
        multiple = self.side_multiple
        return -(-rows.stop // multiple) * multiple, -(-columns.stop // multiple) * multiple

    @property
    def padding(self) -> tuple[int, int]:
        """Rows at the south and columns at the east of an event that no frame has."""
        rows, columns = tile_slices(RadarGrid(**self.grid).shape, self.tile)[0]
        height, width = self.tile_shape
        return height - rows.stop, width - columns.stop

    @property
    def relation(self) -> ZRRelation:
        """The Z-R relation of the statistics."""
        return ZRRelation(a=self.z_r[0], b=self.z_r[1]) if self.z_r else MARSHALL_PALMER

    def spec(self, *, covered_percent: float | None, source: str) -> DatasetSpec:
        """Return the dataset description."""
        height, width = self.tile_shape
        rates = self.unit != "kg/m^2"
        splits = (
            SingleSplit(kind="single", split="train")
            if self.train_until is None or self.val_until is None
            else DateSplits(
                kind="dates", train_until=self.train_until, val_until=self.val_until, gap_days=self.gap_days
            )
        )
        coverage = (
            None if covered_percent is None
            else Coverage.model_validate(
                {"file": COVERAGE, "min_percent": COVERED_PERCENT, "percent": covered_percent}, strict=False
            )
        )  # fmt: skip
        return DatasetSpec(
            name=self.name,
            title=f"{self.name}: {self.quantity}",
            quantity={"mm/h": "rain rate", "dBZ": "reflectivity"}.get(self.unit, "vertically integrated liquid"),
            encoding=self.encoding,
            image_type={"mm/h": "rr", "dBZ": "dbz"}.get(self.unit, "vil"),
            folder=".",
            step_minutes=self.step_minutes,
            frames_per_event=self.frames,
            grid=PixelGrid(height=height, width=width, spacing_km=round(RadarGrid(**self.grid).spacing_km, 6)),
            thresholds=Thresholds(values=_RATES, unit="mm/h") if rates
            else Thresholds(values=(16.0, 74.0, 133.0, 160.0, 181.0, 219.0), unit="code"),
            splits=splits,
            z_r=self.relation if self.unit == "dBZ" else None,
            coverage=coverage,
            license=self.license or "not stated (simcast data import --license)",
            attribution=self.attribution,
            citation=self.attribution or "not stated",
            source=source,
        )  # fmt: skip


def derive_recipe(
    options: ImportOptions, series: FrameSeries, kind: FrameKind, times: list[int], *, default_name: str
) -> tuple[Recipe, list[str]]:
    """Return the recipe of a new import and notes about what was derived.

    Args:
        options: as given.
        series: what the frames have in common.
        kind: kind of most frames, for the encoding.
        times: nominal times of the frames that are used, ascending, in microseconds since 1970.
        default_name: name of the data set without ``--name``.

    Raises:
        ConfigError: an option contradicts the data.
    """
    notes: list[str] = []
    step = series.step_minutes
    # 1. Tiles, events and splits
    if options.tile is not None and options.tile > min(series.grid.shape):
        raise ConfigError(
            f"--tile {options.tile} is larger than the domain of {series.grid.height} x {series.grid.width} pixels"
        )
    event = event_minutes(options.event, step, times)
    if options.train_until is not None and options.val_until is not None:
        train_until: datetime | None = _parse_end(options.train_until, option="--train-until")
        val_until: datetime | None = _parse_end(options.val_until, option="--val-until")
        gap = options.gap_days or 0.0
    else:
        train_until, val_until, gap, note = default_splits(times, event, step, options.gap_days)
        notes.append(note)
    # 2. Recipe
    recipe = Recipe(
        name=options.name or default_name,
        step_minutes=step,
        phase_seconds=series.phase / 1e6,
        quantity=series.quantity,
        unit=series.unit,  # pyright: ignore[reportArgumentType]
        prefer=options.unit or "mm/h",
        grid={name: getattr(series.grid, name) for name in series.grid.__dataclass_fields__},
        event_minutes=event,
        tile=options.tile,
        wet=None if options.wet is None else str(parse_wet_rule(options.wet)),
        keep_dry=parse_share(options.keep_dry or "0", option="--keep-dry"),
        importance=options.importance,
        max_missing=1.0 if options.max_missing is None else parse_share(options.max_missing, option="--max-missing"),
        train_until=train_until,
        val_until=val_until,
        gap_days=gap,
        seed=options.seed or 0,
        codec=options.codec or "lz4",
        license=options.license or "",
        attribution=options.attribution or "",
        dataset=options.dataset,
        importer=options.importer,
        z_r=options.z_r,
        any_interval=options.any_interval,
        encoding=_encoding(series.unit, kind),
        side_multiple=SIDE_MULTIPLE,
    )
    if any(recipe.padding):
        notes.append(
            f"padding: {recipe.padding[0]} rows of missing pixels at the south and {recipe.padding[1]} columns at the "
            f"east, so that height and width are multiples of {SIDE_MULTIPLE}"
        )
    return recipe, notes


def require_same(options: ImportOptions, recipe: Recipe) -> None:
    """Check that the options that are given are those of the import to append to.

    Raises:
        ConfigError: one differs; names it and both values.
    """
    kept: dict[str, Any] = {
        "name": recipe.name, "step": recipe.step_minutes, "tile": recipe.tile, "importance": recipe.importance,
        "gap_days": recipe.gap_days, "seed": recipe.seed, "codec": recipe.codec, "license": recipe.license,
        "attribution": recipe.attribution, "unit": recipe.prefer, "dataset": recipe.dataset,
        "importer": recipe.importer, "z_r": recipe.z_r, "wet": recipe.wet, "keep_dry": recipe.keep_dry,
        "max_missing": recipe.max_missing, "event": recipe.event_minutes, "train_until": recipe.train_until,
        "val_until": recipe.val_until,
    }  # fmt: skip
    given: dict[str, Any] = {name: getattr(options, name) for name in kept if getattr(options, name) is not None}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name == "wet":
            value = str(parse_wet_rule(value))
        elif name in ("keep_dry", "max_missing"):
            value = parse_share(value, option=option)
        elif name == "event":
            value = parse_minutes(value)
        elif name in ("train_until", "val_until"):
            value = _parse_end(value, option=option)
        if value != kept[name]:
            has = "none" if kept[name] in (None, "") else kept[name]
            raise ConfigError(f"{option} {value} differs from the import to append to, which has {has}; omit it")
    if options.any_interval and not recipe.any_interval:
        raise ConfigError("--any-interval differs from the import to append to, which was made without; omit it")


def parse_share(text: str, *, option: str) -> float:
    """Return the share, 0 to 1, of a percentage such as ``5%`` or a number such as ``0.05``.

    Raises:
        ConfigError: the text is neither.
    """
    try:
        share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{option} {text!r} is invalid; it must be a percentage such as 5% or a number from 0 to 1")
    return share


def _parse_end(text: str, *, option: str) -> datetime:
    """Return the last time of a split, UTC without a time zone; a date includes its whole day."""
    from .time_patterns import parse_limit

    return parse_limit(text, option=option, is_end=True).replace(tzinfo=None, microsecond=0)


def _encoding(unit: str, kind: FrameKind) -> Any:
    """Return the encoding of frames: that of the source if it is linear in 8 bits of dBZ, else a standard one."""
    if unit == "mm/h":
        return Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, first_code=1, floor=0.1)
    if unit == "kg/m^2":
        return SevirVil()
    if kind.stored_type == "uint8" and kind.gain is not None and kind.gain > 0 and kind.offset is not None:
        low, high = kind.offset, kind.offset + 254 * kind.gain
        if low < 17 and high >= 50:
            return Linear(unit="dBZ", gain=kind.gain, offset=kind.offset, zero_is_no_echo=True)
    return Linear(unit="dBZ", gain=0.5, offset=-32.0, zero_is_no_echo=True)
