"""Importers that are named: of pysteps, and plug-ins of other packages, with their options and errors."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import ImporterChoice, frame_times, parse_importer, read_frames
from simcast_hpc.radar.frame_messages import choice_from_json, choice_to_json
from simcast_hpc.radar.radar_frame import FieldChoice
from tests.radar.radar_files import START, storm, write_odim
from tests.shared_data import shared

PLUGIN = '''
from datetime import UTC, datetime, timedelta

import numpy as np

from simcast_hpc.radar import RadarFrame, RadarGrid

GRID = RadarGrid("+proj=utm +zone=32 +datum=WGS84 +units=m +no_defs", 0.0, 4e6, 1000.0, 1000.0, 4, 5)


def read_text(path, *, scale="1"):
    """Read a table of mm/h with its time in the first line."""
    first, *rows = path.read_text().splitlines()
    time = datetime.strptime(first, "TABLE %Y-%m-%d %H:%M").replace(tzinfo=UTC)
    values = np.array([row.split() for row in rows], np.float32) * np.float32(scale)
    return RadarFrame(values, "mm/h", time, GRID, path, start=time - timedelta(minutes=5))


read_text.detect = lambda path, head: head.startswith(b"TABLE ")


def read_wrong(path):
    return "no frame"
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a distribution with entry points, for the reader process as well."""
    site = tmp_path / "site"
    about = site / "table_reader-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "table_reader.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: table-reader\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[simcast.readers]\ntable = table_reader:read_text\nwrong = table_reader:read_wrong\n"
        "absent = table_reader:nothing\n"
    )
    monkeypatch.syspath_prepend(str(site))
    from simcast_hpc.radar import reader_plugins, reader_process

    reader_process.close()  # it inherits sys.path when it starts
    for cached in (reader_plugins.plugins, reader_plugins.load):
        cached.cache_clear()
    path = tmp_path / "a.txt"
    path.write_text(
        "TABLE 2024-06-11 12:05\n" + "\n".join(" ".join(f"{5 * r + c}" for c in range(5)) for r in range(4))
    )
    yield path
    reader_process.close()
    for cached in (reader_plugins.plugins, reader_plugins.load):
        cached.cache_clear()


def test_a_plugin_is_detected_or_named(plugin):
    for words in ((), ("table",), ("table scale=2",)):
        importer = parse_importer(words)
        (frame,) = read_frames(plugin, importer=importer)
        factor = 2 if words and "scale" in words[0] else 1
        np.testing.assert_array_equal(frame.values, factor * np.arange(20).reshape(4, 5))
        assert frame_times(plugin, importer=importer) == [datetime(2024, 6, 11, 12, 5, tzinfo=UTC)]
        assert frame.interval_minutes == 5.0 and frame.path == plugin


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("table scales=2", ConfigError, "the importer table has no key 'scales'; did you mean scale"),
        ("tablee", ConfigError, r"there is no importer 'tablee'; did you mean table\?; available are .*geotiff"),
        ("absent", ConfigError, r"the reader absent \(table_reader:nothing\) cannot be imported"),
        ("wrong", DataError, "the reader wrong returned str; RadarFrame is valid"),
        ("table scale=x", DataError, "cannot be read as table: ValueError"),
    ],
)
def test_errors_of_plugins(plugin, words, error, message):
    with pytest.raises(error, match=message):
        read_frames(plugin, importer=parse_importer([words]))


def test_words_of_the_option():
    expected = ImporterChoice("pysteps:dwd_radolan", (("product_name", "RY"), ("time", "%Y %m")))
    for words in (
        ["pysteps:dwd_radolan 'time=%Y %m' product_name=RY"],
        ["pysteps:dwd_radolan", "product_name=RY", "'time=%Y %m'"],
        [str(expected)],
    ):
        assert parse_importer(words) == expected
    assert parse_importer(None) is None and parse_importer([]) is None
    choice = FieldChoice("dBZ", 2, expected, frozenset([datetime(2024, 6, 11, 12, 5, 0, 1000, UTC)]))
    assert choice_from_json(choice_to_json(choice)) == choice
    for words, message in (
        (["geotiff unit"], "'unit' is not an option; expected key=value"),
        (["geotiff a=1 a=2"], "the key a occurs twice"),
        (["geotiff 'a=1"], "quotes must be closed"),
        (["a/b"], "is not the name of an importer"),
        ([""], "--importer is empty"),
        (["a 1b=2"], "'1b' is not a valid key"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_importer(words)


def test_pysteps_importer_equals_the_own_reader(tmp_path):
    pytest.importorskip("pysteps")
    path = write_odim(tmp_path / "radar_202411260100.h5", storm(0), START)
    (own,) = read_frames(path)
    (frame,) = read_frames(path, importer=parse_importer(["pysteps:odim_hdf5 qty=DBZH"]))
    np.testing.assert_array_equal(frame.values, own.values)
    assert (frame.time, frame.unit, frame.grid.difference(own.grid)) == (START, own.unit, "")
    for words, message in (
        ("pysteps:odim_hdf", r"there is no importer 'pysteps:odim_hdf'; did you mean pysteps:odim_hdf5"),
        ("pysteps:odim_hdf5 qti=DBZH", "has no key 'qti'; did you mean qty"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_frames(path, importer=parse_importer([words]))
    with pytest.raises(DataError, match="returns no time and the name contains none; give a pattern"):
        read_frames(path.rename(tmp_path / "a.h5"), importer=parse_importer(["pysteps:odim_hdf5 qty=DBZH"]))


def test_pysteps_importer_reads_a_real_file(tmp_path):
    pytest.importorskip("pysteps")
    path = shared("data/radar/files/odim_dialects/CPC2335513304_00060.001.h5")
    (own,) = read_frames(path)
    importer = parse_importer(["pysteps:mch_hdf5 qty=ACRR time=CPC%y%j%H%M unit=mm interval=60"])
    (frame,) = read_frames(path, importer=importer)
    np.testing.assert_allclose(frame.values, own.values, rtol=1e-6)
    assert (frame.time, frame.start) == (own.time, own.start)


def test_importers_are_not_imported_with_the_package(tmp_path):
    code = (
        "import sys, simcast_hpc.radar; "
        "print([name for name in ('pysteps', 'xradar', 'rasterio', 'xarray', 'zarr') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=True, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "[]"
