"""Names of radar files as patterns of ``strftime``, so that names give times without opening a file."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import PurePosixPath

from simcast_hpc.config import ConfigError

# Digits of a directive, and the unit that it determines.
_DIRECTIVES = {
    "Y": (r"\d{4}", "year"), "y": (r"\d{2}", "year"), "m": (r"\d{2}", "month"), "d": (r"\d{2}", "day"),
    "j": (r"\d{3}", "day"), "H": (r"\d{2}", "hour"), "M": (r"\d{2}", "minute"), "S": (r"\d{2}", "second"),
}  # fmt: skip
_UNITS = ("year", "month", "day", "hour", "minute", "second")
_WILDCARDS = {"*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Period:
    """The times that a name can have, from ``begin`` to before ``end``, aware UTC."""

    begin: datetime
    end: datetime

    def meets(self, since: datetime | None, until: datetime | None) -> bool:
        """Return whether the period contains a time from ``since`` to ``until``, both inclusive."""
        return (since is None or self.end > since) and (until is None or self.begin <= until)


class TimePattern:
    """A path with directives of ``strftime`` (``%Y %y %m %d %j %H %M %S``) and the wildcards ``*`` and ``?``.

    Repeated directives must agree. ``folder`` is the part without directives and wildcards.
    """

    def __init__(self, text: str):
        """Parse a pattern.

        Raises:
            ConfigError: a directive is not supported, or the pattern does not determine the year.
        """
        self.text = text
        parts = PurePosixPath(text).parts
        fixed = next((k for k, part in enumerate(parts) if re.search(r"[%*?]", part)), len(parts))
        fixed = min(fixed, len(parts) - 1)
        self.folder = str(PurePosixPath(*parts[:fixed])) if fixed else "."
        self._levels: list[re.Pattern[str]] = []
        seen: set[str] = set()
        expressions = []
        for part in parts[fixed:]:
            expressions.append(self._expression(part, seen))
            self._levels.append(re.compile("/".join(expressions)))
        if not seen & {"Y", "y"}:
            raise ConfigError(
                f"the pattern {text!r} does not determine the year; use directives of strftime, for example "
                "/archive/%Y/%m/%d/RAD_%Y%m%d%H%M.h5"
            )

    @property
    def depth(self) -> int:
        """Number of path components below ``folder``."""
        return len(self._levels)

    def period(self, relative: str) -> Period | None:
        """Return the times that a path below ``folder`` can have, also of a folder; None if it does not match.

        A name that is no valid time, such as month 13, does not match either.
        """
        level = relative.count("/")
        match = self._levels[level].fullmatch(relative) if level < len(self._levels) else None
        if match is None:
            return None
        numbers = {name: int(digits) for name, digits in match.groupdict().items()}
        if not numbers.keys() & {"Y", "y"}:
            return Period(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
        try:
            return _period(numbers)
        except (ValueError, OverflowError):
            return None

    def _expression(self, part: str, seen: set[str]) -> str:
        """Return the regular expression of one path component."""
        expression, position = "", 0
        while position < len(part):
            character = part[position]
            position += 1
            if character != "%":
                expression += _WILDCARDS.get(character) or re.escape(character)
                continue
            directive = part[position : position + 1]
            position += 1
            if directive == "%":
                expression += "%"
            elif directive not in _DIRECTIVES:
                raise ConfigError(
                    f"the pattern {self.text!r} contains %{directive}; supported are "
                    f"{', '.join('%' + name for name in _DIRECTIVES)} and %%"
                )
            elif directive in seen:
                expression += f"(?P={directive})"
            else:
                seen.add(directive)
                expression += f"(?P<{directive}>{_DIRECTIVES[directive][0]})"
        return expression


def _period(numbers: dict[str, int]) -> Period:
    """Return the period of the numbers of directives; its length is that of the finest unit without a gap."""
    year = numbers["Y"] if "Y" in numbers else 1900 + numbers["y"] + 100 * (numbers["y"] < 69)
    given = {_DIRECTIVES[name][1] for name in numbers}
    if "j" in numbers:
        day = date(year, 1, 1) + timedelta(days=numbers["j"] - 1)
        if day.year != year or numbers.get("m", day.month) != day.month or numbers.get("d", day.day) != day.day:
            raise ValueError("the day of the year is invalid")
        month, number = day.month, day.day
        given |= {"month"}
    else:
        month, number = numbers.get("m", 1), numbers.get("d", 1)
    # %d without %m, for example, is not a time: the period ends at the first missing unit.
    finest = next((k for k, unit in enumerate(_UNITS) if unit not in given), len(_UNITS)) - 1
    values = (year, month, number, numbers.get("H", 0), numbers.get("M", 0), numbers.get("S", 0))
    values = tuple(value if k <= finest else (1 if k < 3 else 0) for k, value in enumerate(values))
    begin = datetime(*values, tzinfo=UTC)
    if finest == 0:
        end = begin.replace(year=year + 1)
    elif finest == 1:
        end = (begin + timedelta(days=31)).replace(day=1)
    else:
        end = begin + timedelta(**{f"{_UNITS[finest]}s": 1})
    return Period(begin, end)


def parse_limit(text: str, *, option: str, is_end: bool) -> datetime:
    """Return a limit of time in UTC; a date without time as an end includes the whole day.

    Raises:
        ConfigError: the text is not a time.
    """
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ConfigError(
            f"{option} {text!r} is not a time; expected UTC such as 2024-06-11 or 2024-06-11T12:05"
        ) from (error)
    if is_end and re.fullmatch(r"\d{4}-?\d{2}-?\d{2}|\d{4}-?W\d{2}(-?\d)?", text.strip()):
        time += timedelta(days=1) - timedelta(microseconds=1)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
