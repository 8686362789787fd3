"""Figures and pages from the results of a run; the only owner of matplotlib.

``results`` reads a run folder, ``claims`` says in sentences what its numbers hold, ``tables`` arranges them,
``figures`` and ``frames`` draw them, ``page`` and ``terminal`` put them before a reader. Nothing here computes a
score: what is shown was measured by ``verification`` and stands in the run folder.
"""

from .example_window import ResultsError
from .html_report import write_comparison, write_report
from .leaderboard_tables import print_leaderboard, read_boards
from .terminal_tables import print_scores, print_tables

__all__ = [
    "ResultsError",
    "print_leaderboard",
    "print_scores",
    "print_tables",
    "read_boards",
    "write_comparison",
    "write_report",
]
