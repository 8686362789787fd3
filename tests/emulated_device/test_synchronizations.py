"""A training step waits for the device once in the project's own code; what DeepSpeed waits for is listed."""

from collections import Counter
from pathlib import Path

import pytest

from tests.emulated_device.simcast_jobs import STEPS, Jobs, add_stages

pytestmark = pytest.mark.ci
STAGES = ("teacher", "student", "direct", "diffusion")


@pytest.fixture(scope="module")
def places(archive: Path, library: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """Number of synchronizing calls in the training steps of each stage, by place."""
    jobs = Jobs(tmp_path_factory.mktemp("synchronizations"), archive)
    add_stages(jobs)
    results = jobs.run(DEVICE_LIBRARY=library, LIST_SYNCHRONIZATIONS="1")
    found = {}
    for stage in STAGES:
        assert results[stage].succeeded()
        lines = (jobs.folder / f"{stage}-0.synchronizations").read_text(encoding="utf-8").splitlines()
        found[stage] = Counter(line.partition("\t")[2] for line in lines)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_once_in_the_projects_code(
    places: dict[str, Counter[str]], stage: str, capsys: pytest.CaptureFixture[str]
):
    with capsys.disabled():  # shown in the log of every run
        print(f"\n{stage}: synchronizing calls per training step")
        for place, count in sorted(places[stage].items()):
            print(f"  {count / STEPS:5.1f}  {place}")
    ours = {place: count for place, count in places[stage].items() if not place.startswith("deepspeed")}
    assert [place.split(":")[0] for place in ours] == ["simcast_hpc/distributed/process_group.py"], ours
    assert list(ours.values()) == [STEPS]
