"""Times of frames in the names of their files, for formats without a time: patterns of ``strptime`` or plain digits."""

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from simcast_hpc.config import ConfigError, DataError

from .radar_frame import FieldChoice

TIME_OPTIONS = ("time", "utc_offset")
_DIGITS = {"Y": r"\d{4}", "y": r"\d\d", "m": r"\d\d", "d": r"\d\d", "j": r"\d{3}", "H": r"\d\d", "M": r"\d\d",
           "S": r"\d\d"}  # fmt: skip
_PLAIN = re.compile(
    r"(?<!\d)((?:19|20)\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[-_.T ]?(\d\d)[-_:.h]?(\d\d)(?:[-_:.m]?(\d\d))?Z?(?!\d)"
)
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})")


def time_from_path(path: Path, choice: FieldChoice) -> datetime | None:
    """Return the time in the path of a file, UTC.

    The option ``time`` of the importer is a pattern such as ``%Y%m%d_%H%M``, which must match at one place in the path;
    ``utc_offset``, such as ``+02:00``, is that of the names. Without a pattern, the name of the file must contain one
    time as digits in the order year, month, day, hour, minute and optionally second.

    Raises:
        ConfigError: an option is invalid.
        DataError: the pattern does not match the path, or matches different times.
    """
    pattern, offset = choice.option("time"), _offset(choice.option("utc_offset"))
    if not pattern:
        found = {match.groups() for match in _PLAIN.finditer(path.name)}
        if len(found) != 1:
            return None
        try:
            return (datetime(*(int(part or 0) for part in found.pop()), tzinfo=UTC) - offset).astimezone(UTC)  # type: ignore[arg-type]
        except ValueError:
            return None
    expression, form = _expression(pattern)
    moments = set()
    for match in expression.finditer(path.absolute().as_posix()):
        try:
            moments.add(datetime.strptime("".join(match.groups()), form))
        except ValueError as error:
            raise DataError(f"{path}: {match[0]!r} is not a time of the pattern {pattern!r}") from error
    if len(moments) != 1:
        what = "contains no time" if not moments else f"contains {len(moments)} times"
        raise DataError(f"{path} {what} of the pattern {pattern!r} (option time of the importer)")
    return moments.pop().replace(tzinfo=UTC) - offset


def parse_time(text: str) -> datetime | None:
    """Return a time in ISO format or as digits, UTC; one without a zone is in UTC. None if the text is no time."""
    text = text.strip()
    if re.fullmatch(r"\d{12}|\d{14}", text):
        text = f"{text[:8]}T{text[8:]}"
    try:
        time = datetime.fromisoformat(text.replace(" UTC", "Z"))
    except ValueError:
        return None
    if len(text) < len("2024-01-01T00") - 2:  # a date alone is not the time of a frame
        return None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _expression(pattern: str) -> tuple[re.Pattern[str], str]:
    """Return the expression of a pattern, with a group for each directive, and the directives."""
    parts, form = [], ""
    for part in re.split(r"(%.)", pattern):
        if part == "%%" or not part.startswith("%"):
            parts.append(re.escape(part.replace("%%", "%")))
        elif part[1:] in _DIGITS:
            # strptime needs no separator between directives of a fixed number of digits
            parts.append(f"({_DIGITS[part[1:]]})")
            form += part
        else:
            raise ConfigError(
                f"time={pattern!r} contains {part}; the directives {', '.join('%' + one for one in _DIGITS)} are valid"
            )
    has_day = {"%j"} <= set(re.findall("%.", form)) or {"%m", "%d"} <= set(re.findall("%.", form))
    if not has_day or not re.search("%[Yy]", form) or "%H" not in form:
        raise ConfigError(f"time={pattern!r} must contain year, month and day (or %j), and hour, such as %Y%m%d%H%M")
    return re.compile(r"(?<!\d)" + "".join(parts) if pattern.startswith("%") else "".join(parts)), form


def _offset(text: str) -> timedelta:
    if not text:
        return timedelta(0)
    match = _OFFSET.fullmatch(text)
    if not match:
        raise ConfigError(f"utc_offset={text!r} is invalid; it must have the form +HH:MM")
    sign = -1 if match[1] == "-" else 1
    offset = sign * timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(offset).utcoffset(None) if abs(offset) < timedelta(hours=24) else timedelta(0)
