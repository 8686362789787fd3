"""Preparation: any number of ranks and any interruption give the same bytes; bad input is refused or listed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.hdf5_files import time_major
from simcast_hpc.data.prepare import Recipe, open_raw, prepare
from simcast_hpc.data.prepare.dataset_statistics import code_histogram
from simcast_hpc.data.shards.shard_format import read_manifest
from simcast_hpc.data.shards.shard_reader import ShardSource
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.ranks import Ranks
from tests.archives import COLUMNS, FILE, Row, make_archive, random_codes, write_catalog, write_file
from tests.data.shards import command, environment, hashes, prepared, run
from tests.shared_data import shared


@pytest.mark.multi
def test_any_number_of_ranks_writes_the_same_bytes(tmp_path):
    raw = shared("golden/sevir_archive")
    of = {}
    for ranks in (1, 2, 3):
        done = run(command(raw, tmp_path / str(ranks), "--events-per-shard", "3", ranks=ranks))
        assert done.returncode == 0, done.stderr
        assert "17 events in 6 shards" in done.stdout
        of[ranks] = hashes(tmp_path / str(ranks))
    assert of[1] == of[2] == of[3] and len(of[1]) == 9


@pytest.mark.multi
def test_a_killed_preparation_continues_to_the_same_bytes(tmp_path):
    raw = tmp_path / "raw"
    write_archive(raw, seed=3, size=96, frames_per_event=25, events={"train": 24, "val": 0, "test": 0})
    whole, cut = prepared(raw, tmp_path / "whole", events_per_shard=1), tmp_path / "cut"
    arguments = command(raw, cut, "--events-per-shard", "1", dataset="synthetic")
    killed = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(cut.glob("shard-*.h5"))) < 5 and killed.poll() is None:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    stood = {path.name: path.stat().st_mtime_ns for path in cut.glob("shard-*.h5")}
    assert 5 <= len(stood) < 24 and not (cut / "manifest.json").exists()
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert hashes(cut) == hashes(whole)
    assert all((cut / name).stat().st_mtime_ns == then for name, then in stood.items()), "what stood was kept"


def test_a_failing_rank_ends_the_others(tmp_path):
    class TwoRanks(Ranks):
        rank, size = 0, 2

        def gather(self, thing):
            return [thing, "rank 1: disk full" if thing is None else thing]

    raw = make_archive(tmp_path / "raw", random_codes(2, 6))
    with pytest.raises(Exception, match="rank 1: disk full"):
        prepare(lambda: open_raw(read_spec("synthetic"), raw), tmp_path / "out", Recipe(), TwoRanks())
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_prepared_again_nothing_is_written(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    into = prepared(raw, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in into.iterdir()}
    prepared(raw, into)
    assert {path: path.stat().st_mtime_ns for path in into.iterdir()} == before


@pytest.mark.parametrize("what", ["raw data", "codec", "shard size"])
def test_a_folder_of_other_shards_is_rejected(tmp_path, what):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    into = prepared(raw, tmp_path / "out")
    if what == "raw data":
        make_archive(raw, random_codes(5, 6))
    with pytest.raises(DataError, match="holds shards of other raw data, another description, codec or number"):
        prepared(raw, into, **{"codec": {"codec": "zstd"}, "shard size": {"events_per_shard": 2}}.get(what, {}))


def test_a_folder_with_something_else_is_rejected(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(2, 6))
    with pytest.raises(DataError, match=r"raw is not empty and holds no shards"):
        prepared(raw, raw)
    with pytest.raises(DataError, match=r"'gzip' is no codec; .* lz4 or zstd"):
        prepared(raw, tmp_path / "out", codec="gzip")
    assert not (tmp_path / "out").exists()


def test_statistics_are_those_of_the_codes(tmp_path):
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
def test_the_histogram_counts_every_code(shape):
    codes = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(code_histogram(codes), np.bincount(codes.ravel(), minlength=256))
    np.testing.assert_array_equal(code_histogram(codes[..., ::2]), np.bincount(codes[..., ::2].ravel(), minlength=256))


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (4, 6, 49)])
def test_time_comes_first(shape):
    stored = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    turned = time_major(stored)
    np.testing.assert_array_equal(turned, np.moveaxis(stored, -1, 0))
    assert turned.flags.c_contiguous


COLUMNS_WITH_TIMES = (*COLUMNS, "minute_offsets")


def _catalog_with_offsets(root: Path, offsets: dict[str, str]) -> None:
    names = [f"E{number:03d}" for number in range(4)]
    write_catalog(root, [Row(name, number) for number, name in enumerate(names)])
    lines = (root / "CATALOG.csv").read_text().splitlines()
    every = ":".join(str(5 * step) for step in range(6))
    told = [f"{line},{offsets.get(line.split(',')[0], every)}" for line in lines[1:]]
    (root / "CATALOG.csv").write_text("\n".join([f"{lines[0]},minute_offsets", *told]) + "\n")


def _in_file(**over):
    def spoil(root: Path) -> None:
        with h5py.File(root / "data" / FILE, "r+") as file:
            for name, value in over.items():
                if name == "units":
                    file["vil"].attrs["units"] = value
                else:
                    file[name] = value

    return spoil


def _another_file(stored, *, file_index=0):
    def spoil(root: Path) -> None:
        if stored is not None:
            write_file(root / "data" / "other.h5", stored)
        rows = [Row(f"E{number:03d}", number) for number in range(4)]
        write_catalog(root, [*rows, Row("X", file_index, file_name="other.h5")])

    return spoil


def _truncated(root: Path) -> None:
    _another_file(np.zeros((1, 16, 16, 6), np.uint8))(root)
    path = root / "data" / "other.h5"
    path.write_bytes(path.read_bytes()[:-300])


START = 1527854400  # 2018-06-01 12:00 UTC
EVERY_5 = START + 300 * np.arange(6) + np.zeros((4, 1), int)
LATE = EVERY_5 + np.array([[0], [0], [600], [0]]) * np.arange(6)
BACK = np.where(np.arange(4)[:, None] == 1, EVERY_5[:, ::-1], EVERY_5)
# What spoils four events: the kind of the problem, what is said, and the events that are left when it is skipped.
BAD = {
    "truncated": (_truncated, "truncated", r"other\.h5.*truncated or not an HDF5", "0123"),
    "absent": (_another_file(None), "absent-file", r"other\.h5: there is no file", "0123"),
    "dtype": (_another_file(np.zeros((1, 16, 16, 6), np.int16)), "dtype", r"'vil' is int16", "0123"),
    "grid": (_another_file(np.zeros((1, 8, 8, 6), np.uint8)), "grid", r"\(8, 8, 6\) where other files", "0123"),
    "catalog index": (_another_file(np.zeros((1, 16, 16, 6), np.uint8), file_index=7), "catalog", "index 7", "0123"),
    "catalog id": (_in_file(id=[b"E000", b"E001", b"Z", b"E003"]), "catalog", r"E002 at index 2, .* has Z", "013"),
    "cadence": (lambda root: _catalog_with_offsets(root, {"E001": "0:10:20:30:40:50"}), "cadence", "10 minutes", "023"),
    "unsorted": (lambda root: _catalog_with_offsets(root, {"E003": "0:5:3"}), "unsorted-times", "do not", "012"),
    "cadence in file": (_in_file(time=LATE), "cadence", r"E002 are 15 minutes apart; synthetic has 5", "013"),
    "unsorted in file": (_in_file(time=BACK), "unsorted-times", r"times of event E001 do not ascend", "023"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_rejected_or_skipped_and_listed(tmp_path, case):
    spoil, kind, says, left = BAD[case]
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    spoil(raw)
    with pytest.raises(DataError, match=rf"1 problem in the data:\n  \[{kind}\] (?s:.*){says}(?s:.*)--skip {kind}"):
        prepared(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = read_manifest(prepared(raw, tmp_path / "out", skip=(kind,)))
    assert len(manifest.left_out) == 1 and f"[{kind}]" in manifest.left_out[0]
    source = ShardSource(read_spec("synthetic"), tmp_path / "out", split="train", frames=6)
    assert [source.key(index).event for index in range(len(source))] == [f"E00{number}" for number in left]


def test_a_unit_that_is_not_the_descriptions_is_rejected(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))
    _in_file(units="dBZ")(raw)
    with pytest.raises(DataError, match=r"\[unit\] .*'vil' says units='dBZ'; synthetic is coded in 'kg/m\^2'"):
        prepared(raw, tmp_path / "out")
    _in_file(units="kg m-2")(raw)
    assert read_manifest(prepared(raw, tmp_path / "out")).index.events == 4


def test_an_event_that_breaks_while_it_is_read_is_rejected_or_skipped_and_listed(tmp_path):
    codes = random_codes(4, 6)
    raw = make_archive(tmp_path / "raw", codes)
    with h5py.File(raw / "data" / FILE, "w") as file:
        stored = file.create_dataset("vil", data=np.moveaxis(codes, 1, -1), chunks=(1, 16, 16, 6), compression="gzip")
        place = stored.id.get_chunk_info(2)
    with (raw / "data" / FILE).open("r+b") as file:
        file.seek(place.byte_offset)
        file.write(bytes(place.size))
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
    assert len(manifest.notes) == 1 and "[repeated-id] CATALOG.csv, event A: stands 2 times" in manifest.notes[0]
    source = ShardSource(read_spec("synthetic"), tmp_path / "out", split="train", frames=6)
    assert [source.key(index).event for index in range(len(source))] == ["B"]


def test_a_word_that_is_no_kind_of_problem_is_rejected(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(2, 6))
    with pytest.raises(DataError, match=r"'typo' is no kind of problem; the kinds are absent-file, cadence"):
        prepared(raw, tmp_path / "out", skip=("typo",))


def test_a_full_disk_leaves_no_shard(tmp_path, monkeypatch):
    raw = make_archive(tmp_path / "raw", random_codes(4, 6))

    def full(*_arguments, **_named) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.File, "create_dataset", full)
    with pytest.raises(OSError, match="No space left"):
        prepared(raw, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["claim.txt"]
    monkeypatch.undo()
    assert json.loads((prepared(raw, tmp_path / "out") / "manifest.json").read_text())["index"]["events"] == 4
