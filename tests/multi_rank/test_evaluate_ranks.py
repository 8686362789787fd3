"""Evaluation on 1, 2 and 4 ranks by torchrun and mpiexec gives bitwise equal sums and files."""

from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.data.synthetic import write_archive
from tests.multi_rank.runs import simcast

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five test events of three windows each, which 2 or 4 ranks cannot divide evenly."""
    root = tmp_path_factory.mktemp("storms") / "storms"
    write_archive(root, seed=2, events={"train": 1, "val": 1, "test": 5}, size=24, frames_per_event=12)
    return root


def evaluated(launcher: str, ranks: int, storms: Path, out: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of every statistics file of ``simcast evaluate``, and its CSV under ``csv``."""
    protocols = [
        word for name in ("sevir-global", "cascast-released", "sevir-sample-mean") for word in ("--protocol", name)
    ]
    frames = ["--frames-in", "3", "--frames-out", "5", "--window-stride", "2", "--draws", "50", "--scores", "all"]
    words = ["evaluate", "persistence", "--dataset", "synthetic", "--root", str(storms), "--out", str(out)]
    simcast(launcher, ranks, [*words, *protocols, *frames])
    found: dict[str, dict[str, np.ndarray]] = {"csv": {"text": np.array((out / "test.csv").read_text())}}
    for path in sorted(out.glob("test.persistence.*.npz")):
        with np.load(path) as arrays:
            found[path.name] = {name: arrays[name] for name in arrays.files}
    return found


@pytest.fixture(scope="module")
def alone(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """The statistics of one process."""
    return evaluated("python", 1, storms, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(("launcher", "ranks"), [("torchrun", 2), ("mpiexec", 4)])
def test_statistics_are_bitwise_independent_of_ranks(launcher, ranks, storms, alone, tmp_path):
    together = evaluated(launcher, ranks, storms, tmp_path / "scores")
    assert together.keys() == alone.keys() and len(alone) == 4
    for name, arrays in alone.items():
        assert together[name].keys() == arrays.keys()
        for key, expected in arrays.items():
            assert np.array_equal(together[name][key], expected), (name, key)
    hits = next(arrays["hits"] for name, arrays in alone.items() if name.endswith(".npz"))
    assert hits.shape[0] == 5 and hits.sum() > 0
