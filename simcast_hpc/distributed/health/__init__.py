"""Whether a machine, and the nodes of a job, are fit for a run: looked at before hours are spent, with what to do.

Each module looks at one kind of thing and returns :class:`Finding`; ``examine`` runs all on every rank.
"""

from .finding import Finding, Severity
from .rank_checks import Asked, Examined, RankReport, examine

__all__ = ["Asked", "Examined", "Finding", "RankReport", "Severity", "examine"]
