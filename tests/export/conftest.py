"""Finished runs of freshly drawn weights."""

from pathlib import Path

import pytest

from tests.archives import make_archive, random_codes
from tests.generative_runs import make_runs


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of five events of random codes, some of them missing."""
    return make_archive(tmp_path_factory.mktemp("ensemble"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="session")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs ``student``, ``autoencoder`` and ``diffusion``."""
    return make_runs(tmp_path_factory.mktemp("runs"), root)
