"""An import on several ranks, and one that is killed at random moments, write the same bytes as an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simcast_hpc.data.ingest.import_recipe import ImportOptions
from simcast_hpc.data.ingest.import_target import import_source
from simcast_hpc.distributed.ranks import SINGLE_RANK
from tests.data.ingest.radar_archive import write_archive
from tests.data.ingest.test_import import same
from tests.data.shards import environment

ROOT = Path(__file__).resolve().parents[3]
_SETTINGS = {"event": "4h", "wet": "1 mm/h on 2 %", "keep_dry": "50%"}
_ARGUMENTS = ["--event", "4h", "--wet", "1 mm/h on 2 %", "--keep-dry", "50%"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, range(6), step=120)
    return folder


@pytest.fixture(scope="module")
def undisturbed(archive, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("imported") / "t"
    import_source([str(archive)], target, ImportOptions(**_SETTINGS), SINGLE_RANK)
    return target


@pytest.fixture(scope="module")
def in_two_parts(archive, tmp_path_factory):
    """Sources of an import and of an append, their options, and the import of both."""
    days = [str(archive / f"2023/05/{day:02d}") for day in range(1, 7)]
    options = ImportOptions(**_SETTINGS, train_until="2023-05-02", val_until="2023-05-04", name="radar")
    target = tmp_path_factory.mktemp("parts") / "t"
    import_source(days, target, options, SINGLE_RANK)
    return days[:3], days[3:], options, target


def start(archive: Path, target: Path, *launcher: str) -> subprocess.Popen[bytes]:
    # Tests that train in this process leave RANK and WORLD_SIZE, by which each of several ranks would be the only one.
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [*launcher, sys.executable, "-m", "simcast_hpc", "data", "import", str(archive), str(target), *_ARGUMENTS]
    return subprocess.Popen(command, env=environment() | paths, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.multi
def test_four_ranks_write_the_same_bytes(archive, undisturbed, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    process = start(archive, tmp_path / "t", str(Path(sys.executable).parent / "mpiexec"), "-n", "4")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode(errors="replace")
    same(undisturbed, tmp_path / "t")


@pytest.mark.slow
def test_killed_at_random_moments(archive, undisturbed, tmp_path):
    generator = random.Random(7)
    begin = time.monotonic()
    assert start(archive, tmp_path / "whole").wait(300) == 0
    duration = time.monotonic() - begin
    kills = 0
    for attempt in range(4):
        target = tmp_path / f"t{attempt}"
        for _ in range(3):
            process = start(archive, target)
            try:
                process.wait(generator.uniform(0.2, 0.9) * duration)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        assert start(archive, target).wait(300) == 0
        same(undisturbed, target)
    assert kills >= 4, "the first start of each target at least"


_LATE = ("write", "move", "clean", "coverage", "description", "index")
_SLOW = [pytest.param(step, marks=pytest.mark.slow) for step in _LATE]


@pytest.mark.parametrize("step", ["scan", "manifest", *_SLOW])
def test_an_error_at_any_step_is_resumed(archive, in_two_parts, tmp_path, monkeypatch, step):
    """The same in one process, at the steps at which a kill leaves another state."""
    from simcast_hpc.data.ingest import import_files, import_target, scan_frames

    module, name = {
        "scan": (scan_frames, "_kind"), "write": (import_target, "write_day"), "move": (import_files, "publish"),
        "coverage": (import_files, "_write_open"), "index": (import_files, "write_statistics"),
        "description": (import_files, "write_text"), "manifest": (import_files, "write_text"),
        "clean": (import_target, "clear_parts"),
    }[step]  # fmt: skip
    original, calls = getattr(module, name), []

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) >= {"scan": 25, "write": 2, "move": 2, "manifest": 3}.get(step, 1):
            raise MemoryError("killed")
        return original(*arguments, **options)

    first, second, options, reference = in_two_parts
    monkeypatch.setattr(scan_frames, "_PART_FRAMES", 10)
    for sources, append in ((first, False), (second, True)):
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(MemoryError, match="killed"):
            patch.setattr(module, name, fail)
            import_source(sources, tmp_path / "t", options, SINGLE_RANK, append=append)
        import_source(sources, tmp_path / "t", options, SINGLE_RANK, append=append)
    same(reference, tmp_path / "t")
