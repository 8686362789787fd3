"""Description of an open radar archive as data: host, products, names of files, license, key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from simcast_hpc.config import ConfigError

Service = Literal["files", "s3", "stac", "knmi", "dmi", "huggingface", "zarr"]
MONTH, YEAR = "month", "year"
_DIGITS = {"Y": 4, "y": 2, "m": 2, "d": 2, "j": 3, "H": 2, "M": 2, "S": 2}


@dataclass(frozen=True)
class Product:
    """One kind of file of an archive.

    Attributes:
        what: description for the list of archives: quantity, grid spacing, format.
        service: how files are listed and downloaded.
        names: patterns of file names, with strftime fields for the time in UTC and ``*`` for other characters.
        step: minutes between two files, or ``month`` or ``year`` for files of that length.
        first: first day of the product.
        last: last day, None for a product that continues.
        folder: of the files at the host, with strftime fields (``files``, ``s3``, ``stac``, ``huggingface``).
        listing_begin: name after which the listing of names begins, with strftime fields (``knmi``).
        query: further fields of the listing (``dmi``).
        step_inside: minutes between the frames of a file that contains several, such as a tar file.
        names_inside: patterns of the names of the frames in a tar file.
        days_inside: patterns of the names of tar files of a day in a tar file.
        frame_kib: size of a frame that is unpacked from a tar file.
        largest_mib: largest valid size of a file.
        rolling_days: number of days after which the host removes files, None if it keeps them.
        import_options: options that ``simcast data import`` needs for these files, None if it does not read them.
    """

    what: str
    service: Service
    names: tuple[str, ...]
    step: int | Literal["month", "year"]
    first: date
    last: date | None = None
    folder: str = ""
    listing_begin: str = ""
    query: str = ""
    step_inside: int = 0
    names_inside: tuple[str, ...] = ()
    days_inside: tuple[str, ...] = ()
    frame_kib: int = 0
    largest_mib: int = 64
    rolling_days: int | None = None
    import_options: str | None = ""

    def next_step(self, target: object) -> str:
        """Return what follows a download into ``target``."""
        if self.import_options is None:
            return f"simcast data import does not read {self.what}"
        return " ".join(f"next: simcast data import {target} DATA {self.import_options}".split())

    @property
    def frame_minutes(self) -> int:
        """Minutes between two frames."""
        return self.step_inside or (self.step if isinstance(self.step, int) else 0)

    def begin_of_file(self, time: datetime) -> datetime:
        """Return the first time of the file that contains ``time``."""
        day = time.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.step == MONTH:
            return day.replace(day=1)
        if self.step == YEAR:
            return day.replace(day=1, month=1)
        assert isinstance(self.step, int)
        return day + (time - day) // timedelta(minutes=self.step) * timedelta(minutes=self.step)

    def end_of_file(self, begin: datetime) -> datetime:
        """Return the time at which the next file begins."""
        if self.step == MONTH:
            return (begin.replace(day=1) + timedelta(days=32)).replace(day=1)
        if self.step == YEAR:
            return begin.replace(year=begin.year + 1)
        assert isinstance(self.step, int)
        return begin + timedelta(minutes=self.step)

    def overlaps(self, begin_of_file: datetime, period: "Period") -> bool:
        """Return whether a file that begins at a time, or contains the frame of a time, has frames in ``period``."""
        if isinstance(self.step, int) and not self.names_inside:
            return begin_of_file in period
        return begin_of_file < period.end and self.end_of_file(begin_of_file) > period.begin

    def file_times(self, period: "Period") -> list[datetime]:
        """Return the nominal begin of every file with frames in ``period``."""
        begin, times = self.begin_of_file(period.begin), []
        while begin < period.end:
            if self.overlaps(begin, period):
                times.append(begin)
            begin = self.end_of_file(begin)
        return times

    def frame_times(self, period: "Period") -> list[datetime]:
        """Return the nominal time of every frame in ``period``."""
        step = timedelta(minutes=self.frame_minutes)
        day = period.begin.replace(hour=0, minute=0, second=0, microsecond=0)
        first = day + -(-(period.begin - day) // step) * step
        return [first + k * step for k in range(max(0, -(-(period.end - first) // step)))]


@dataclass(frozen=True)
class Archive:
    """An open archive.

    Attributes:
        title: provider and region.
        url: base URL that all paths are below.
        products: by name; the first is the default.
        license: SPDX identifier, or the name of the terms.
        attribution: credit that the license requires.
        terms: page of the terms.
        key: environment variable of the access key; empty if there is none.
        needs_key: whether the host rejects requests without a key.
        key_header: header that contains the key, ``{}`` for the key.
        other_hosts: hosts to which the base host may redirect or link, with ``*`` for subdomains.
        missing_statuses: HTTP statuses that mean that a file does not exist.
        checked: what the patterns were checked against.
    """

    title: str
    url: str
    products: Mapping[str, Product]
    license: str
    attribution: str
    terms: str
    checked: str
    key: str = ""
    needs_key: bool = False
    key_header: tuple[str, str] = ("Authorization", "{}")
    other_hosts: tuple[str, ...] = ()
    missing_statuses: tuple[int, ...] = (404, 410)

    def product(self, name: str | None, *, archive: str) -> tuple[str, Product]:
        """Return a product and its name, by default the first one.

        Raises:
            ConfigError: the archive has no such product; lists the names.
        """
        chosen = name or next(iter(self.products))
        if chosen not in self.products:
            raise ConfigError(f"--product {chosen!r}: the archive {archive} has {', '.join(self.products)}")
        return chosen, self.products[chosen]


@dataclass(frozen=True)
class Period:
    """Times from ``begin`` (inclusive) to ``end`` (exclusive), both aware and in UTC."""

    begin: datetime
    end: datetime

    def __contains__(self, time: datetime) -> bool:
        return self.begin <= time < self.end

    def days(self) -> list[datetime]:
        """Return the begin of every day that overlaps the period."""
        day = self.begin.replace(hour=0, minute=0, second=0, microsecond=0)
        return [day + timedelta(days=k) for k in range(-(-(self.end - day) // timedelta(days=1)))]


def parse_time(text: str, *, option: str) -> datetime:
    """Return an aware time in UTC of ``2024-06-01`` or ``2024-06-01T12:00``, with an optional time zone.

    Raises:
        ConfigError: the text is not a time.
    """
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option} {text!r} is not a time; write 2024-06-01 or 2024-06-01T12:00 (UTC)") from None


def parse_period(begin: str | None, end: str | None) -> Period:
    """Return the period of ``--from`` (inclusive) and ``--to`` (exclusive).

    Raises:
        ConfigError: one is missing or not a time, or the period is empty.
    """
    if begin is None or end is None:
        raise ConfigError("a period is required: --from 2024-06-01 --to 2024-06-02 (UTC; --to is not included)")
    period = Period(parse_time(begin, option="--from"), parse_time(end, option="--to"))
    if period.end <= period.begin:
        raise ConfigError(f"--to {end} must be after --from {begin}; --to itself is not included")
    return period


def require_overlap(period: Period, archive_name: str, archive: Archive, product_name: str) -> None:
    """Check that a product has data in a period.

    Raises:
        ConfigError: it has none, or the host keeps only newer files; names the products that have some.
    """
    product = archive.products[product_name]
    if _overlap(period, product):
        return
    others = [name for name, other in archive.products.items() if _overlap(period, other)]
    until = f"to {product.last}" if product.last else "on"
    choice = f"; choose --product {' or '.join(others)}" if others else ""
    kept = f" (the host keeps {product.rolling_days} days)" if product.rolling_days else ""
    raise ConfigError(
        f"--from {period.begin:%Y-%m-%dT%H:%M} --to {period.end:%Y-%m-%dT%H:%M}: {archive_name} {product_name} has "
        f"data from {product.first} {until}{kept}{choice}"
    )


def _overlap(period: Period, product: Product) -> bool:
    first = datetime(product.first.year, product.first.month, product.first.day, tzinfo=UTC)
    if product.rolling_days is not None:
        first = max(first, datetime.now(UTC) - timedelta(days=product.rolling_days + 1))
    last = product.last or date(9998, 1, 1)
    return period.end > first and period.begin < datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(1)


def time_of_name(name: str, patterns: tuple[str, ...]) -> datetime | None:
    """Return the UTC time in a file name by the first pattern that matches, None if none does."""
    for pattern in patterns:
        found = _compiled(pattern).fullmatch(name)
        if found is None:
            continue
        part = {key: int(value) for key, value in found.groupdict().items()}
        year = part.get("Y", 2000 + part.get("y", 0))
        try:
            time = datetime(
                year, part.get("m", 1), part.get("d", 1), part.get("H", 0), part.get("M", 0), part.get("S", 0),
                tzinfo=UTC,
            )  # fmt: skip
            return (
                time + timedelta(days=part["j"] - 1)
                if 0 < part.get("j", 0) <= 366
                else time
                if "j" not in part
                else None
            )
        except ValueError:
            continue
    return None


def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(%[YymdjHMS]|\*)", pattern)
    text, seen = "", set()
    for part in parts:
        if part == "*":
            text += r"[A-Za-z0-9._+-]*"
        elif part.startswith("%") and part[1:] in _DIGITS:
            # A field that is repeated must be equal.
            text += f"(?P={part[1]})" if part in seen else f"(?P<{part[1]}>[0-9]{{{_DIGITS[part[1]]}}})"
            seen.add(part)
        else:
            text += re.escape(part)
    return re.compile(text, re.ASCII | re.IGNORECASE)  # MeteoSwiss documents capitals and lists small letters
