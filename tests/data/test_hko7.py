"""HKO-7 from a folder in its documented layout: pixels, masks, gaps, days, thresholds, errors."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simcast_hpc.config import DataConfig, DataError
from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.prepare.hko7_events import HKO7Events
from simcast_hpc.data.shards.shard_format import read_manifest
from tests.data.hko7_files import DAYS, SIDE, circle, noise_of, pixels_of, small, write_hko7
from tests.data.shards import prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory, domain) -> Path:
    return write_hko7(tmp_path_factory.mktemp("hko7"), domain)


@pytest.fixture(scope="module")
def domain() -> np.ndarray:
    return circle()


def test_paper_thresholds_follow_from_the_z_r_relation():
    spec = read_spec("hko7")
    assert spec.z_r is not None and spec.threshold_codes() == (84, 118, 141, 158, 185)
    rain = (0.5, 2, 5, 10, 30)
    dbz = [spec.z_r.reflectivity(rate) for rate in rain]
    assert [round(value, 2) for value in dbz] == [12.98, 22.37, 28.58, 33.27, 40.72]
    assert [int(np.ceil(code)) for code in spec.codes_of(rain, unit="mm/h")] == [84, 118, 141, 158, 185]
    np.testing.assert_allclose(spec.codes_of(rain, unit="mm/h"), [255 * (value + 10) / 70 for value in dbz])


def test_encoding_equals_the_published_formula():
    encoding = read_spec("hko7").encoding
    dbz = np.linspace(-9.8, 59.6, 300)
    np.testing.assert_array_equal(encoding.encode(dbz), np.floor(255 * (dbz + 10) / 70 + 0.5).astype(np.uint8))
    codes = np.arange(1, 255, dtype=np.uint8)
    np.testing.assert_allclose(encoding.decode(codes), codes * (70 / 255) - 10, rtol=1e-5)
    assert encoding.decode(np.zeros(1, np.uint8))[0] == -np.inf


def test_days_are_events_with_masks(folder, domain):
    source = HKO7Events(small("hko7"), folder)
    assert [event.id for event in source.events] == ["20090401", "20100612", "20141111", "20150107"]
    assert [event.split for event in source.events] == ["train", "train", "val", "test"]
    codes = source.read(1)
    assert codes.shape == (240, SIDE, SIDE) and codes.dtype == np.uint8
    for frame in (0, 100, 101):
        assert (codes[frame] == 255).all()
    masked = (domain == 1) | noise_of("20100612", 7)
    expected = np.where(masked, 255, np.minimum(pixels_of("20100612", 7), 254))
    np.testing.assert_array_equal(codes[7], expected)
    assert [note.event for note in source.notes] == ["20100612", "20141111"]
    assert "3 of 240 frames are missing" in source.notes[0].message


def test_cascast_description_sets_outside_to_zero_and_keeps_noise(folder, domain):
    codes = HKO7Events(small("hko7-cascast"), folder).read(0)
    np.testing.assert_array_equal(codes[5], np.where(domain == 1, 0, np.minimum(pixels_of("20090401", 5), 254)))


def test_windows_contain_no_missing_frame(folder, tmp_path, monkeypatch):
    spec = small("hko7")
    (tmp_path / "spec.yaml").write_text(_yaml(spec))
    shards = prepared(folder, tmp_path / "shards", dataset=str(tmp_path / "spec.yaml"), events_per_shard=2)
    data = DataConfig(dataset=str(tmp_path / "spec.yaml"), root=shards, window_stride=20, max_percent_missing=None)
    source = open_windows(data, split="train", frames=20)
    starts = {day: [] for day in DAYS["train"]}
    for index in range(len(source)):
        starts[source.key(index).event].append(source.key(index).start)
    assert starts == {
        "20090401": list(range(0, 240, 20)),
        "20100612": [start for start in range(0, 240, 20) if start not in (0, 100)],
    }
    assert not (source.read(12) == 255).all(axis=(1, 2)).any()
    assert len(open_windows(data, split="val", frames=20)) == 1
    manifest = read_manifest(shards)
    assert manifest.whole_frames and len(manifest.notes) == 2
    assert manifest.statistics["val"]["percent_missing"] > 80


def _yaml(spec: DatasetSpec) -> str:
    from simcast_hpc.config import to_yaml

    return to_yaml(spec)


def copy_of_one_day(root: Path, tmp_path: Path) -> Path:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=lambda where, names: [n for n in names if n in ("2010", "2014", "2015")])
    for split in ("valid", "test"):
        (copy / f"hko7_rainy_{split}_days.txt").write_text("")
    (copy / "hko7_rainy_train_days.txt").write_text("20090401, 1.5\n")
    return copy


def test_day_without_frames_raises_or_is_skipped(folder, tmp_path):
    root = copy_of_one_day(folder, tmp_path)
    (root / "hko7_rainy_test_days.txt").write_text("20150107, 1\n")
    (tmp_path / "spec.yaml").write_text(_yaml(small("hko7")))
    with pytest.raises(DataError, match=r"\[absent-file\] radarPNG/2015/01/07, event 20150107: the day has no frame"):
        prepared(root, tmp_path / "out", dataset=str(tmp_path / "spec.yaml"))
    shards = prepared(root, tmp_path / "out", dataset=str(tmp_path / "spec.yaml"), skip=("absent-file",))
    assert "20150107" in read_manifest(shards).left_out[0]


BROKEN = {
    "cut image": (
        lambda image, mask: image.write_bytes(image.read_bytes()[:200]),
        r"RAD.*\.png is truncated or not a PNG",
    ),
    "color": (lambda image, mask: Image.new("RGB", (SIDE, SIDE)).save(image), r"has mode RGB; .* 8-bit gray"),
    "size": (lambda image, mask: Image.new("L", (SIDE, 8)).save(image), r"has \(8, 24\) pixels; hko7 has \(24, 24\)"),
    "cut mask": (
        lambda image, mask: mask.write_bytes(mask.read_bytes()[:9]),
        r"\.mask is truncated or not a noise mask",
    ),
    "mask size": (lambda image, mask: mask.write_bytes(zlib.compress(bytes(9))), r"masks 9 pixels; hko7 has 24 x 24"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_names_damaged_images_and_masks(folder, tmp_path, case):
    root = copy_of_one_day(folder, tmp_path)
    damage, message = BROKEN[case]
    stem = "2009/04/01/RAD090401060000"
    damage(root / "radarPNG" / f"{stem}.png", root / "radarPNG_mask" / f"{stem}.mask")
    with pytest.raises(DataError, match=message):
        HKO7Events(small("hko7"), root).read(0)


def test_names_missing_folders_and_files(folder, tmp_path):
    root = copy_of_one_day(folder, tmp_path)
    (root / "radarPNG_mask").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"no folder radarPNG_mask of HKO-7; .*layout\.noise: ignore"):
        HKO7Events(small("hko7"), root)
    assert len(HKO7Events(small("hko7-cascast"), root).events) == 1
    (root / "hko7_rainy_test_days.txt").write_text("20090401, 3\n")
    with pytest.raises(DataError, match="day 20090401 is also on the list of train"):
        HKO7Events(small("hko7-cascast"), root)
    (root / "hko7_rainy_test_days.txt").unlink()
    with pytest.raises(DataError, match=r"list of test days .* cannot be read"):
        HKO7Events(small("hko7-cascast"), root)
    (root / "mask_dat.npz").unlink()
    with pytest.raises(DataError, match=r"domain mask .*mask_dat\.npz cannot be read"):
        HKO7Events(small("hko7-cascast"), root)
