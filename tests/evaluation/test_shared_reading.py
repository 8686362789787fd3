"""Evaluation and calibration on two ranks: rank 0 reads the catalog, and the other only the windows that it scores."""

import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from simcast_hpc.baselines import load_baseline
from simcast_hpc.config import DataConfig, DataError, EvaluationConfig, SequenceConfig, from_mapping
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.data.shared_reads import read_together
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.evaluation import TestSet, baseline_entry, evaluate
from simcast_hpc.inference.calibration import fit_quantile_mapping

SEQUENCE = SequenceConfig(frames_in=3, frames_out=5, teacher_frames_out=5)


class ThreadRanks(Ranks):
    """Two ranks that are threads of this process."""

    size = 2

    def __init__(self, rank: int, things: list[Any], barrier: threading.Barrier):
        self.rank, self._things, self._barrier = rank, things, barrier

    def gather(self, thing: Any) -> list[Any]:
        self._things[self.rank] = thing
        self._barrier.wait(timeout=60)
        things = list(self._things)
        self._barrier.wait(timeout=60)
        return things


def opened_by_two_ranks(root: Path, work: Any) -> tuple[list[Any], list[Counter[str]]]:
    """Return the results of two ranks, and how often each opened each file below ``root``."""
    things, barrier = [None, None], threading.Barrier(2)
    results: list[Any] = [None, None]
    opened = [Counter[str](), Counter[str]()]
    rank_of: dict[int, int] = {}

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        rank = rank_of.get(threading.get_ident())
        if rank is not None and event in ("open", "os.listdir", "os.scandir") and str(root) in str(arguments[0]):
            opened[rank][Path(str(arguments[0])).name] += 1

    def run(rank: int) -> None:
        rank_of[threading.get_ident()] = rank
        try:
            results[rank] = work(ThreadRanks(rank, things, barrier))
        except Exception as error:
            results[rank] = error
        finally:
            del rank_of[threading.get_ident()]

    sys.addaudithook(record)  # cannot be removed, but records nothing after the end of the threads
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, opened


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("storms") / "storms"
    write_archive(root, seed=2, events={"train": 1, "val": 3, "test": 4}, size=16, frames_per_event=12)
    return from_mapping(DataConfig, {"dataset": "synthetic", "root": str(root), "window_stride": 2}, where="data")


def test_rank_1_of_an_evaluation_opens_no_catalog(data, tmp_path):
    assert data.root is not None
    settings = EvaluationConfig(protocols=("sevir-global",), baselines=(), draws=20, batch_size=2)

    def work(ranks: Ranks) -> Any:
        entries = [baseline_entry("persistence", data)]
        return evaluate(
            TestSet("test", data, "test"), entries, sequence=SEQUENCE, settings=settings, folder=tmp_path, ranks=ranks
        )

    (first, second), opened = opened_by_two_ranks(data.root, work)
    assert isinstance(first, dict) and first["entries"] and second == {}, (first, second)
    assert opened[0]["CATALOG.csv"] == 1 and opened[1]["CATALOG.csv"] == 0
    assert all(name.endswith(".h5") for name in opened[1]), opened[1]


def test_rank_1_of_a_calibration_opens_no_catalog_and_computes_no_fingerprint(data):
    assert data.root is not None
    method = load_baseline("persistence", target_spec(data).encoding)
    expected = fit_quantile_mapping(method, data, SEQUENCE)
    (first, second), opened = opened_by_two_ranks(
        data.root, lambda ranks: fit_quantile_mapping(method, data, SEQUENCE, ranks=ranks)
    )
    assert first.identity == second.identity == expected.identity
    assert (first.forecast == expected.forecast).all() and (second.forecast == expected.forecast).all()
    assert opened[0]["CATALOG.csv"] == 1 and opened[1]["CATALOG.csv"] == 0


def test_an_error_of_rank_0_is_raised_on_both(data, tmp_path):
    absent = data.model_copy(update={"root": tmp_path / "absent"})
    errors, _ = opened_by_two_ranks(
        tmp_path, lambda ranks: read_together(lambda: open_windows(absent, split="test", frames=8), ranks)
    )
    assert all(isinstance(error, DataError) for error in errors) and str(errors[0]) == str(errors[1])
