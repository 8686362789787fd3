"""Seeded mutants of every radar format: each ends in frames or in one of our errors, and the caller lives on."""

import resource
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import RadarFrame, read_frames, reader_process
from tests.fuzz.fuzz_readers import Target
from tests.fuzz.mutations import damaged, restructured
from tests.fuzz.valid_files import HDF5_READERS, READERS
from tests.shared_data import shared

MUTANTS = {"cf": 15, "fmi": 12, "polar": 25, "zarr": 15}
RSS_MIB = 300


def outcome(path: Path) -> str:
    try:
        frames = read_frames(path)
    except DataError as error:
        assert str(path) in str(error) or path.name in str(error), "the message names the file"
        return "cannot be read: the reader process" if "the reader process" in str(error) else "error"
    assert frames and all(isinstance(frame, RadarFrame) for frame in frames)
    return "frames"


@pytest.fixture(autouse=True)
def few_seconds(monkeypatch):
    monkeypatch.setenv(reader_process.SECONDS_VARIABLE, "5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < RSS_MIB << 10


@pytest.mark.parametrize("reader", READERS)
def test_mutants_end_in_frames_or_errors(tmp_path, reader):
    (tmp_path / "valid").mkdir()
    target = Target(reader, tmp_path / "valid")
    outcomes: Counter[str] = Counter()
    for content in target.valid:
        assert outcome(target.write(content)) == "frames", "the file is valid without damage"
        for seed in range(MUTANTS.get(reader, 30)):
            rng = np.random.default_rng(seed)
            outcomes[outcome(target.write(damaged(content, rng)))] += 1
            if reader in HDF5_READERS:
                outcomes[outcome(target.write(restructured(content, rng.bytes(40))))] += 1
    assert outcomes["error"] > 2, f"the damage is none: {outcomes}"


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_mutants(tmp_path, reader):
    (tmp_path / "valid").mkdir()
    target = Target(reader, tmp_path / "valid")
    for content in target.valid:
        for seed in range(1000, 1600):
            rng = np.random.default_rng(seed)
            outcome(target.write(damaged(content, rng)))
            if reader in HDF5_READERS:
                outcome(target.write(restructured(content, rng.bytes(60))))


@pytest.mark.slow
def test_mutants_of_real_files(tmp_path):
    files = [
        path for path in sorted(shared("data/radar").rglob("*")) if path.is_file() and path.stat().st_size < 3 << 20
    ]
    one_per_folder = list({path.parent: path for path in files}.values())
    outcomes: Counter[str] = Counter()
    for number, path in enumerate(one_per_folder):
        content = path.read_bytes()
        for seed in range(20):
            mutant = tmp_path / f"mutant{path.suffix}"
            mutant.write_bytes(damaged(content, np.random.default_rng((number, seed))))
            outcomes[outcome(mutant)] += 1
    assert outcomes["error"] > 20 and outcomes["frames"] > 0, outcomes
