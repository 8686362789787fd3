"""What a check says: how bad it is, what was found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """One finding of the check named ``check``; ``do`` is empty where nothing is to be done.

    An ``error`` would end, hang or falsify a run; a ``warning`` slows it down or may do so later.
    """

    check: str
    severity: Severity
    found: str
    do: str = ""
