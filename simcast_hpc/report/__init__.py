"""Figures and pages from the results of a run; the only owner of matplotlib.

``results`` reads a run folder, ``claims`` says in sentences what its numbers hold, ``tables`` arranges them,
``figures`` and ``frames`` draw them, ``page`` and ``terminal`` put them before a reader. Nothing here computes a
score: what is shown was measured by ``verification`` and stands in the run folder.
"""

from .board import print_leaderboard, read_boards
from .examples import ResultsError
from .page import write_comparison, write_page
from .terminal import print_scores, print_tables

__all__ = [
    "ResultsError",
    "print_leaderboard",
    "print_scores",
    "print_tables",
    "read_boards",
    "write_comparison",
    "write_page",
]
