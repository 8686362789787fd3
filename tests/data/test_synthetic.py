"""Synthetic storms: reproducible, in SEVIR's layout, with radar-like statistics; archives reused or rejected."""

import csv
import hashlib
import json
import subprocess
import sys
from datetime import datetime

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data import synthetic
from simcast_hpc.data.encoding import SevirVil, block_mean
from simcast_hpc.data.storms.wind import Flow
from simcast_hpc.data.synthetic import storm_event, write_archive

EVENTS = {"train": 5, "val": 2, "test": 3}
THRESHOLDS = (16, 74, 133, 160, 181, 219)


@pytest.fixture(scope="module")
def storms() -> np.ndarray:
    """Return 48 test events, uint8 ``[N, T, H, W]``."""
    return np.stack([storm_event(seed=0, index=synthetic.FIRST_INDEX["test"] + number) for number in range(48)])


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "deep" / "archive"
    calls: list[tuple[int, int]] = []
    written = write_archive(
        root,
        seed=3,
        events=EVENTS,
        size=16,
        frames_per_event=7,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert written
    assert calls == [(number, 10) for number in range(1, 11)]
    return root


def _rows(root):
    with (root / "CATALOG.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def _persistence_csi(storms: np.ndarray) -> np.ndarray:
    """Return the CSI ``[threshold, lead time]`` of persistence, 6 frames in and out, pooled over starts 0, 6, 12."""
    windows = np.concatenate([storms[:, start : start + 12] for start in (0, 6, 12)])
    last, observed = windows[:, 5:6], windows[:, 6:]
    scores = []
    for threshold in THRESHOLDS:
        event = observed >= threshold
        assert event.sum() >= 1000
        assert event.any(axis=(1, 2, 3)).reshape(3, -1).any(axis=0).sum() >= 5
        hits = (event & (last >= threshold)).sum(axis=(0, 2, 3))
        scores.append(hits / (event | (last >= threshold)).sum(axis=(0, 2, 3)))
    return np.array(scores)


def test_event_depends_only_on_seed_and_index(storms):
    first = synthetic.FIRST_INDEX["test"]
    np.testing.assert_array_equal(storm_event(seed=0, index=first + 7), storms[7])
    assert (storm_event(seed=1, index=first + 7) != storms[7]).any()
    assert len({event.tobytes() for event in storms}) == len(storms)


def test_another_process_gives_the_same_bytes(storms):
    code = (
        "import hashlib; from simcast_hpc.data.synthetic import storm_event; "
        f"print(hashlib.sha256(storm_event(seed=0, index={synthetic.FIRST_INDEX['test'] + 1}).tobytes()).hexdigest())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == hashlib.sha256(storms[1].tobytes()).hexdigest()


def test_size_is_a_matter_of_resolution(storms):
    fine = storm_event(seed=0, index=synthetic.FIRST_INDEX["test"], size=96)
    vil = SevirVil()
    coarse = vil.encode(block_mean(vil.decode(fine), 2))
    assert np.corrcoef(coarse.ravel(), storms[0].ravel())[0, 1] > 0.98


@pytest.mark.parametrize(("size", "frames"), [(16, 1), (33, 49), (128, 3)])
def test_shapes(size, frames):
    event = storm_event(seed=2, index=0, size=size, frames=frames)
    assert event.shape == (frames, size, size) and event.dtype == np.uint8
    assert 0 < event.max() < 255


def test_too_small_is_rejected():
    with pytest.raises(ValueError, match="size=8"):
        storm_event(seed=0, index=0, size=8)


def test_statistics_of_vil(storms):
    percent = [(storms >= threshold).mean() * 100 for threshold in THRESHOLDS]
    assert 25 < percent[0] < 50
    assert 8 < percent[1] < 22
    assert 0.6 < percent[4] < 2
    assert 0.08 < percent[5] < 0.3
    assert (storms >= 219).any(axis=(1, 2, 3)).mean() > 0.5


def test_persistence_has_realistic_csi(storms):
    csi = _persistence_csi(storms).mean(axis=0)
    assert 0.55 < csi[0] < 0.75
    assert 0.17 < csi[5] < 0.3
    assert (np.diff(csi) < 0).all()


def test_motion_is_not_a_single_vector():
    """In six frames the flow of a typical event displaces pixels by more than two pixels from the mean motion."""
    y, x = np.meshgrid(np.arange(48.0), np.arange(48.0), indexing="ij")
    deviations = []
    for index in range(40):
        v, u = Flow.sample(np.random.default_rng([0, index])).at(y, x, 12.0)
        deviations.append(6 * np.sqrt(v.var() + u.var()))
    assert np.median(deviations) > 2


def test_storms_grow_and_decay_within_the_horizon(storms):
    """Pure advection would conserve the sum of VIL; growth and decay change it by more than 40 % in many events."""
    vil = SevirVil().decode(storms[:, ::6]).sum(axis=(2, 3))
    change = np.abs(np.log2(vil[:, 1:] / vil[:, :-1]))
    assert (change > 0.5).mean() > 0.2


def test_archive_has_the_layout_of_sevir(archive):
    rows = _rows(archive)
    assert list(rows[0]) == synthetic._COLUMNS
    assert len({row["id"] for row in rows}) == len(rows) == 10
    for row in rows:
        assert (row["img_type"], float(row["pct_missing"])) == ("vil", 0.0)
        assert row["minute_offsets"] == "-15:-10:-5:0:5:10:15"
        assert row["file_name"].startswith(f"vil/{row['time_utc'][:4]}/SEVIR_VIL_")
        with h5py.File(archive / "data" / row["file_name"], "r") as file:
            place = int(row["file_index"])
            assert file["id"][place].decode() == row["id"]
            event = file["vil"][place]
            assert file["vil"].dtype == np.uint8 and event.shape == (16, 16, 7)
            assert (int(row["data_min"]), int(row["data_max"])) == (event.min(), event.max())


def test_dates_fall_into_the_splits_of_sevir(archive):
    times = [datetime.fromisoformat(row["time_utc"]) for row in _rows(archive)]
    val, test = datetime(2019, 1, 1), datetime(2019, 6, 1)
    assert sum(time <= val for time in times) == EVENTS["train"]
    assert sum(val < time <= test for time in times) == EVENTS["val"]
    assert sum(time > test for time in times) == EVENTS["test"]
    assert all(time.year in (2017, 2018, 2019) and time.minute % 5 == 0 for time in times)
    assert len(set(times)) == len(times)


def test_event_ids_are_generator_indices_of_their_split(archive):
    for row in _rows(archive):
        index = int(row["id"][1:])
        with h5py.File(archive / "data" / row["file_name"], "r") as file:
            stored = np.moveaxis(file["vil"][int(row["file_index"])], -1, 0)
        np.testing.assert_array_equal(stored, storm_event(seed=3, index=index, size=16, frames=7))
    indices = sorted(int(row["id"][1:]) for row in _rows(archive))
    first = synthetic.FIRST_INDEX
    assert indices == [first[split] + number for split, count in EVENTS.items() for number in range(count)]


def test_equal_recipes_give_equal_files(archive, tmp_path):
    assert write_archive(tmp_path / "again", seed=3, events=EVENTS, size=16, frames_per_event=7)
    files = sorted(path.relative_to(archive) for path in archive.rglob("*") if path.is_file())
    assert len(files) == 2 + 5
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (archive / path).read_bytes(), path
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_reuses_an_archive_of_the_same_recipe(archive, monkeypatch):
    monkeypatch.setattr(synthetic, "storm_event", lambda **_: pytest.fail("written again"))
    assert not write_archive(archive, seed=3, events=EVENTS, size=16, frames_per_event=7)


def test_rejects_an_archive_of_another_recipe(archive):
    with pytest.raises(DataError, match="seed is 3, requested 4"):
        write_archive(archive, seed=4, events=EVENTS, size=16, frames_per_event=7)
    with pytest.raises(DataError, match="another recipe"):
        write_archive(archive, seed=3, events={"train": 5}, size=16, frames_per_event=7)


def test_rejects_and_keeps_a_folder_with_other_files(tmp_path):
    (tmp_path / "other.txt").write_text("content")
    with pytest.raises(DataError, match=r"recipe\.json"):
        write_archive(tmp_path, seed=0, events={"train": 1}, size=16, frames_per_event=2)
    assert (tmp_path / "other.txt").read_text() == "content"


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_rejects_a_damaged_archive(tmp_path, damage):
    recipe = {"seed": 0, "events": {"test": 1}, "size": 16, "frames_per_event": 2}
    root = tmp_path / "archive"
    write_archive(root, **recipe)
    (path,) = root.rglob("*.h5")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        path.unlink()
    with pytest.raises(DataError, match=path.name):
        write_archive(root, **recipe)


def test_failure_leaves_no_files(tmp_path):
    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path / "a", seed=0, events={"train": 4}, size=16, frames_per_event=2, progress=stop)
    assert not list(tmp_path.iterdir())


def test_uses_an_empty_folder_and_accepts_a_concurrent_writer(tmp_path):
    recipe = {"seed": 0, "events": {"val": 2}, "size": 16, "frames_per_event": 2}
    root = tmp_path / "archive"
    root.mkdir()

    def faster(done: int, _total: int) -> None:
        if done == 1:
            assert write_archive(root, **recipe)

    assert not write_archive(root, progress=faster, **recipe)
    assert json.loads((root / synthetic.RECIPE).read_text())["recipe"]["events"] == {"train": 0, "val": 2, "test": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(
    ("events", "message"), [({"dev": 1}, "dev"), ({"train": -1}, "train"), ({}, "no event"), ({"test": 0}, "no event")]
)
def test_rejects_invalid_numbers_of_events(tmp_path, events, message):
    with pytest.raises(ValueError, match=message):
        write_archive(tmp_path / "a", seed=0, events=events)
