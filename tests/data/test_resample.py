"""Averaged and re-encoded windows, compared with float64 arithmetic written from the description of the files."""

import numpy as np
import pytest

from simcast_hpc.config import DataConfig, DataError
from simcast_hpc.data.archive_windows import ArchiveSource
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.resample import ResampledSource
from simcast_hpc.data.window_source import WindowKey, WindowSource
from tests.archives import make_archive, open_archive, random_codes
from tests.shared_data import shared

RADARS = [  # description, file, dates
    ("mch", "rr/2015/RR_MCH_20150515.h5", ("2015-05-15",)),
    ("mch", "rr/2017/RR_MCH_20170131.h5", ("2017-01-31",)),
    ("knmi", "rr/2010/RR_KNMI_20100826.h5", ("2010-08-26",)),
    ("fmi", "dbz/2016/DBZ_FMI_20160928.h5", ("2016-09-28",)),
]


class Windows:
    """A window source over given frames ``[N, T, H, W]``."""

    def __init__(self, codes: np.ndarray):
        self.codes, self.frames, self.grid = codes, codes.shape[1], codes.shape[2:]
        self.fingerprint, self.dates = "abc", ("2018-01-01",)

    def __len__(self) -> int:
        return len(self.codes)

    def read(self, index: int) -> np.ndarray:
        return self.codes[index]

    def key(self, index: int) -> WindowKey:
        return WindowKey("E", index)


def _rain(codes: np.ndarray, *, reflectivity: bool) -> np.ndarray:
    """Return rain rates in float64, NaN where missing, by the encoding in the README of the archive."""
    code = codes.astype(np.float64)
    if reflectivity:
        rain = (10 ** ((0.5 * code - 32) / 10) / 200) ** (1 / 1.6)
    else:
        rain = 10 ** ((-10 + 0.15 * (code - 1)) / 10)
    rain[codes == 0] = 0
    rain[codes == 255] = np.nan
    return rain


def _block_mean(rain: np.ndarray, factor: int) -> np.ndarray:
    frames, height, width = rain.shape
    mean = np.full((frames, height // factor, width // factor), np.nan)
    blocks = rain.reshape(frames, height // factor, factor, width // factor, factor)
    count = (~np.isnan(blocks)).sum(axis=(2, 4))
    np.divide(np.nansum(blocks, axis=(2, 4)), count, out=mean, where=count > 0)
    return mean


def _assert_codes(got: np.ndarray, rain: np.ndarray) -> None:
    """Assert equal codes, except within a thousandth of a step of a boundary, where rounding may differ."""
    missing, dry = np.isnan(rain), rain < 0.1
    position = (10 * np.log10(np.where(missing | dry, 1.0, rain)) + 10) / 0.15 + 1
    codes = np.where(missing, 255, np.where(dry, 0, np.clip(np.rint(position), 1, 254)))
    np.testing.assert_array_equal(got == 255, missing)
    clear = (np.abs(position % 1 - 0.5) > 1e-3) & (np.abs(rain - 0.1) > 1e-6) | missing
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got[clear], codes[clear])
    assert (np.abs(got.astype(int) - codes) <= 1).all()


@pytest.mark.parametrize(("dataset", "file", "dates"), RADARS, ids=[file for _, file, _ in RADARS])
def test_averages_real_radar_in_rain_rate_over_valid_pixels(dataset, file, dates):
    data = DataConfig(
        dataset=dataset,
        root=shared("data/radar"),
        file_names=(file,),
        block_mean=4,
        recode_as="mrms-4km",
        max_percent_missing=None,
    )
    source = open_windows(data, split="test", frames=12)
    raw = open_windows(data.model_copy(update={"block_mean": 1, "recode_as": None}), split="test", frames=12)
    assert isinstance(source, ResampledSource) and isinstance(source, WindowSource) and isinstance(raw, ArchiveSource)
    assert source.grid == (96, 96) and source.frames == 12 and source.dates == dates
    assert len(source) == len(raw) and source.key(1) == raw.key(1)
    codes = raw.read(1)
    got = source.read(1)
    assert got.dtype == np.uint8 and got.shape == (12, 96, 96)
    _assert_codes(got, _block_mean(_rain(codes, reflectivity=dataset == "fmi"), 4))
    assert (got > 0).any()


def test_excludes_missing_pixels_from_the_mean():
    codes = np.zeros((1, 1, 4, 4), np.uint8)
    codes[0, 0, :2, :2] = 255
    codes[0, 0, :2, 2:] = [[255, 101], [255, 121]]
    codes[0, 0, 2:, :2] = 121
    spec = read_spec("mch")
    source = ResampledSource(Windows(codes), spec=spec, target=read_spec("mrms-4km"), factor=2)
    got = source.read(0)[0]
    assert got[0, 0] == 255
    assert got[1, 0] == 121 and got[1, 1] == 0
    mean = (10**0.5 + 10**0.8) / 2
    assert got[0, 1] == round((10 * np.log10(mean) + 10) / 0.15 + 1)
    assert got[0, 1] != (101 + 121) // 2, "not the mean of codes"


@pytest.mark.parametrize("dataset", ["mch", "fmi"])
def test_random_codes_with_missing_pixels_equal_float64(dataset):
    codes = random_codes(1, 3, size=24, missing=0.5, seed=4)
    source = ResampledSource(Windows(codes), spec=read_spec(dataset), target=read_spec("mrms-4km"), factor=2)
    rain = np.minimum(_block_mean(_rain(codes[0], reflectivity=dataset == "fmi"), 2), 10 ** (2.795))
    _assert_codes(source.read(0), rain)


def test_same_encoding_and_factor_one_changes_nothing():
    codes = random_codes(1, 2, missing=0.1)
    spec = read_spec("mrms-4km")
    np.testing.assert_array_equal(ResampledSource(Windows(codes), spec=spec, target=spec, factor=1).read(0), codes[0])


@pytest.mark.parametrize(
    ("dataset", "target", "factor", "message"),
    [
        ("mch", "mch", 5, r"data\.block_mean=5 does not divide the grid 16 x 16 of mch"),
        ("mch", "fmi", 1, r"mch is in mm/h and data\.recode_as=fmi in dBZ; the only conversion is from dBZ to mm/h"),
        ("sevir", "mrms-4km", 2, r"sevir is in kg/m\^2 and data\.recode_as=mrms-4km in mm/h"),
        ("fmi", "fmi", 2, r"data\.block_mean=2 needs linear units and fmi is in dBZ; set data\.recode_as"),
    ],
)
def test_rejects_unsupported_conversions(dataset, target, factor, message):
    with pytest.raises(DataError, match=message):
        ResampledSource(Windows(random_codes(1, 2)), spec=read_spec(dataset), target=read_spec(target), factor=factor)


def test_fingerprint_depends_on_content_and_recipe(tmp_path):
    spec, target = read_spec("synthetic"), read_spec("sevir")
    inner = open_archive(make_archive(tmp_path / "a", random_codes(2, 11)))
    other = open_archive(make_archive(tmp_path / "b", random_codes(2, 11, seed=1)))
    prints = [
        inner.fingerprint,
        ResampledSource(inner, spec=spec, target=target, factor=2).fingerprint,
        ResampledSource(inner, spec=spec, target=target, factor=4).fingerprint,
        ResampledSource(other, spec=spec, target=target, factor=2).fingerprint,
        ResampledSource(inner, spec=read_spec("mch"), target=read_spec("mch"), factor=2).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert ResampledSource(inner, spec=spec, target=target, factor=2).fingerprint == prints[1]
