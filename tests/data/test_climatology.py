"""`simcast data inspect --report`: climatology, maps, changes in time and persistence, from archives and shards."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.data.climatology import Climatology, summarize
from simcast_hpc.data.climatology.change_points import find_changes
from simcast_hpc.data.climatology.summary import suspicious_pixels
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.inspection import inspect
from simcast_hpc.data.prepare.raw_events import RawEvent
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.verification import score
from simcast_hpc.verification.protocols import protocol_for

SPEC = read_spec("meteonet-rain")


def event(number: int, day: str, *, split: str = "train") -> RawEvent:
    begin = int(datetime.fromisoformat(f"{day}T18:00:00").replace(tzinfo=UTC).timestamp())
    return RawEvent(f"E{number}", begin, begin, split, None, "file.h5", number)


def storms(seed: int, *, frames: int = 5, size: int = 20) -> np.ndarray:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 255, (frames, size, size), dtype=np.uint8)
    codes[codes < 120] = 0
    codes[:, :4, :4] = 255
    return codes


@pytest.fixture(scope="module")
def climatology() -> Climatology:
    climatology = Climatology(SPEC)
    climatology.add(event(0, "2019-01-05"), storms(0))
    climatology.add(event(1, "2019-07-06"), storms(1))
    climatology.add(event(2, "2020-07-07", split="test"), storms(2))
    return climatology


def test_tables_are_those_of_all_pixels(climatology):
    summary = summarize(climatology)
    both = np.stack([storms(1), storms(2)])
    known = SPEC.encoding.decode(both)[both != 255].astype(np.float64)
    threshold = SPEC.threshold_codes()[1]
    july = summary.months[7]
    assert july["mean_rate"] == pytest.approx(known.mean()) and set(summary.months) == {1, 7}
    assert july["wet_shares"][1] == pytest.approx((both[both != 255] >= threshold).mean())
    assert july["missing_share"] == pytest.approx((both == 255).mean())
    assert set(summary.hours) == {18} and summary.hours[18]["pixels"] == 3 * both[0].size
    assert summary.month_hour_rate.shape == (12, 24) and np.isfinite(summary.month_hour_rate).sum() == 2
    assert summary.events == {"2019": {"train": 2}, "2020": {"test": 1}}
    wet = SPEC.encoding.decode(storms(2))[(storms(2) >= SPEC.threshold_codes()[0]) & (storms(2) != 255)]
    assert summary.splits["test"]["percentiles"][0] == pytest.approx(np.median(wet), rel=0.05)


def test_maps_are_those_of_every_pixel(climatology):
    maps = summarize(climatology).maps
    frames = np.concatenate([storms(seed) for seed in range(3)])
    valid = frames != 255
    np.testing.assert_allclose(maps["coverage"], valid.mean(0))
    np.testing.assert_allclose(maps["rate"][4:], np.nanmean(SPEC.encoding.decode(frames)[:, 4:], axis=0), rtol=1e-5)
    np.testing.assert_allclose(maps["echo"][4:], (valid & (frames >= SPEC.encoding.first_echo)).mean(0)[4:], rtol=1e-6)
    assert np.isnan(maps["echo"][:4, :4]).all(), "never valid"


def test_tiles_add_to_their_part_of_the_domain():
    climatology = Climatology(SPEC)
    climatology.add(event(0, "2019-01-05"), storms(0), (20, 40))
    climatology.add(event(1, "2019-01-05"), storms(1), (0, 0))
    assert climatology.maps.frames.shape == (40, 60)
    assert climatology.maps.frames[30, 50] == climatology.maps.frames[10, 10] == 5
    assert climatology.maps.frames[30, 10] == 0


def test_frames_that_do_not_exist_are_not_missing_pixels():
    climatology, whole = Climatology(SPEC), Climatology(SPEC)
    codes = storms(0)
    gaps = np.concatenate([codes, np.full_like(codes[:3], 255)])
    climatology.add(event(0, "2019-01-05"), gaps)
    whole.add(event(0, "2019-01-05"), codes)
    summary, expected = summarize(climatology), summarize(whole)
    np.testing.assert_array_equal(summary.maps["coverage"], expected.maps["coverage"])
    assert [day["missing_share"] for day in summary.days.values()] == [
        day["missing_share"] for day in expected.days.values()
    ]
    assert any("of 1 day from" in sentence for sentence in summary.findings)
    climatology.add(event(1, "2019-01-05"), np.full_like(codes, 255), (0, 60))
    assert (summarize(climatology).maps["coverage"][:, 60:] == 0).all(), "a tile outside of the coverage"


def test_persistence_is_that_of_the_verification(climatology):
    """All pairs of short events are counted, so CSI and MAE equal those of the verification."""
    codes = storms(2)
    label = SPEC.threshold_labels()[0]
    protocol = protocol_for("x", SPEC.threshold_codes(), SPEC.threshold_labels(), unit=SPEC.thresholds.unit)
    expected = score(codes[2:, None], codes[:-2, None], protocol=protocol)
    own = summarize(climatology).persistence["test"][2 * SPEC.step_minutes]
    assert own["csi"][0] == pytest.approx(expected[f"csi/{label}"])
    assert own["mae"] == pytest.approx(expected["mae"], rel=1e-6)


def test_repeated_frames_are_found():
    climatology = Climatology(SPEC)
    codes = storms(0)
    codes[3] = codes[2]
    climatology.add(event(0, "2019-01-05"), codes)
    dry = np.zeros_like(codes)
    climatology.add(event(1, "2019-01-06"), dry)
    assert dict(climatology.repeated_frames) == {"2019-01-05": 1}, "dry frames are equal without a fault"
    assert any("equal the frame before" in sentence for sentence in summarize(climatology).findings)


def test_change_of_calibration_is_found_and_weather_is_not():
    generator = np.random.default_rng(0)
    dates = [str(np.datetime64("2019-01-01") + day) for day in range(200)]
    weather = generator.normal(0, 1.5, 200) + 1.5 * np.sin(np.arange(200) / 60)
    assert find_changes(dates, weather, smallest=1.5) == []
    weather[120:] += 4
    (change,) = find_changes(dates, weather, smallest=1.5)
    assert abs(np.datetime64(change.date) - np.datetime64(dates[120])).astype(int) <= 2
    assert 3 < change.after - change.before < 5
    assert find_changes(dates[:10], weather[:10], smallest=1.5) == [], "too few days"
    assert find_changes(dates, np.full(200, np.nan), smallest=1.5) == []


def test_clutter_and_blocked_pixels_are_found():
    echo = np.full((48, 48), 0.1, np.float32)
    echo[5, 7], echo[30, 20:24] = 0.9, 0.01
    valid = np.full((48, 48), 1000)
    valid[40, 40], echo[40, 40] = 3, 1.0
    found = suspicious_pixels(echo, valid)
    assert found[5, 7] == 1 and (found[30, 20:24] == 2).all() and (found > 0).sum() == 5


def test_report_of_an_archive_and_of_its_shards(tmp_path):
    root = tmp_path / "storms"
    write_archive(root, seed=3, events={"train": 3, "test": 2}, size=24, frames_per_event=12)
    shards = tmp_path / "shards"
    runner = CliRunner()
    done = runner.invoke(app, ["data", "prepare", str(root), str(shards), "--dataset", "synthetic"])
    assert done.exit_code == 0, done.output
    pages = []
    for folder, figures in ((root, ["--figures", tmp_path / "png"]), (shards, [])):
        page = tmp_path / f"{folder.name}.html"
        words = ["data", "inspect", folder, "--dataset", "synthetic", "--report", page, *figures]
        done = runner.invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        assert str(page) in done.output
        pages.append(page.read_text(encoding="utf-8"))
    assert len(list((tmp_path / "png").glob("*.png"))) >= 13
    for page in pages:
        assert "Persistence, train" in page and "Mean rate by month" in page and "http" not in page.split("<body>")[1]
        assert read_spec("synthetic").license.split()[0] in page
    tables = [page.split("Events by year and split")[1].split("</table>")[0] for page in pages]
    assert tables[0] == tables[1], "an archive and its shards have the same content"


def test_inspection_reads_every_event_once(tmp_path):
    write_archive(tmp_path / "storms", seed=3, events={"train": 2, "test": 1}, size=16, frames_per_event=6)
    seen = []
    inspection = inspect(
        read_spec("synthetic"), tmp_path / "storms", visit=lambda one, codes, _: seen.append((one.id, codes.shape))
    )
    assert len(seen) == len({name for name, _ in seen}) == inspection.facts["events"] == 3
    assert json.dumps(inspection.facts)


@pytest.mark.parametrize(
    ("words", "message"), [(["--figures", "x"], "requires --report"), (["--report", "."], "is a folder")]
)
def test_invalid_options_are_rejected(tmp_path, words, message):
    done = CliRunner().invoke(app, ["data", "inspect", str(tmp_path), "--dataset", "synthetic", *words])
    assert done.exit_code != 0 and message in str(done.exception)
