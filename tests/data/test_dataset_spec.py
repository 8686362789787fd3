"""Dataset descriptions: built-in and user-defined, thresholds and their units, splits."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.dataset_spec import DatasetSpec, TableSplits, built_in_specs, read_spec
from simcast_hpc.data.encoding import rain_rate_from_reflectivity
from simcast_hpc.data.open_windows import description_hash, step_minutes, target_spec
from simcast_hpc.data.shards.shard_format import stored_description_hash


def _own(tmp_path: Path, old: str = "", new: str = "") -> Path:
    text = built_in_specs()["mch"].read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "own.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["sevir", "synthetic", "mrms-4km", "mch", "knmi", "fmi"])
def test_built_in_descriptions_are_valid(name):
    spec = read_spec(name)
    assert isinstance(spec, DatasetSpec) and spec.name == name
    codes = spec.threshold_codes()
    assert list(codes) == sorted(codes) and codes[0] > 0 and codes[-1] < 255
    assert len(spec.threshold_labels()) == len(codes)
    for text in (spec.license, spec.citation, spec.source, spec.quantity, spec.title):
        assert text.strip()
    assert name in built_in_specs()


def test_sevir_equals_the_publication():
    spec = read_spec("sevir")
    assert spec.threshold_codes() == (16, 74, 133, 160, 181, 219)
    assert spec.threshold_labels() == ("16", "74", "133", "160", "181", "219")
    assert (spec.folder, spec.frames_per_event, spec.step_minutes) == ("data", 49, 5)
    choose = spec.splits.chooser(Path())
    times = {"train": datetime(2019, 1, 1), "val": datetime(2019, 6, 1), "test": datetime(2019, 6, 1, 0, 0, 1)}
    assert {split: choose("", time) for split, time in times.items()} == {split: split for split in times}
    assert choose("", datetime(2019, 1, 1, 0, 0, 1)) == "val"


def test_rain_thresholds_separate_codes_like_their_values():
    spec = read_spec("mrms-4km")
    values = spec.encoding.decode(np.arange(255, dtype=np.uint8))
    for rate, code in zip(spec.thresholds.values, spec.threshold_codes(), strict=True):
        np.testing.assert_array_equal(np.arange(255) >= code, values >= np.float32(rate))


def test_fmi_thresholds_are_the_rain_thresholds_by_marshall_palmer():
    rates = rain_rate_from_reflectivity(np.array(read_spec("fmi").thresholds.values))
    np.testing.assert_allclose(rates, read_spec("mrms-4km").thresholds.values, rtol=2e-3)


def test_thresholds_may_be_codes_or_physical_values():
    spec = read_spec("sevir")
    assert spec.codes_of((74.0, 219.0), unit="code") == (74.0, 219.0)
    (position,) = spec.codes_of((float(np.exp((219 - 83.9) / 38.9)),), unit="kg/m^2")
    assert position == 219.0


@pytest.mark.parametrize(
    ("name", "values", "unit", "message"),
    [
        ("sevir", (30.0,), "dBZ", r"thresholds \[30\.0\] are in 'dBZ', but sevir is encoded in 'kg/m\^2'; use"),
        ("mrms-4km", (10.0,), "dBZ", r"are in 'dBZ', but mrms-4km is encoded in 'mm/h'"),
        ("sevir", (219.0,), "kg/m^2", r"threshold 219 kg/m\^2 of sevir is code .*outside 1\.\.254; check the unit"),
        ("mrms-4km", (2000.0,), "mm/h", r"threshold 2000 mm/h of mrms-4km .*check the unit"),
        ("sevir", (300.0,), "code", r"threshold 300 code .*outside 1\.\.254"),
        ("sevir", (255.0,), "code", r"threshold 255 code"),
        ("mrms-4km", (0.0,), "mm/h", r"threshold 0 mm/h"),
        ("fmi", (120.0,), "dBZ", r"threshold 120 dBZ"),
    ],
)
def test_rejects_thresholds_in_the_wrong_unit(name, values, unit, message):
    with pytest.raises(DataError, match=message):
        read_spec(name).codes_of(values, unit=unit)


def test_user_defined_description(tmp_path):
    path = _own(tmp_path, "name: mch", "name: own")
    assert read_spec(str(path)).name == "own"
    data = DataConfig(dataset=str(path), frame_stride=3, recode_as="mrms-4km")
    assert step_minutes(data) == 15
    assert target_spec(data).name == "mrms-4km"
    assert target_spec(data.model_copy(update={"recode_as": None})).name == "own"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("quantity:", "quantitie:", r"quantitie: unknown key; did you mean quantity\?"),
        ("height: 384", "hight: 384", r"grid\.hight: unknown key; did you mean grid\.height\?"),
        ("step_db:", "step_dbb:", r"step_dbb: unknown key; did you mean .*step_db\?"),
        ("kind: decibel", "kind: decibell", "'decibell'.*'decibel'"),
        (
            "values: [0.5, 2, 5, 10, 30]",
            "values: [0.5, 5, 2]",
            r"thresholds\.values=\[0\.5, 5\.0, 2\.0\] must be ascending",
        ),
        ("values: [0.5, 2, 5, 10, 30]", "values: []", "and not empty"),
        ("values: [0.5, 2, 5, 10, 30]", "values: [0.5, 3000]", "threshold 3000 mm/h of mch .*check the unit"),
        ("unit: mm/h}\nsplits", "unit: dBZ}\nsplits", "are in 'dBZ', but mch is encoded in 'mm/h'"),
        ("step_minutes: 5", "step_minutes: 0", r"step_minutes: .*got 0"),
        ("kind: single, split: test", "kind: single, split: exam", "'exam'"),
        ("kind: single, split: test", "kind: dates, train_until: soon", "train_until"),
    ],
)
def test_error_of_an_invalid_description_names_file_and_key(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=rf"(?s)own\.yaml.*{message}"):
        read_spec(str(_own(tmp_path, old, new)))


def test_attribution_credits_the_data_and_changes_no_hash(tmp_path):
    plain = read_spec("mch")
    credited = read_spec(str(_own(tmp_path, "citation: MeteoSwiss", "citation: Doe 2024\nattribution: 'Source: Doe'")))
    assert (plain.credit, credited.credit, credited.citation) == ("MeteoSwiss", "Source: Doe", "Doe 2024")
    assert stored_description_hash(credited) == stored_description_hash(plain)
    config = DataConfig(root=tmp_path, dataset="mch")
    own = config.model_copy(update={"dataset": str(tmp_path / "own.yaml")})
    assert description_hash(own) == description_hash(config)


def test_unknown_dataset_error_lists_the_built_in_ones(tmp_path):
    with pytest.raises(
        ConfigError, match=r"the dataset 'sevri' .* is neither a built-in description \(fmi, .*knmi, .*sevir"
    ):
        read_spec("sevri")
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_spec(str(tmp_path / "absent.yaml"))


def test_table_splits_by_id(tmp_path):
    (tmp_path / "splits.csv").write_text("id,split,note\nA,train,x\nB,test,\n")
    choose = TableSplits(kind="table", file=Path("splits.csv")).chooser(tmp_path)
    now = datetime(2020, 1, 1)
    assert [choose(event, now) for event in ("A", "B", "C")] == ["train", "test", ""]


def test_rejects_an_invalid_split_table(tmp_path):
    splits = TableSplits(kind="table", file=Path("splits.csv"))
    with pytest.raises(DataError, match=r"split table .*splits\.csv cannot be read: No such file"):
        splits.chooser(tmp_path)
    (tmp_path / "splits.csv").write_text("id,part\nA,train\n")
    with pytest.raises(DataError, match=r"splits\.csv has no column 'split'; it must have id and split"):
        splits.chooser(tmp_path)
