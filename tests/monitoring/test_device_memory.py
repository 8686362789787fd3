"""A snapshot of the device memory is written when it runs out, and never hides the error."""

import logging
from pathlib import Path

import pytest
import torch

from simcast_hpc.monitoring.device_memory import memory_metrics, snapshot_on_out_of_memory


def _run_out(folder: Path) -> None:
    with snapshot_on_out_of_memory(folder, rank=3):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_writes_a_snapshot_and_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.memory._dump_snapshot", lambda path: Path(path).write_bytes(b"snapshot"))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        _run_out(tmp_path / "memory")
    path = tmp_path / "memory" / "rank-3-out-of-memory.pickle"
    assert path.read_bytes() == b"snapshot" and [str(path) in note for note in caught.value.__notes__] == [True]


def test_a_snapshot_that_fails_does_not_hide_the_error(tmp_path, monkeypatch, caplog):
    def fail(path: str) -> None:
        raise RuntimeError("no allocator")

    monkeypatch.setattr("torch.cuda.memory._dump_snapshot", fail)
    logger = logging.getLogger("simcast_hpc")
    propagate, logger.propagate = logger.propagate, True
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        _run_out(tmp_path)
    logger.propagate = propagate
    assert "no allocator" in caplog.text and list(tmp_path.iterdir()) == []


def test_other_errors_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="shape"), snapshot_on_out_of_memory(tmp_path, rank=0):
        raise ValueError("shape")
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_the_host():
    assert 0.01 < memory_metrics()["memory/host_peak_gib"] < 1000
