"""Shared by all tests of training: one thread, no launcher, configuration sections of tiny runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generative_runs import root, runs  # noqa: F401  fixtures

SMALL_EARTHFORMER = {
    "kind": "earthformer",
    "width": 8,
    "heads": 1,
    "stem": {"widths": [4, 8], "scales": [2, 2], "convolutions": [1, 1]},
}


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Compute on one thread: in networks this small, threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch) -> None:
    """Remove the variables of a launcher that these tests themselves may run under."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


def data_section(archive: Path, **over: Any) -> dict[str, Any]:
    """Return the section ``data`` of a tiny run on an archive."""
    return {"dataset": "synthetic", "root": str(archive), "window_stride": 2, "max_percent_missing": None} | over
