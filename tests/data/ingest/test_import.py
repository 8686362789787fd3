"""Import of archives of radar files: frames, events, splits, append, resume."""

import filecmp
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.ingest.choose_events import choose_events, event_id
from simcast_hpc.data.ingest.frame_selection import select_frames
from simcast_hpc.data.ingest.import_recipe import ImportOptions, Recipe
from simcast_hpc.data.ingest.import_source import take_inventory
from simcast_hpc.data.ingest.import_target import import_source
from simcast_hpc.data.ingest.scan_table import read_table
from simcast_hpc.data.inspection import inspect
from simcast_hpc.data.shards.shard_format import read_index, read_manifest
from simcast_hpc.data.shards.shard_reader import ShardSource
from simcast_hpc.distributed.ranks import SINGLE_RANK
from simcast_hpc.radar import ModelEncoding, encode_frame, read_frames
from tests.data.ingest.radar_archive import BEGIN, frame_codes, write_archive, write_frame
from tests.shared_data import shared

WET = {"wet": "1 mm/h on 2 %", "keep_dry": "5%", "event": "4h"}
DATES = {"train_until": "2023-05-20", "val_until": "2023-05-25", "gap_days": 1.0}


@pytest.fixture(scope="module")
def month(tmp_path_factory) -> Path:
    """30 days of frames every 2 hours; 6 days have rain in the first 4 hours: 3 % of the time."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, range(30), step=120, wet_hours=4)
    return folder


def run(sources, target: Path, *, append: bool = False, **options) -> dict:
    limits = {name: options.pop(name) for name in ("since", "until", "pattern") if name in options}
    sources = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    return import_source(sources, target, ImportOptions(**options), SINGLE_RANK, append=append, **limits)


def same(one: Path, other: Path) -> None:
    names = [sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) for folder in (one, other)]
    assert names[0] == names[1]
    assert filecmp.cmpfiles(one, other, names[0], shallow=False)[1:] == ([], [])


def test_a_month_is_imported_without_options(month, tmp_path):
    content = run(month, tmp_path / "t")
    spec = read_spec(str(tmp_path / "t/dataset.yaml"))
    assert spec.encoding.model_dump() == {
        "kind": "linear", "unit": "dBZ", "gain": 0.5, "offset": -32.0, "zero_is_no_echo": True
    }  # fmt: skip
    assert (spec.step_minutes, spec.frames_per_event, spec.name) == (120, 12, month.name)
    assert content["inventory"]["never_covered_percent"] == pytest.approx(75)
    assert spec.coverage is not None and spec.coverage.percent == pytest.approx(25)
    # every pixel of every frame is the code of its file
    source = ShardSource(spec, tmp_path / "t", split="train", frames=12, max_percent_missing=None)
    for window in (0, len(source) - 1):
        day = datetime.strptime(source.key(window).event, "%Y%m%dT%H%M").replace(tzinfo=UTC)
        expected = [frame_codes(day + timedelta(minutes=120 * k), wet_hours=4) for k in range(12)]
        codes = source.read(window)
        np.testing.assert_array_equal(codes[:, :24, :20], expected)
        # ... and networks that halve the grid can be trained on it
        assert codes.shape == (12, 32, 32) and (codes[:, 24:] == 255).all() and (codes[:, :, 20:] == 255).all()
    assert content["padding"] == {"south": 8, "east": 12}
    with h5py.File(tmp_path / "t/coverage.h5", "r") as file:
        assert file["covered"].shape == (32, 32)  # pyright: ignore[reportAttributeAccessIssue]
    assert inspect(spec, tmp_path / "t").problems == []
    splits = [set(ShardSource(spec, tmp_path / "t", split=split, frames=8, max_percent_missing=None).dates)
              for split in ("train", "val", "test")]  # fmt: skip
    assert [len(days) for days in splits] == [21, 4, 3]  # 30 days, a gap of one day between two splits
    assert len(set.union(*splits)) == 28


def test_choice_of_rain(month, tmp_path):
    content = run(month, tmp_path / "t", **WET, **DATES)
    manifest = read_manifest(tmp_path / "t")
    index = read_index(tmp_path / "t", manifest)
    assert index.is_wet is not None and index.probability is not None
    # 1. Enrichment: of 180 slots 6 are wet; some are lost in the gaps between splits
    source_share = content["events"]["wet"] / content["events"]["candidates"]
    kept_share = index.is_wet.mean()
    assert source_share < 0.04 and kept_share >= 10 * source_share
    assert content["events"]["wet"] == index.is_wet.sum()
    assert set(index.probability.tolist()) == {1.0, np.float32(0.05).item()}
    # 2. Dry share, on average over seeds, and a pure function of seed, slot and tile: frames of a part of the time
    # have the same events
    recipe = Recipe.model_validate_json(json.dumps(content["recipe"]))
    table = read_table(tmp_path / "t/scan.h5", options=content["reading"])
    assert table is not None
    spec = recipe.spec(covered_percent=None, source="")
    chosen = {}
    for seed in range(20):
        seeded = recipe.model_copy(update={"seed": seed})
        chosen[seed] = choose_events(table, select_frames(table, recipe.series), seeded, spec)
    kept, dry = (sum(one.counts[name] for one in chosen.values()) for name in ("kept_dry", "candidates"))
    assert 0.035 < kept / (dry - sum(one.counts["wet"] for one in chosen.values())) < 0.065
    assert len({tuple(one.begin) for one in chosen.values()}) == 20
    early = table.take(np.flatnonzero(table.time < chosen[0].begin[9] + 1))
    part = choose_events(early, select_frames(early, recipe.series), recipe, spec)
    assert part.begin.tolist() == chosen[0].begin[:10].tolist()
    assert [event_id(int(begin), part.tiles[0], recipe).encode() for begin in part.begin] == index.id[:10].tolist()
    # 3. Importance: the probability is that of the mean rate
    recipe = recipe.model_copy(update={"importance": (0.1, 0.01), "wet": None})
    weighted = choose_events(table, select_frames(table, recipe.series), recipe, spec)
    assert weighted.probability.min() == np.float32(0.1) and 0.1 < weighted.probability.max() < 1
    # 4. Splits with gap days; no date on two sides
    recipe = recipe.model_copy(update={"importance": None})
    everything = choose_events(table, select_frames(table, recipe.series), recipe, spec)
    days = [np.unique(everything.begin[everything.split == k] // 86_400_000_000) for k in (1, 2, 3)]
    first = days[0][0]
    assert [(one[0] - first, one[-1] - first) for one in days] == [(0, 19), (21, 24), (26, 29)]
    assert everything.counts["between_splits"] == 12
    assert "keep dry 5 %" in manifest.notes[0] and "seed 0" in manifest.notes[0]


def test_append_equals_one_import(month, tmp_path):
    both, twice = tmp_path / "both", tmp_path / "twice"
    first, second = (
        [month / "2023/05" / f"{day:02d}" for day in range(1, 16)],
        [month / "2023/05" / f"{day:02d}" for day in range(16, 31)],
    )
    settings = {**WET, **DATES, "step": 120, "name": "mine", "tile": 16}
    run([*first, *second], both, **settings)
    run(first, twice, **settings)
    before = {path.name: path.stat().st_mtime_ns for path in twice.glob("shard-*")}
    run(second, twice, append=True)
    same(both, twice)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in twice.glob("shard-*")}.items()
    run(second, twice, append=True)  # nothing new
    same(both, twice)
    for options, message in (({"seed": 3}, "--seed"), ({"wet": "2 mm/h on 2 %"}, "--wet"), ({"step": 60}, "--step")):
        with pytest.raises(ConfigError, match=message):
            run(second, twice, append=True, **options)


def test_append_completes_the_last_slot_without_its_files(tmp_path):
    archive = tmp_path / "a"
    files = write_archive(archive, range(3), step=60)
    late = [path for path in files if path.name >= "radar_202305031000"]
    (tmp_path / "b").mkdir()
    for path in late:
        path.rename(tmp_path / "b" / path.name)
    settings = {"event": "4h", "step": 60, "name": "mine", "train_until": "2023-05-01", "val_until": "2023-05-02"}
    run(archive, tmp_path / "t", **settings)
    assert (tmp_path / "t/open.h5").is_file()
    run([archive, tmp_path / "b"], tmp_path / "both", **settings)
    archive.rename(tmp_path / "moved")  # the first months are on tape
    run(tmp_path / "b", tmp_path / "t", append=True)
    same(tmp_path / "both", tmp_path / "t")


def test_files_that_do_not_belong_are_listed_by_name(tmp_path):
    archive = tmp_path / "a"
    files = write_archive(archive, range(4))
    expected: dict[str, set[str]] = {name: set() for name in ("unreadable", "grid", "quantity", "duplicate", "cadence")}

    def move(path: Path, kind: str) -> Path:
        expected[kind].add(str(path))
        return path

    for path in files[::7]:
        path.unlink()
    for k, path in enumerate(files):
        time = BEGIN + timedelta(minutes=30 * k)
        if k % 7 == 0:
            continue
        if k % 10 == 1:  # jitter within a quarter of a step
            write_frame(path, frame_codes(time), time + timedelta(seconds=20))
        elif k % 40 == 12:
            move(path, "unreadable").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif k % 50 == 22:
            write_frame(move(path, "quantity"), frame_codes(time), time, quantity="RATE", gain=0.1)
        elif k in (100, 101):
            write_frame(move(path, "grid"), frame_codes(time, shape=(22, 20)), time)
        elif k % 60 == 33:
            move(path, "duplicate")
            shutil.copy2(path, path.with_name("late_" + path.name))
            os.utime(path.with_name("late_" + path.name), (2e9, 2e9))
        elif k == 88:
            write_frame(move(path, "cadence"), frame_codes(time), time + timedelta(minutes=9))
        elif k == 90:
            write_frame(path, frame_codes(time) // 2, time, gain=1.0)
    content = run(archive, tmp_path / "t", event="4h")
    listed = content["inventory"]["not_used"]
    assert {kind: {one["file"] for one in files} for kind, files in listed.items()} == expected
    assert all(expected.values())
    notes = content["inventory"]["notes"]
    assert len(notes["jitter"]) == sum(k % 10 == 1 and k % 7 > 0 for k in range(192))
    assert [one["file"] for one in notes["gain"]] == [str(files[90])]
    # no window contains a gap, and every other frame has the codes of its own time
    spec = read_spec(str(tmp_path / "t/dataset.yaml"))
    source = ShardSource(spec, tmp_path / "t", split="all", frames=4, window_stride=1, max_percent_missing=None)
    lost = {path for kind in ("unreadable", "grid", "quantity", "cadence") for path in expected[kind]}
    complete = [k % 7 > 0 and str(path) not in lost for k, path in enumerate(files)]
    days = [datetime.strptime(source.key(k).event, "%Y%m%dT%H%M").replace(tzinfo=UTC) for k in range(len(source))]
    starts = {(time - BEGIN) // timedelta(minutes=30) + source.key(k).start for k, time in enumerate(days)}
    assert all(all(complete[start : start + 4]) for start in starts) and starts
    assert json.loads((tmp_path / "t/import.json").read_text())["inventory"]["not_used"] == listed


def test_long_accumulations_are_an_error(tmp_path):
    for k in range(6):
        time = BEGIN + timedelta(minutes=15 * k)
        write_frame(tmp_path / f"a/{k}.h5", frame_codes(BEGIN), time, quantity="ACRR", gain=0.1, minutes=60)
    with pytest.raises(DataError, match=r"over 60 minutes.*--any-interval"):
        run(tmp_path / "a", tmp_path / "t")
    assert not list((tmp_path / "t").glob("shard-*"))
    assert take_inventory([str(tmp_path / "a")], ImportOptions(), SINGLE_RANK)["warnings"]
    content = run(tmp_path / "a", tmp_path / "t", any_interval=True)
    assert content["inventory"]["intervals_minutes"] == {"60": 6}


@pytest.mark.parametrize(
    "options",
    [
        {"wet": "much"}, {"wet": "0 mm/h on 2 %"}, {"keep_dry": "5%"}, {"event": "7h"}, {"train_until": "2023-05-20"},
        {"tile": 8}, {"tile": 100}, {"z_r": (0.0, 1.0)}, {"importance": (2.0, 0.1)}, {"codec": "zip"},
        {"max_missing": "120%"},
    ],
)  # fmt: skip
def test_invalid_options(tmp_path, options):
    with pytest.raises(ConfigError, match="--"):
        run(tmp_path, tmp_path / "t", **options)
    assert not (tmp_path / "t").exists()


def test_other_folders_are_not_written(month, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/mine.txt").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        run(month / "2023/05/01", tmp_path / "t")
    with pytest.raises(DataError, match="append"):
        run(month / "2023/05/01", tmp_path / "new", append=True)
    run(month / "2023/05/01", tmp_path / "one", event="4h")
    with pytest.raises(DataError, match="--append"):
        run(month / "2023/05/02", tmp_path / "one")


def test_knmi_sequence_equals_its_reader_and_the_shared_archive(tmp_path):
    files = shared("data/radar/files/knmi_sequence")
    run(files, tmp_path / "t", event="2h")
    spec = read_spec(str(tmp_path / "t/dataset.yaml"))
    source = ShardSource(spec, tmp_path / "t", split="all", frames=24, max_percent_missing=None)
    (codes,) = (source.read(k) for k in range(len(source)))
    encoding = ModelEncoding(spec, 5.0, 1.0, any_spacing=True)
    for k, path in enumerate(sorted(files.glob("*.h5"))):
        expected = encode_frame(read_frames(path)[0], encoding).codes
        np.testing.assert_array_equal(codes[k, : len(expected), : expected.shape[1]], expected)
    with h5py.File(shared("data/radar/rr/2010/RR_KNMI_20100826.h5"), "r") as file:
        top, left = file["crop_yx"][0]  # pyright: ignore[reportIndexIssue]
        archive = file["rr"][0, ..., :24]  # pyright: ignore[reportIndexIssue]
    crop = codes[:, top : top + 384, left : left + 384]
    np.testing.assert_array_equal(np.moveaxis(crop, 0, -1), archive)
