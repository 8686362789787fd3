"""A tiny archive and the run of one rank with which all others are compared."""

from pathlib import Path

import pytest

from simcast_hpc.config import TrainConfig, from_mapping, to_yaml
from simcast_hpc.data.synthetic import write_archive
from tests.multi_rank.runs import losses, overrides, simcast


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training events of 16 x 16 pixels."""
    root = tmp_path_factory.mktemp("archive") / "storms"
    write_archive(root, seed=5, events={"train": 6, "val": 1, "test": 2}, size=16, frames_per_event=12)
    return root


@pytest.fixture(scope="session")
def teacher_config(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """A teacher of six steps: global batch 4, micro-batch 1, so that one and two ranks accumulate."""
    config = from_mapping(
        TrainConfig,
        {
            "name": "tiny",
            "run_dir": "unset",
            "stage": "teacher",
            "max_steps": 6,
            "data": {"dataset": "synthetic", "root": str(archive), "window_stride": 4},
            "sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
            "model": {"hidden_spatial": 4, "hidden_temporal": 16, "temporal_blocks": 2, "groups": 2},
            "batch": {"global_size": 4, "micro_size": 1},
            "engine": {"precision": "fp32"},
            "checkpoint": {"every_steps": 2},
            "log": {"every_steps": 1},
            "validation": {"every_steps": 0, "export": "last"},
        },
    )
    path = tmp_path_factory.mktemp("config") / "teacher.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory: pytest.TempPathFactory, teacher_config: Path) -> Path:
    """The uninterrupted run of one rank without a launcher, ZeRO 0: no partition, no reduction."""
    run_dir = tmp_path_factory.mktemp("one-rank") / "run"
    simcast("python", 1, ["train", str(teacher_config), *overrides(run_dir=run_dir, engine__zero_stage=0)])
    assert len(losses(run_dir)) == 6
    return run_dir
