"""The result of one health check."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check.
        severity: an ``error`` would end or hang a run or corrupt its results; a ``warning`` slows it down or may do so
            later.
        message: description of the result.
        remedy: what to do; empty if nothing.
    """

    check: str
    severity: Severity
    message: str
    remedy: str = ""
