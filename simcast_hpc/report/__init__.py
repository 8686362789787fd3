"""Reports: HTML report, terminal tables and figures from the results of runs and evaluations.

Only this package imports matplotlib. It computes no scores: all scores are read from files written by ``evaluation``.
"""

from .example_window import ResultsError
from .html_report import write_comparison, write_picture, write_report
from .leaderboard_tables import print_leaderboard, read_boards
from .terminal_tables import print_scores, print_tables

__all__ = [
    "ResultsError",
    "print_leaderboard",
    "print_scores",
    "print_tables",
    "read_boards",
    "write_comparison",
    "write_picture",
    "write_report",
]
