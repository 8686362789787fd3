"""Climatology of a data set in one pass: rain by month and hour, coverage and clutter, changes in time, persistence."""

from .accumulate import Climatology
from .summary import ClimatologySummary, summarize

__all__ = ["Climatology", "ClimatologySummary", "summarize"]
