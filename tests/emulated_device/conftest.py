"""The emulated device, compiled at first use, and the runs on it and on the CPU that the tests compare."""

import os
from pathlib import Path

import pytest

from tests.emulated_device.build_device import build
from tests.emulated_device.simcast_jobs import Jobs, Result, add_forecasts, add_stages, make_archive
from tests.system_programs import program


@pytest.fixture(scope="session")
def library() -> str:
    """The path of the compiled device; a test skips where g++ is absent."""
    return str(build(program("g++", package="g++")))


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive of synthetic storms."""
    return make_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="session")
def on_cpu(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    """Folder and results of all stages and forecasts on the CPU."""
    jobs = Jobs(tmp_path_factory.mktemp("cpu"), archive)
    add_stages(jobs)
    add_forecasts(jobs)
    return jobs.folder, jobs.run()


@pytest.fixture(scope="session")
def on_device(archive: Path, library: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    """Folder and results of the same commands on one emulated device."""
    jobs = Jobs(tmp_path_factory.mktemp("device"), archive)
    add_stages(jobs)
    add_forecasts(jobs)
    return jobs.folder, jobs.run(DEVICE_LIBRARY=library)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks are tiny: more threads would only wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
