"""Preparation: same bytes for any number of ranks and after an interruption; invalid input raises or is skipped."""

import json
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.hdf5_files import time_major
from simcast_hpc.data.prepare import Recipe, open_raw, prepare
from simcast_hpc.data.prepare.archive_events import ArchiveEvents
from simcast_hpc.data.sampling_statistics import code_histogram
from simcast_hpc.data.shards.shard_format import read_manifest
from simcast_hpc.data.shards.shard_reader import ShardSource
from simcast_hpc.distributed.ranks import Ranks
from tests.archives import COLUMNS, FILE, Row, make_archive, random_codes, write_catalog, write_file
from tests.data.shards import command, hashes, prepared, run
from tests.shared_data import shared


@pytest.mark.multi
def test_number_of_ranks_does_not_change_the_bytes(tmp_path):
    raw = shared("golden/sevir_archive")
    result = run(command(raw, tmp_path / "three", "--events-per-shard", "3", ranks=3))
    assert result.returncode == 0, result.stderr
    assert "17 events in 6 shards" in result.stdout
    one = prepared(raw, tmp_path / "one", dataset="sevir", events_per_shard=3)
    assert hashes(one) == hashes(tmp_path / "three") and len(hashes(one)) == 10


def test_killed_preparation_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    raw = make_archive(tmp_path / "raw", random_codes(8, 6))
    complete, interrupted = prepared(raw, tmp_path / "complete", events_per_shard=1), tmp_path / "interrupted"
    child = os.fork()
    if child == 0:  # dies while the sixth shard is open
        read = ArchiveEvents.read
        monkeypatch.setattr(
            ArchiveEvents, "read", lambda self, n: os.kill(os.getpid(), signal.SIGKILL) if n == 5 else read(self, n)
        )
        prepared(raw, interrupted, events_per_shard=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in interrupted.glob("shard-*.h5")}
    assert len(finished) == 5 and not (interrupted / "manifest.json").exists()
    prepared(raw, interrupted, events_per_shard=1)
    assert hashes(interrupted) == hashes(complete)
    modified = {name: (interrupted / name).stat().st_mtime_ns for name in finished}
    assert modified == finished, "finished shards are kept"


def test_failure_of_one_rank_ends_all_ranks(tmp_path):
    class TwoRanks(Ranks):
        rank, size = 0, 2

        def gather(self, thing):
            return [thing, "rank 1: disk full" if thing is None else thing]

    raw = make_archive(tmp_path / "raw", random_codes(2, 6))
    with pytest.raises(Exception, match="rank 1: disk full"):
        prepare(lambda: open_raw(read_spec("synthetic"), raw), tmp_path / "out", Recipe(), TwoRanks())
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_second_preparation_writes_nothing(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    into = prepared(raw, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in into.iterdir()}
    prepared(raw, into)
    assert {path: path.stat().st_mtime_ns for path in into.iterdir()} == before


@pytest.mark.parametrize("what", ["raw data", "codec", "shard size"])
def test_rejects_a_folder_of_other_shards(tmp_path, what):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    into = prepared(raw, tmp_path / "out")
    if what == "raw data":
        make_archive(raw, random_codes(5, 6))
    with pytest.raises(DataError, match="contains shards of other raw data, another description, codec or number"):
        prepared(raw, into, **{"codec": {"codec": "zstd"}, "shard size": {"events_per_shard": 2}}.get(what, {}))


def test_rejects_a_folder_with_other_files_and_an_unknown_codec(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(2, 6))
    with pytest.raises(DataError, match=r"raw is not empty and contains no shards"):
        prepared(raw, raw)
    with pytest.raises(DataError, match=r"'gzip' is not a codec; choose lz4 or zstd"):
        prepared(raw, tmp_path / "out", codec="gzip")
    assert not (tmp_path / "out").exists()


def test_statistics_equal_those_of_the_frames(tmp_path):
    codes = random_codes(5, 6, missing=0.1)
    rows = [Row(f"E{n}", n, time_utc="2018-01-01" if n < 3 else "2019-02-01") for n in range(5)]
    manifest = read_manifest(prepared(make_archive(tmp_path / "raw", codes, rows=rows), tmp_path / "out"))
    train = manifest.statistics["train"]
    valid = codes[:3][codes[:3] != 255]
    assert train["events"] == 3 and train["codes"] == np.bincount(codes[:3].ravel(), minlength=256).tolist()
    assert train["percent_missing"] == pytest.approx(100 * (codes[:3] == 255).mean(), abs=1e-6)
    assert train["percent_at_or_above"]["74"] == pytest.approx(100 * (valid >= 74).mean(), abs=1e-6)
    assert train["mean_code"] == pytest.approx(valid.mean(), abs=1e-6)
    assert manifest.statistics["val"]["events"] == 2 and "test" not in manifest.statistics


@pytest.mark.parametrize("shape", [(1,), (7, 5, 3), (2, 64, 64), (3, 300, 301)])
def test_histogram_equals_bincount(shape):
    codes = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(code_histogram(codes), np.bincount(codes.ravel(), minlength=256))
    np.testing.assert_array_equal(code_histogram(codes[..., ::2]), np.bincount(codes[..., ::2].ravel(), minlength=256))


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (4, 6, 49)])
def test_time_major_moves_the_time_axis_first(shape):
    stored = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    transposed = time_major(stored)
    np.testing.assert_array_equal(transposed, np.moveaxis(stored, -1, 0))
    assert transposed.flags.c_contiguous


COLUMNS_WITH_TIMES = (*COLUMNS, "minute_offsets")


def _catalog_with_offsets(root: Path, offsets: dict[str, str]) -> None:
    names = [f"E{number:03d}" for number in range(4)]
    write_catalog(root, [Row(name, number) for number, name in enumerate(names)])
    lines = (root / "CATALOG.csv").read_text().splitlines()
    regular = ":".join(str(5 * step) for step in range(6))
    rows = [f"{line},{offsets.get(line.split(',')[0], regular)}" for line in lines[1:]]
    (root / "CATALOG.csv").write_text("\n".join([f"{lines[0]},minute_offsets", *rows]) + "\n")


def _in_file(**over):
    def damage(root: Path) -> None:
        with h5py.File(root / "data" / FILE, "r+") as file:
            for name, value in over.items():
                if name == "units":
                    file["vil"].attrs["units"] = value
                else:
                    file[name] = value

    return damage


def _another_file(stored, *, file_index=0):
    def damage(root: Path) -> None:
        if stored is not None:
            write_file(root / "data" / "other.h5", stored)
        rows = [Row(f"E{number:03d}", number) for number in range(4)]
        write_catalog(root, [*rows, Row("X", file_index, file_name="other.h5")])

    return damage


def _truncated(root: Path) -> None:
    _another_file(np.zeros((1, 16, 16, 6), np.uint8))(root)
    path = root / "data" / "other.h5"
    path.write_bytes(path.read_bytes()[:-300])


START = 1527854400  # 2018-06-01 12:00 UTC
EVERY_5 = START + 300 * np.arange(6) + np.zeros((4, 1), int)
LATE = EVERY_5 + np.array([[0], [0], [600], [0]]) * np.arange(6)
BACK = np.where(np.arange(4)[:, None] == 1, EVERY_5[:, ::-1], EVERY_5)
# Damage to an archive of four events: kind of the problem, message, and the events that remain if it is skipped.
BAD = {
    "truncated": (_truncated, "truncated", r"other\.h5.*truncated or not an HDF5", "0123"),
    "absent": (_another_file(None), "absent-file", r"other\.h5: there is no file", "0123"),
    "dtype": (_another_file(np.zeros((1, 16, 16, 6), np.int16)), "dtype", r"'vil' is int16", "0123"),
    "grid": (_another_file(np.zeros((1, 8, 8, 6), np.uint8)), "grid", r"\(8, 8, 6\) and other files", "0123"),
    "catalog index": (_another_file(np.zeros((1, 16, 16, 6), np.uint8), file_index=7), "catalog", "index 7", "0123"),
    "catalog id": (_in_file(id=[b"E000", b"E001", b"Z", b"E003"]), "catalog", r"E002 at index 2, .* has Z", "013"),
    "cadence": (lambda root: _catalog_with_offsets(root, {"E001": "0:10:20:30:40:50"}), "cadence", "10 minutes", "023"),
    "unsorted": (
        lambda root: _catalog_with_offsets(root, {"E003": "0:5:3:9:15:20"}), "unsorted-times", "not ascending", "012"
    ),
    "cadence in file": (_in_file(time=LATE), "cadence", r"E002 are 15 minutes apart; synthetic has 5", "013"),
    "unsorted in file": (_in_file(time=BACK), "unsorted-times", r"times of event E001 are not ascending", "023"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_input_raises_or_is_skipped_and_listed(tmp_path, case):
    damage, kind, message, remaining = BAD[case]
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    damage(raw)
    with pytest.raises(DataError, match=rf"1 problem in the data:\n  \[{kind}\] (?s:.*){message}(?s:.*)--skip {kind}"):
        prepared(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = read_manifest(prepared(raw, tmp_path / "out", skip=(kind,)))
    assert len(manifest.left_out) == 1 and f"[{kind}]" in manifest.left_out[0]
    source = ShardSource(read_spec("synthetic"), tmp_path / "out", split="train", frames=6)
    assert [source.key(index).event for index in range(len(source))] == [f"E00{number}" for number in remaining]


def test_rejects_a_unit_unlike_the_description(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    _in_file(units="dBZ")(raw)
    with pytest.raises(DataError, match=r"\[unit\] .*'vil' has units='dBZ'; synthetic is encoded in 'kg/m\^2'"):
        prepared(raw, tmp_path / "out")
    _in_file(units="kg m-2")(raw)
    assert read_manifest(prepared(raw, tmp_path / "out")).index.events == 4


def test_unreadable_event_raises_or_is_skipped_and_listed(tmp_path):
    codes = random_codes(4, 6)
    raw = make_archive(tmp_path / "raw", codes)
    with h5py.File(raw / "data" / FILE, "w") as file:
        stored = file.create_dataset("vil", data=np.moveaxis(codes, 1, -1), chunks=(1, 16, 16, 6), compression="gzip")
        chunk = stored.id.get_chunk_info(2)
    with (raw / "data" / FILE).open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    with pytest.raises(DataError, match=r"storms\.h5: event E002 cannot be read"):
        prepared(raw, tmp_path / "out")
    assert list((tmp_path / "out").glob("shard-*")) == []
    manifest = read_manifest(prepared(raw, tmp_path / "other", skip=("truncated",)))
    assert manifest.left_out == ("[truncated] vil/2018/storms.h5, event E002: cannot be read",)
    source = ShardSource(read_spec("synthetic"), tmp_path / "other", split="train", frames=6)
    assert [source.key(index).event for index in range(len(source))] == ["E000", "E001", "E003"]


def test_repeated_ids_are_noted(tmp_path):
    rows = [Row("A", 0), Row("B", 1), Row("A", 2)]
    manifest = read_manifest(prepared(make_archive(tmp_path / "raw", random_codes(3, 6), rows=rows), tmp_path / "out"))
    assert len(manifest.notes) == 1 and "[repeated-id] CATALOG.csv, event A: occurs 2 times" in manifest.notes[0]
    source = ShardSource(read_spec("synthetic"), tmp_path / "out", split="train", frames=6)
    assert [source.key(index).event for index in range(len(source))] == ["B"]


def test_rejects_an_unknown_kind_of_problem(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(2, 6))
    with pytest.raises(DataError, match=r"'typo' is not a kind of problem; choose absent-file, cadence"):
        prepared(raw, tmp_path / "out", skip=("typo",))


def test_full_disk_leaves_no_partial_shard(tmp_path, monkeypatch):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))

    def full(*_arguments, **_named) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.File, "create_dataset", full)
    with pytest.raises(OSError, match="No space left"):
        prepared(raw, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["claim.txt"]
    monkeypatch.undo()
    assert json.loads((prepared(raw, tmp_path / "out") / "manifest.json").read_text())["index"]["events"] == 4
