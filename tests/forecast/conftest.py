"""Fixtures: an archive, finished runs of newly initialized weights, frames of a storm, and folders to watch."""

import logging
from pathlib import Path

import pytest

from tests.forecast.watch_runs import write_frame
from tests.generative_runs import root, runs
from tests.radar.radar_files import small_model

__all__ = ["root", "runs"]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A run of a small SimVP with random weights."""
    return small_model(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="session")
def storm_frames(tmp_path_factory) -> list[Path]:
    """Thirty frames of a storm, in dBZ, as small netCDF files."""
    folder = tmp_path_factory.mktemp("frames")
    return [write_frame(folder / f"frame{number:02d}.nc", number) for number in range(30)]


@pytest.fixture(autouse=True)
def _restore_loggers():
    """Undo what `simcast predict` sets up: a handler on a stream that is closed after the test."""
    loggers = [logging.getLogger(name) for name in ("simcast_hpc", "simcast_kernels")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """An empty folder to watch, and the name of an output folder."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"
