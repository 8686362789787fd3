"""A run trained on an archive resumes on its prepared shards with the same losses and weights."""

import shutil

import pytest

from simcast_hpc.config import TrainConfig, from_mapping, to_yaml
from simcast_hpc.data.synthetic import write_archive
from tests.data.shards import prepared
from tests.multi_rank.runs import losses, overrides, simcast, weights


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
    train = ["train", str(tmp_path / "run.yaml")]
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    simcast("python", 1, [*train, *overrides(run_dir=complete, data__root=archive)])
    shutil.copytree(complete, interrupted)  # state at step 4
    (interrupted / "DONE.json").unlink()
    shutil.rmtree(interrupted / "weights")
    last = max((interrupted / "checkpoints").iterdir(), key=lambda path: path.name)
    assert "6" in last.name
    shutil.rmtree(last)
    done = simcast("python", 1, [*train, *overrides(run_dir=interrupted, data__root=shards)])
    assert "resumed from" in done.stderr
    assert losses(interrupted) == losses(complete) and len(losses(complete)) == 6
    one, other = weights(complete), weights(interrupted)
    assert all(one[name].equal(other[name]) for name in one)
