"""``health.json`` of a watcher: what it does and which problems there are now, bounded in size.

Problems come from file names and file contents that others choose, so texts are shortened and control characters
escaped.
"""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simcast_hpc.config.text_files import printable
from simcast_hpc.storage.atomic_files import write_json

logger = logging.getLogger(__name__)
HEALTH = "health.json"
_MAX_LISTED, _MAX_TEXT = 100, 400


def write_health(
    folder: Path,
    status: dict[str, Any],
    *,
    files: Iterable[tuple[Path, str]],
    waiting: Iterable[tuple[Path, str]],
    issues: Iterable[tuple[datetime, str]],
) -> dict[str, Any]:
    """Write and return the status and the problems of files, of frames from the future and of issue times.

    At most 100 problems of each kind are listed, the first ones; ``problem_counts`` contains all. A file that cannot be
    written is logged.
    """
    kinds = {
        "files": [(path.name, "file", text) for path, text in files],
        "future": [(path.name, "file", text) for path, text in waiting],
        "issues": [(iso(issue), "issue", text) for issue, text in issues],
    }
    problems = [
        {key: _short(name), "problem": _short(text)}
        for listed in kinds.values()
        for name, key, text in sorted(listed[:_MAX_LISTED])
    ]
    counts = {kind: len(listed) for kind, listed in kinds.items()}
    health = {**status, "updated": iso(datetime.now(UTC)), "problem_counts": counts, "problems": problems}
    try:
        write_json(folder / HEALTH, health)
    except OSError as error:
        logger.warning("%s cannot be written: %s", HEALTH, error)
    return health


def iso(moment: datetime) -> str:
    """Return a time as ``2024-06-11T12:05:00Z``."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def duration(minutes: float) -> str:
    """Return minutes below 2 hours as ``16 minutes``, longer durations as ``5 hours`` or ``1,234 days``."""
    for limit, size, unit in ((120, 1, "minutes"), (2880, 60, "hours")):
        if minutes < limit:
            return f"{minutes / size:.0f} {unit}"
    return f"{minutes / 1440:,.0f} days"


def _short(text: str) -> str:
    text = printable(text[:_MAX_TEXT])
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
