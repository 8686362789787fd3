"""Evaluation: score several forecasts of a test set under its protocols, and write scores, intervals and diagrams."""

from .dataset_protocols import protocols_of
from .entries import (
    Entry,
    ForecastMethod,
    TestSet,
    baseline_entry,
    ensemble_entry,
    file_entry,
    model_entry,
    run_entry,
    with_postprocessing,
)
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
    "with_postprocessing",
]
