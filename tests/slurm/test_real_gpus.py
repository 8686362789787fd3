"""Jobs under a real Slurm whose tasks see one emulated GPU each, on prepared shards in the layout of HKO-7."""

import sys
from pathlib import Path

import pytest
import torch

from simcast_hpc.config import TrainConfig, from_mapping, to_yaml
from simcast_hpc.data.prepare import Recipe, prepare
from simcast_hpc.data.prepare.hko7_events import HKO7Events
from simcast_hpc.distributed.ranks import SingleRank
from tests.data.hko7_files import circle, small, write_hko7
from tests.emulated_device.build_device import build
from tests.multi_rank.runs import losses, weights
from tests.slurm.real_jobs import SHARED, Job, ranks_of
from tests.system_programs import program

pytestmark = pytest.mark.slurm
ONE_EACH = (
    "--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", "--gpus-per-node=2", "--cpus-per-task=1", "--time=20",
)  # fmt: skip
_STEPS = 30
# Slurm shows each task its device in CUDA_VISIBLE_DEVICES; four are on a node.
_EMULATED = """#!/bin/sh
export EMULATED_DEVICES=4 SIMCAST_KERNELS=reference
exec {python} -c '
import runpy, sys
from pathlib import Path
if sys.argv[2] == "simcast_hpc":
    from tests.emulated_device.emulated_cuda import start
    start(Path("{library}"))
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
' "$@"
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """Return a program that runs ``-m MODULE`` like Python, with the package on the emulated device."""
    path = tmp_path_factory.mktemp("bin") / "python"
    library = build(program("g++", package="g++"))
    path.write_text(_EMULATED.format(python=sys.executable, library=library), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    raw, into = write_hko7(tmp_path_factory.mktemp("hko7"), circle()), tmp_path_factory.mktemp("shards") / "hko7"
    prepare(lambda: HKO7Events(small("hko7"), raw), into, Recipe(events_per_shard=2), SingleRank())
    return into


@pytest.fixture(scope="module")
def teacher_yaml(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("config")
    (place / "hko7.yaml").write_text(to_yaml(small("hko7")), encoding="utf-8")
    data = {"dataset": str(place / "hko7.yaml"), "window_stride": 20, "max_percent_missing": None, "workers": 0}
    sections = SHARED | {"stage": "teacher", "max_steps": _STEPS, "checkpoint": {"every_steps": 5}, "data": data}
    sections |= {
        "engine": {"precision": "bf16", "zero_stage": 2, "deterministic": True, "timeout_minutes": 3.0},
        "batch": {"global_size": 4, "micro_size": 1},
        "validation": {"every_steps": 0, "export": "last"},
    }
    (place / "teacher.yaml").write_text(to_yaml(from_mapping(TrainConfig, sections)), encoding="utf-8")
    return place / "teacher.yaml"


def _train(cluster, shards: Path, run_dir: Path, python: str, *words: str) -> Job:
    return Job(cluster, shards, run_dir, "train.sh", *words, options=ONE_EACH, PYTHON=python)


def test_each_task_trains_on_its_own_device_and_resumes_after_a_crash(
    cluster,
    shards,
    teacher_yaml,
    python,
    tmp_path,
):
    whole = _train(cluster, shards, tmp_path / "whole", python, str(teacher_yaml))
    assert whole.end(seconds=600) == ("COMPLETED", 0)
    killed = _train(cluster, shards, tmp_path / "killed", python, str(teacher_yaml))
    killed.wait_for_step(12)
    ranks = ranks_of(killed)
    visible = [one.environ()["CUDA_VISIBLE_DEVICES"] for one in ranks]
    nodes = [one.environ()["SLURMD_NODENAME"] for one in ranks]
    assert len(ranks) == 4 and all(len(text.split(",")) == 1 for text in visible)
    assert len(set(zip(nodes, visible, strict=True))) == 4, "a device for each"
    ranks[3].kill()
    killed.wait_for_step(20, restarts=1)
    assert killed.end(seconds=600) == ("COMPLETED", 0)
    assert "completed a checkpoint or stage: the job is requeued" in killed.output()
    assert losses(killed.run_dir) == losses(whole.run_dir) and len(losses(whole.run_dir)) == _STEPS
    expected = weights(whole.run_dir)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(killed.run_dir).items())
    # Evaluation on all tasks, from the same shards
    scored = Job(
        cluster, shards, tmp_path / "scores", "evaluate.sh", str(whole.run_dir), options=ONE_EACH, PYTHON=python
    )
    assert scored.end(seconds=600) == ("COMPLETED", 0)
    assert list((tmp_path / "scores").rglob("*.json"))
