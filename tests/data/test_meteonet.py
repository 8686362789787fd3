"""MeteoNet files: gaps, missing values, both reflectivity products and rainfall, rainy_events events, errors."""

import io
import tarfile
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataError, from_mapping
from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec
from simcast_hpc.data.prepare.meteonet_events import MeteoNetEvents, rainy_events
from simcast_hpc.data.raw_layouts import RainSelection
from simcast_hpc.distributed.ranks import SingleRank
from tests.data.shards import prepared
from tests.shared_data import shared

SE = (515, 784)
BEGIN, FIVE = datetime(2016, 8, 21), timedelta(minutes=5)


def spec_of(name: str, **layout) -> DatasetSpec:
    """Return a built-in description with modified layout, and ``frames_per_event`` accordingly."""
    data = read_spec(name).model_dump(mode="json")
    data["layout"] |= layout
    data["frames_per_event"] = data["layout"]["event_frames"]
    return from_mapping(DatasetSpec, data)


def complete(spec: DatasetSpec, root: Path) -> MeteoNetEvents:
    events = MeteoNetEvents(spec, root)
    events.complete(SingleRank())
    return events


def write(path: Path, data: np.ndarray, *, dates: list[datetime] | None = None, gaps: tuple[int, ...] = ()) -> Path:
    """Write an npz file of MeteoNet: one frame every 5 minutes, without the steps in ``gaps``."""
    steps = [step for step in range(len(data) + len(gaps)) if step not in gaps]
    times = dates or [BEGIN + timedelta(minutes=5 * step) for step in steps]
    path.parent.mkdir(parents=True, exist_ok=True)
    absent = [BEGIN + timedelta(minutes=5 * step) for step in gaps]
    np.savez_compressed(path, data=data, dates=np.array(times), miss_dates=np.array(absent))
    return path


def old(frames: int, *, dbz: int = 24) -> np.ndarray:
    return np.full((frames, *SE), dbz, np.int16)


@pytest.mark.parametrize("region", ["SE", "NW"])
def test_native_reflectivity_keeps_gaps_and_missing_pixels(region):
    root = shared("data/radar/native/meteonet_npz")
    spec = spec_of("meteonet", region=region, crop=None, event_frames=4, whole_frames=False, selection=None)
    events = complete(spec, root)
    with np.load(root / f"reflectivity_old_{region}_2016_08.3.npz", allow_pickle=True) as file:
        data, dates = file["data"], file["dates"]
    assert not events.problems and len(events.notes) == 1
    gaps = sum(later - earlier != timedelta(minutes=5) for earlier, later in pairwise(dates))
    assert f"29 frames, {gaps} gaps," in events.notes[0].message
    assert events.events, "the longest gap-free run has 5 frames"
    for number, event in enumerate(events.events):
        first = event.file_index
        assert all(dates[first + k] - dates[first] == timedelta(minutes=5 * k) for k in range(4))
        codes = events.read(number)
        stored = data[first : first + 4]
        assert codes.shape == stored.shape and codes.dtype == np.uint8
        np.testing.assert_array_equal(codes == 255, stored == 255)
        np.testing.assert_array_equal(codes[stored != 255], 3 * stored[stored != 255])
    single_frames = complete(spec_of("meteonet", region=region, crop=None, event_frames=1, selection=None), root)
    assert len(single_frames.events) == int((data.max(axis=(1, 2)) != 255).sum())


def test_native_rainfall_is_converted_to_a_rain_rate():
    root = shared("data/radar/native/meteonet_npz")
    events = complete(spec_of("meteonet-rain", event_frames=15, crop=None), root)
    with np.load(root / "rainfall_SE_2016_08.3.npz", allow_pickle=True) as file:
        data, dates = file["data"], file["dates"]
    [event] = events.events
    assert event.id == f"SE_{dates[event.file_index]:%Y%m%dT%H%M}" and event.id.startswith("SE_20160828T1000")
    stored, codes = data[event.file_index : event.file_index + 15], events.read(0)
    np.testing.assert_array_equal(codes == 255, stored == -1)
    rate = stored[stored != -1] * 0.12
    decoded = events.spec.encoding.decode(codes[stored != -1])
    np.testing.assert_allclose(decoded[rate >= 0.1], rate[rate >= 0.1], rtol=0.018)
    assert (decoded[rate < 0.1] == 0).all()


def test_native_files_contain_no_24_consecutive_frames(tmp_path):
    with pytest.raises(DataError, match="1 files contain no event of meteonet"):
        prepared(shared("data/radar/native/meteonet_npz"), tmp_path / "out", dataset="meteonet")


def test_new_product_is_in_tenths_of_dbz(tmp_path):
    frame = np.full(SE, -100, np.int16)
    frame[0, :6] = (-200, 0, 84, 235, 470, 701)
    write(tmp_path / "reflectivity_new_SE_2018_03.1.npz", np.stack([frame] * 4))
    spec = spec_of("meteonet-new", event_frames=4, whole_frames=False, selection=None)
    codes = complete(spec, tmp_path).read(0)
    assert codes.shape == (4, 400, 400)
    assert codes[0, 0, :7].tolist() == [255, 0, 25, 70, 141, 210, 0]


def test_thresholds_are_integer_codes():
    spec = read_spec("meteonet")
    assert spec.threshold_codes() == (57, 84, 105, 120, 141)
    assert spec.z_r is not None
    assert [round(spec.z_r.reflectivity(rate), 2) for rate in (0.5, 2, 5, 10, 30)] == [
        18.19,
        27.83,
        34.19,
        39.01,
        46.64,
    ]
    np.testing.assert_array_equal(spec.encoding.decode(np.arange(3, 213, 3, dtype=np.uint8)), np.arange(1, 71))


def expected_events(means: list[float], first: int = 20) -> list[int]:
    """Return the selection of CasCast, implemented independently of the tested code, after its description."""
    chosen, hit = [], first
    while hit < len(means) - 12:
        step = 1
        if means[hit] > 0.5 and sum(means[hit - 12 : hit + 12]) / 24 >= 0.5:
            chosen.append(hit - 12)
            step = 13
        hit += step
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_rainy_events_equal_an_independent_selection(seed):
    means = np.abs(np.random.default_rng(seed).normal(0.4 + 0.1 * seed, 0.5, 150)).tolist()
    chosen = rainy_events(means, RainSelection(mean=0.5, before=12, after=12))
    assert chosen == expected_events(means)
    assert all(later - earlier >= 13 for earlier, later in pairwise(chosen))


def test_rainy_events_end_before_the_run_does():
    selection = RainSelection(mean=0.5, before=12, after=12)
    assert rainy_events([1.0] * 32, selection) == [] and rainy_events([1.0] * 33, selection) == [8]
    assert rainy_events([0.5] * 200, selection) == [], "a hit exceeds the mean"


@pytest.mark.parametrize("where", ["loose", "tar", "tar.gz"])
def test_reads_loose_files_and_tar_files(tmp_path, where):
    data = old(60)
    data[:, 5, 7] = np.arange(60) % 50 + 20
    data[25, 450, 500] = 255  # outside the crop
    data[30, 3, 3] = 255
    name = "reflectivity_old_SE_2016_08.3.npz"
    loose = write(tmp_path / "loose" / "2016" / name, data, gaps=(2,))
    if where != "loose":
        (tmp_path / "tar").mkdir()
        with tarfile.open(tmp_path / "tar" / f"SE_2016.{where}", "w:gz" if where == "tar.gz" else "w") as tar:
            tar.add(loose, f"SE_reflectivity_old/{name}")
    spec = spec_of("meteonet", selection={"mean": 0.5, "before": 12, "after": 12, "first_frame": 13})
    events = complete(spec, tmp_path / ("loose" if where == "loose" else "tar"))
    assert [event.file_index for event in events.events] == [3, 32], "runs are 0-1, 2-29, 31-59"
    np.testing.assert_array_equal(events.read(1)[:, 5, 7], 3 * data[32:56, 5, 7])
    assert events.events[0].begin == int((BEGIN + timedelta(minutes=20) - datetime(1970, 1, 1)).total_seconds())
    assert events.events[0].time - events.events[0].begin == 12 * 300


def _cropped(frames: np.ndarray) -> np.ndarray:
    return frames[:, :100]


NAME = "reflectivity_old_SE_2016_08.3.npz"
BAD = {
    "rainfall": (lambda p: write(p, np.arange(515 * 784, dtype=np.int16).reshape(1, *SE) % 300), "unit", "not dBZ"),
    "new product": (lambda p: write(p, np.full((3, *SE), -100, np.int16)), "unit", "not dBZ"),
    "grid": (lambda p: write(p, _cropped(old(3))), "grid", r"\(100, 784\) pixels; region SE has \(515, 784\)"),
    "dtype": (lambda p: write(p, old(3).astype(np.float32)), "dtype", r"data is float32"),
    "unsorted": (lambda p: write(p, old(2), dates=[BEGIN, BEGIN - FIVE]), "unsorted-times", "ascend"),
    "cadence": (lambda p: write(p, old(2), dates=[BEGIN, BEGIN + timedelta(minutes=7)]), "cadence", "0:07:00 apart"),
    "dates": (lambda p: write(p, old(3), dates=[BEGIN, BEGIN + FIVE]), "catalog", "2 dates for 3 frames"),
    "cut": (lambda p: p.write_bytes(write(p, old(3)).read_bytes()[:-200]), "truncated", "truncated or not an npz"),
    "other arrays": (lambda p: np.savez(p, frames=np.zeros(3)), "truncated", "has no array 'dates'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_files_raise_or_are_skipped_and_listed(tmp_path, case):
    damage, kind, message = BAD[case]
    (tmp_path / "raw").mkdir()
    damage(tmp_path / "raw" / NAME)
    write(tmp_path / "raw" / "reflectivity_old_SE_2016_09.1.npz", old(60))
    events = complete(read_spec("meteonet"), tmp_path / "raw")
    assert [(problem.kind, problem.file) for problem in events.problems] == [(kind, NAME)]
    with pytest.raises(DataError, match=rf"1 problem in the data:\n  \[{kind}\] {NAME}: .*{message}"):
        prepared(tmp_path / "raw", tmp_path / "out", dataset="meteonet")
    assert {event.file for event in events.events} == {"reflectivity_old_SE_2016_09.1.npz"}


def test_detects_reflectivity_in_a_rainfall_file(tmp_path):
    write(tmp_path / "rainfall_SE_2016_08.3.npz", old(3, dbz=35))
    [problem] = complete(read_spec("meteonet-rain"), tmp_path).problems
    assert problem.kind == "unit" and "is it reflectivity in dBZ?" in problem.message


def test_unpickles_only_dates(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    pickle.dump(Evil(), stream)
    import zipfile

    with zipfile.ZipFile(tmp_path / NAME, "w") as file:
        file.writestr("dates.npy", stream.getvalue())
    [problem] = complete(read_spec("meteonet"), tmp_path).problems
    assert problem.kind == "truncated" and "builtins.print, which is not a date" in problem.message


def test_rejects_missing_and_duplicate_files(tmp_path):
    with pytest.raises(DataError, match=r"no file reflectivity_old_SE_YEAR_MONTH\.PART\.npz below"):
        MeteoNetEvents(read_spec("meteonet"), tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / NAME).write_bytes(b"")
    with pytest.raises(DataError, match="are the same file of MeteoNet; remove one"):
        MeteoNetEvents(read_spec("meteonet"), tmp_path)
