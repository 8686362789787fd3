"""Fixtures: an archive, and finished runs of newly initialized weights."""

from tests.generative_runs import root, runs

__all__ = ["root", "runs"]
