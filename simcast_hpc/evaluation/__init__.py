"""Forecasts of one test set counted under its protocols, side by side, and what a page or a paper needs of them."""

from .dataset_protocols import protocols_of
from .entries import Entry, ForecastMethod, TestSet, baseline_entry, ensemble_entry, file_entry, model_entry, run_entry
from .evaluate import evaluate

__all__ = [
    "Entry",
    "ForecastMethod",
    "TestSet",
    "baseline_entry",
    "ensemble_entry",
    "evaluate",
    "file_entry",
    "model_entry",
    "protocols_of",
    "run_entry",
]
