"""What a run checks before it needs a device, what belongs to its identity, and what it leaves untouched."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from simcast_hpc.config import ConfigError, DataError, TrainConfig, from_mapping
from simcast_hpc.data.dataset_spec import built_in_specs
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.distributed.ranks import RankInfo
from simcast_hpc.distributed.row_shards import RowShards
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.models import grid_of
from simcast_hpc.train import trainer
from simcast_hpc.train.trainer import plan
from tests.archives import Row, make_archive, random_codes, tiny_config, write_trained
from tests.train.conftest import SMALL_EARTHFORMER, data_section


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("trainer"), random_codes(5, 11, missing=0.002))


def _config(tmp_path: Path, root: Path, *, data: dict | None = None, **over) -> TrainConfig:
    return tiny_config(tmp_path / "run", data=data_section(root, **(data or {})), **over)


def test_config_is_fitted_to_the_grid_once_and_the_identity_excludes_it(tmp_path, root):
    unset = plan(_config(tmp_path, root, model=SMALL_EARTHFORMER))
    given = plan(_config(tmp_path, root, model={**SMALL_EARTHFORMER, "grid": [16, 16]}))
    assert grid_of(unset.config.model) == (16, 16)
    assert unset.config is unset.stage.config and unset.config == given.config
    assert unset.identity == given.identity and "model.grid" not in unset.identity


def test_dropout_is_seeded_per_micro_batch_by_its_samples(tmp_path, root):
    """A resumed run, or another number of ranks, has the same masks for the same samples."""
    planned = plan(_config(tmp_path, root))

    def seeds(first_step: int, rank: int = 0, ranks: int = 1) -> list[int | None]:
        joined = TorchRanks(rank, ranks, torch.device("cpu"))
        batches = trainer._device_batches(planned, planned.stage.source, joined, RowShards(), first_step=first_step)
        return [batch.seed for batch in islice(batches, 4)]

    uninterrupted = seeds(0)
    assert seeds(1)[:2] == uninterrupted[2:], "two micro-batches per step"
    assert [seeds(0, rank, 2)[0] for rank in range(2)] == uninterrupted[:2]
    assert len(set(uninterrupted)) == 4 and None not in uninterrupted


def test_identity_contains_science_data_and_teacher(tmp_path, root):
    teacher = write_trained(tiny_config(tmp_path / "teacher", stage="teacher", data=data_section(root)))
    config = _config(tmp_path, root, stage="student", student={"teacher": str(teacher)})
    planned = plan(config)
    identity = planned.identity
    assert identity["data fingerprint"] == planned.stage.source.fingerprint
    assert identity["teacher"] == load_trained(teacher).weights_hash
    assert json.loads(json.dumps(identity)) == json.loads(json.dumps(plan(config).identity))
    other = make_archive(tmp_path / "other", random_codes(5, 11, seed=9))
    assert plan(_config(tmp_path, other)).identity != plan(_config(tmp_path, root)).identity


def test_identity_contains_the_meaning_of_the_data_not_its_name(tmp_path, root):
    """A description in another file is the same data; other thresholds in it give another loss."""
    text = built_in_specs()["synthetic"].read_text(encoding="utf-8")
    files = {
        "moved": text,
        "renamed": text.replace("name: synthetic", "name: storms"),
        "other": text.replace("181, 219]", "181, 200]"),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    identities = {
        name: plan(_config(tmp_path, root, data={"dataset": str(tmp_path / f"{name}.yaml")})).identity for name in files
    }
    assert identities["moved"] == identities["renamed"] == plan(_config(tmp_path, root)).identity
    assert identities["other"] != identities["moved"]


@pytest.mark.parametrize(
    ("over", "error", "message"),
    [
        (
            {"batch": {"global_size": 4, "micro_size": 4}},
            ConfigError,
            r"batch\.global_size=4 .* 4 x 2; choose .*=1 or 2",
        ),
        ({"data": {"root": None}}, ConfigError, r"data\.root is not set"),
        ({"data": {"dataset": "sevri"}}, ConfigError, r"the dataset 'sevri' \(data\.dataset.* did you mean sevir"),
        ({"data": {"file_names": ["x"]}}, DataError, "split 'train' of synthetic is empty"),
        ({"data": {"frame_stride": 3}}, DataError, r"windows of 7 frames do not fit in events of 4 frames"),
        ({"data": {"crop": 32}}, ConfigError, r"data\.crop=32 is larger than the data's grid of 16 x 16 pixels"),
        ({"loss": {"thresholds": [30.0], "unit": "dBZ"}}, DataError, r"\[30\.0\] are in 'dBZ'"),
        (
            {"model": {"kind": "earthformer", "grid": [8, 8]}},
            ConfigError,
            r"model\.grid=\[8, 8\] differs from .* 16 x 16",
        ),
        (
            {"model": {"kind": "earthformer"}},
            ConfigError,
            r"the model does not fit: model\.stem\.scales=\[3, 2, 2\].*16 x 16 .*try model\.stem\.scales=\[2, 2, 2\]",
        ),
        (
            {"model": {**SMALL_EARTHFORMER, "encoder_pattern": "axail"}},
            ConfigError,
            "the model does not fit: .*'axail'; did you mean 'axial'",
        ),
        (
            {"model": {"hidden_spatial": 4, "hidden_temporal": 8, "groups": 3}},
            ConfigError,
            "the model does not fit: .*6",
        ),
        ({"model": {"spatial_blocks": 12, "groups": 2}}, ConfigError, "the model does not fit: .*multiples of 64"),
    ],
    ids=["batch", "root", "dataset", "empty", "frames", "crop", "unit", "grid", "stem", "pattern", "sizes", "halving"],
)
def test_rejects_invalid_runs_before_any_device(tmp_path, root, monkeypatch, over, error, message):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    sections = json.loads(_config(tmp_path, root).model_dump_json())
    for section, changes in over.items():
        sections[section] = changes if "kind" in changes else {**sections[section], **changes}
    with pytest.raises(error, match=message):
        plan(from_mapping(TrainConfig, sections))


def test_unwritable_run_directory_is_rejected_before_the_ranks_join(tmp_path, root, monkeypatch):
    (tmp_path / "file").write_text("")
    config = tiny_config(tmp_path / "file" / "run", data=data_section(root))
    monkeypatch.setattr(trainer, "join_process_group", lambda **_: pytest.fail("the ranks joined"))
    with pytest.raises(ConfigError, match=r"run_dir=.*file/run cannot be written: Not a directory"):
        trainer.run(config)


def test_finished_run_is_neither_repeated_nor_overwritten_by_another(tmp_path, root, monkeypatch):
    monkeypatch.setattr(trainer, "join_process_group", lambda **_: pytest.fail("the ranks joined"))
    monkeypatch.setattr(trainer, "find_rank", lambda _: RankInfo(0, 1, 0, "none"))
    config = _config(tmp_path, root)
    planned = plan(config)
    write_trained(config)
    marker = planned.directory.marker()
    assert marker is not None
    planned.directory.finish(planned.identity, steps=4, weights=marker["weights"])
    files = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    trainer.run(config)
    with pytest.raises(ConfigError, match="belongs to another run: seed was 5, is 6"):
        trainer.run(_config(tmp_path, root, seed=6))
    assert files == {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}


def test_other_splits_are_never_trained_on(tmp_path):
    dates = ("2018-06-01", "2019-03-01", "2019-07-01")
    rows = [Row(f"E{i}", i, time_utc=date) for i, date in enumerate(dates)]
    root = make_archive(tmp_path / "a", random_codes(3, 11), rows=rows)
    source = plan(_config(tmp_path, root)).stage.source
    assert {source.key(index).event for index in range(len(source))} == {"E0"}


def test_rows_that_ranks_cannot_share_are_rejected_before_the_ranks_join(tmp_path, root, monkeypatch):
    monkeypatch.setattr(trainer, "find_rank", lambda _: RankInfo(0, 24, 0, "none"))
    monkeypatch.setattr(trainer, "join_process_group", lambda **_: pytest.fail("the ranks joined"))
    plan(_config(tmp_path, root, parallel={"spatial": 8}, batch={"global_size": 6}))
    with pytest.raises(ConfigError, match=r"parallel\.spatial=6 .* 16 rows .* multiples of 2; .* fits is 24"):
        plan(_config(tmp_path, root, parallel={"spatial": 6}, batch={"global_size": 8}))
    with pytest.raises(ConfigError, match=r"parallel\.spatial=5 does not divide the number of ranks, 24"):
        plan(_config(tmp_path, root, parallel={"spatial": 5}))
    with pytest.raises(ConfigError, match=r"section parallel is read by: teacher, direct, student"):
        _config(tmp_path, root, stage="autoencoder", parallel={"spatial": 2})
