"""Forecasts of one test set counted under its protocols, side by side, and what a page or a paper needs of them."""

from .chosen import protocols_of
from .entries import Entry, Forecast, TestSet, baseline_entry, file_entry, model_entry
from .run import evaluate

__all__ = [
    "Entry",
    "Forecast",
    "TestSet",
    "baseline_entry",
    "evaluate",
    "file_entry",
    "model_entry",
    "protocols_of",
]
