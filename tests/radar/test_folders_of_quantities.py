"""Folders with one file per quantity and time, as weather services publish volumes: only reflectivity is read."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.forecast.load_predictor import FramePlaces
from simcast_hpc.radar.frame_files import index_times
from tests.radar.odim_files import layout, polar_layout, write_layout


@pytest.fixture(scope="module", params=["volume", "composite"])
def folder(request, tmp_path_factory) -> Path:
    """Three times with DBZH, VRADH and WRADH each; names sort by quantity."""
    place = tmp_path_factory.mktemp(request.param)
    for quantity in ("DBZH", "VRADH", "WRADH"):
        for number in range(3):
            groups = (
                polar_layout() if request.param == "volume" else layout(np.ones((4, 4)), quantity=quantity, gain=1.0)
            )
            groups["what"]["time"] = f"01{5 * number:02d}00"
            groups["dataset1/data1/what"]["quantity"] = quantity
            write_layout(place / f"{quantity.lower()}_{number}.h5", groups)
    return place


def test_files_of_other_quantities_are_skipped_in_one_warning(folder, caplog):
    with caplog.at_level(logging.WARNING):
        files = index_times(sorted(folder.iterdir()), skip_unreadable=True)
    assert [path.name for path in files.values()] == ["dbzh_0.h5", "dbzh_1.h5", "dbzh_2.h5"]
    (record,) = [one for one in caplog.records if "skipped" in one.message]
    assert record.message.startswith("skipped 6 files without the quantity that is read; the first: ")
    assert "vradh_0.h5" in record.message and "['VRADH']" in record.message


def test_a_file_that_was_given_itself_is_an_error(folder):
    with pytest.raises(DataError, match=r"vradh_0\.h5 .*\['VRADH'\]; it must contain"):
        index_times([folder / "dbzh_0.h5", folder / "vradh_0.h5"], skip_unreadable=False)


def test_a_folder_of_other_quantities_names_them_and_the_option(folder):
    message = r"6 files without .* none has it; --pattern selects .* the first: .*vradh_0\.h5 .*\['VRADH'\]"
    with pytest.raises(DataError, match=message):
        index_times(sorted(folder.glob("[vw]*")), skip_unreadable=True)
    with pytest.raises(ConfigError, match=message):
        FramePlaces([folder], "[vw]*").sample(dataset=None, importer=None)


def test_unit_and_times_are_those_of_reflectivity(folder, tmp_path, monkeypatch):
    """Also if more files of other quantities come last by name than are sampled, and one is damaged."""
    monkeypatch.setattr("simcast_hpc.forecast.load_predictor._SAMPLED_FILES", 3)
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "z.h5").write_bytes(b"\x89HDF\r\n\x1a\n damaged")
    times, frame = FramePlaces([tmp_path]).sample(dataset=None, importer=None)
    assert frame.unit == "dBZ" and sorted(time.minute for time in times) == [5, 10] and frame.time.minute == 10
