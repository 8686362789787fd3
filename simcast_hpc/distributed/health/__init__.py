"""Health checks of a machine, and of all nodes of a job, before a run.

Each module checks one subject and returns :class:`Finding`; :func:`check_health` runs all checks on every rank.
"""

from .finding import Finding, Severity
from .rank_checks import HealthOptions, HealthReport, RankReport, check_health

__all__ = ["Finding", "HealthOptions", "HealthReport", "RankReport", "Severity", "check_health"]
