"""JSON files of runs, checkpoints and data that are JSON, but too large or of other types: errors of ours."""

import json
from pathlib import Path

import pytest

from simcast_hpc import cli
from simcast_hpc.config import ConfigError, DataError, SimcastError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.data.download.sevir_download import DownloadError, _remote
from simcast_hpc.data.shards import local_copy
from simcast_hpc.data.shards.shard_format import read_manifest
from simcast_hpc.data.synthetic import RECIPE, write_archive
from simcast_hpc.export import model_card
from simcast_hpc.export.export_folder import _trained_by
from simcast_hpc.report.pipeline_results import ResultsError, read_json
from simcast_hpc.storage.leases import Leases
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.checkpoint import Checkpoint, CheckpointError
from simcast_hpc.verification.protocols import ScoreProtocol, protocol_for

NOTE = {"file": "a.safetensors", "sha256": "x", "tensors": ["param/a"]}
VALID = {"files": [NOTE], "step": 1, "identity": {}}
OTHERS = ["[]", "1", '"text"', "null", "[" * 100_000, "{}", '[["a", "b"]]']


@pytest.mark.parametrize(
    "manifest",
    [
        *OTHERS,
        VALID | {"files": [NOTE | {"file": 5}]},
        *(VALID | {"files": [NOTE | {"file": name}]} for name in ("..", ".", "", "a\0b", "a/b", "a\nb")),
        VALID | {"files": [["file"]]},
        VALID | {"files": 3},
        VALID | {"files": [NOTE | {"tensors": 3}]},
        VALID | {"step": float("inf")},
        VALID | {"step": float("nan")},
        VALID | {"step": []},
        VALID | {"identity": [1]},
        {"files": [], "step": 1},
        '{"files": [], "identity": {}, "step": ' + "9" * 5000 + "}",
    ],
)
def test_manifests_of_checkpoints(tmp_path, manifest):
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError):
        Checkpoint(tmp_path)


def test_a_checkpoint_without_its_files_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(VALID), encoding="utf-8")
    checkpoint = Checkpoint(tmp_path)
    del checkpoint.manifest["files"][0]["sha256"]
    for read in (checkpoint.weights, checkpoint.verify, lambda: checkpoint.require({"a": 1})):
        with pytest.raises(SimcastError):
            read()
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: param/a cannot be read"):
        checkpoint.weights()


@pytest.mark.parametrize("text", OTHERS)
def test_files_of_runs_and_data(tmp_path, text):
    for name in ("DONE.json", "versions.json", "scores.json", "manifest.json", "a.lease", local_copy._VERIFIED, RECIPE):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"DONE\.json is damaged"):
        RunDirectory(tmp_path).marker()
    with pytest.raises(ConfigError, match=r"scores\.json is not a score file"):
        model_card._read_scores(str(tmp_path / "scores.json"), "a")
    with pytest.raises(DataError):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="contains no valid"):
        write_archive(tmp_path, seed=1, events={"train": 1}, size=16, frames_per_event=2)
    if text != "{}":
        with pytest.raises(ResultsError):
            read_json(tmp_path / "DONE.json")
    assert _trained_by(tmp_path / "versions.json") == {} == local_copy._read_verified(tmp_path)
    assert Leases(tmp_path, rank=0, stale_seconds=60).owners("a") == ["an unknown process"]


@pytest.mark.parametrize("scores", [{"scores": {"a": []}, "protocols": {}}, {"scores": {}, "protocols": {"a": 1}}])
def test_scores_of_other_types_in_a_model_card(tmp_path, scores):
    (tmp_path / "a.json").write_text(json.dumps(scores), encoding="utf-8")
    with pytest.raises(ConfigError, match="is not a score file"):
        model_card._read_scores(str(tmp_path / "a.json"), "a")


@pytest.mark.parametrize(("field", "value"), [("thresholds", 5), ("pools", 3), ("pools", [3]), ("pools", [{"a": 1}])])
def test_protocols_of_other_types(field, value):
    values = json.loads(protocol_for("simcast", (16.0,)).to_json())
    with pytest.raises(ValueError, match="has a field of the wrong type"):
        ScoreProtocol.from_json(json.dumps(values | {field: value}))


def test_large_json_files_are_not_read(tmp_path):
    (tmp_path / "a.json").write_text("[" + "[]," * 6_000_000 + "[]]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the file .*a\.json is larger than 16 MiB"):
        read_json_file(tmp_path / "a.json", error=ConfigError, what="the file")
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(DataError, match="larger than 64 MiB"):
        read_manifest(tmp_path)
    with pytest.raises(CheckpointError, match="larger than 64 MiB"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("size", [float("inf"), float("nan"), None, -1])
def test_listed_sizes_of_a_bucket(size):
    with pytest.raises(DownloadError):
        _remote("k", {"size": size, "ETag": "x"})


def test_further_lines_of_an_error_are_indented(monkeypatch, capsys):
    forged = "x\n12:00:00 forecast of 2026: ok"
    monkeypatch.setattr("sys.argv", ["simcast", "predict", str(Path("absent")), forged])
    with pytest.raises(SystemExit):
        cli.main()
    assert all(line.startswith(("simcast: ", " ")) for line in capsys.readouterr().err.splitlines())
