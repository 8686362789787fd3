"""A run trained on an archive resumes on its prepared shards with the same losses and weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simcast_hpc.config import TrainConfig, from_mapping, to_yaml
from simcast_hpc.data.synthetic import write_archive
from tests.data.shards import prepared
from tests.multi_rank.runs import environment, losses, overrides, weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.multi
def test_run_resumes_on_the_shards_of_its_archive(tmp_path):
    archive = tmp_path / "archive"
    write_archive(archive, seed=5, events={"train": 6, "val": 1, "test": 2}, size=16, frames_per_event=12)
    shards = prepared(archive, tmp_path / "shards", events_per_shard=2)
    config = from_mapping(
        TrainConfig,
        {
            "name": "tiny",
            "run_dir": "unset",
            "stage": "teacher",
            "max_steps": 6,
            "data": {"dataset": "synthetic", "window_stride": 4, "workers": 1, "augment": True},
            "sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
            "model": {"hidden_spatial": 4, "hidden_temporal": 16, "temporal_blocks": 2, "groups": 2},
            "batch": {"global_size": 4, "micro_size": 2},
            "engine": {"precision": "fp32"},
            "checkpoint": {"every_steps": 2},
            "log": {"every_steps": 1},
        },
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    complete, resumed = tmp_path / "complete", tmp_path / "resumed"
    jobs = [
        {
            "config": str(tmp_path / "run.yaml"),
            "set": overrides(data__root=root)[1::2],
            "run_dir": str(run_dir),
            "ranks": 1,
            "resumes": start,
            "folder": str(tmp_path / f"{run_dir.name}-log"),
        }
        for run_dir, root, start in (
            (complete, archive, None),
            (resumed, shards, str(complete / "checkpoints" / "step-00000004")),
        )
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "tests.multi_rank.forked_ranks", str(tmp_path / "jobs.json")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert losses(resumed) == losses(complete)[4:] and len(losses(complete)) == 6
    expected, actual = weights(complete), weights(resumed)
    assert all(expected[name].equal(actual[name]) for name in expected)
