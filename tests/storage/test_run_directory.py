"""The run directory: configuration and versions, a marker bound to inputs and weights, errors by name."""

import hashlib
import json
import os

import pytest

from simcast_hpc.config import ConfigError, TrainConfig, read_config
from simcast_hpc.storage.run_directory import RunDirectory, file_hash, versions
from tests.archives import tiny_config


def test_configuration_and_versions_are_written(tmp_path):
    config = tiny_config(tmp_path / "deep" / "run")
    folder = RunDirectory(config.run_dir)
    folder.prepare(config)
    assert read_config(TrainConfig, folder.config) == config
    kept = json.loads(folder.versions.read_text())
    assert kept == versions()
    assert {"python", "torch", "deepspeed", "triton", "numpy", "device", "commit"} <= kept.keys()
    folder.prepare(config)  # a resume prepares again


@pytest.mark.parametrize("spoil", ["file in the way", "file above"])
def test_rejects_a_directory_that_cannot_be_written(tmp_path, spoil):
    path = tmp_path / "run" if spoil == "file in the way" else tmp_path / "run" / "below"
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(ConfigError, match=rf"run_dir={path} cannot be written: (File exists|Not a directory)"):
        RunDirectory(path).prepare(tiny_config(path))


@pytest.mark.parametrize("name", ["run", "run/deep", "run/deep/weights", "run/deep/checkpoints", "run/deep/events"])
def test_links_without_a_target_are_named_before_training(tmp_path, name):
    link = tmp_path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "purged")
    folder = RunDirectory(tmp_path / "run" / "deep")
    with pytest.raises(ConfigError, match=rf"{link} is a link to {tmp_path}/purged, which does not exist; restore it"):
        folder.create()
    (tmp_path / "purged").mkdir()
    folder.create()
    assert folder.path.is_dir(), "a link to a folder is one"


def test_files_and_folders_of_other_kinds_are_named_before_training(tmp_path):
    folder = RunDirectory(tmp_path)
    folder.stacks.touch()
    with pytest.raises(ConfigError, match=r"/stacks is not a folder; move it"):
        folder.create()
    folder.stacks.unlink()
    folder.done.mkdir()
    with pytest.raises(ConfigError, match=r"/DONE\.json is a folder, not a file; move it"):
        folder.create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_rejects_a_read_only_directory(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        RunDirectory(tmp_path / "run").prepare(tiny_config(tmp_path / "run"))


def test_a_marker_is_valid_for_equal_inputs_and_intact_weights(tmp_path):
    folder = RunDirectory(tmp_path)
    inputs = {"seed": 1, "loss.weights": (1.0, 10.0)}
    assert folder.finished(inputs) is None
    weights = bytes(range(100))
    folder.finish(inputs, steps=7, weights=hashlib.sha256(weights).hexdigest())
    assert folder.finished(inputs) is None, "a run without weights is not finished"
    folder.weights.parent.mkdir()
    folder.weights.write_bytes(weights[:50])
    assert folder.finished(inputs) is None, "a run with truncated weights is not finished"
    folder.weights.write_bytes(weights)
    marker = folder.finished(inputs)
    assert marker is not None and marker["steps"] == 7 and marker["inputs"] == {"seed": 1, "loss.weights": [1.0, 10.0]}
    with pytest.raises(ConfigError, match="belongs to another run: seed was 1, is 2"):
        folder.finished({**inputs, "seed": 2})
    with pytest.raises(ConfigError, match=r"loss\.weights was \[1\.0, 10\.0\], is not set"):
        folder.finished({"seed": 1})


def test_a_damaged_marker_is_named(tmp_path):
    folder = RunDirectory(tmp_path)
    folder.done.write_text('{"inputs": ', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"DONE\.json is damaged .*remove it"):
        folder.finished({})


def test_file_hash_is_the_sha256(tmp_path):
    path = tmp_path / "a"
    content = bytes(range(256)) * 5000
    path.write_bytes(content)
    assert file_hash(path) == hashlib.sha256(content).hexdigest()
