"""Scores of issued forecasts: files of ``simcast predict`` are verified against the radar frames that came."""

from .score_issued import IssuedSettings, score_issued

__all__ = ["IssuedSettings", "score_issued"]
