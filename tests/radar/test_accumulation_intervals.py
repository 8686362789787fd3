"""Intervals of accumulations: the mean rate, the end of the interval as time, and the limit by the model's step."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataConfig, DataError
from simcast_hpc.radar import RadarFrame, RadarGrid, encode_frame, encoding_of_run, frame_times, read_frames
from tests.radar.odim_files import layout, write_layout
from tests.radar.radar_files import LAEA

END = datetime(2024, 11, 26, 1, 0, tzinfo=UTC)


def accumulation(minutes: float | None) -> RadarFrame:
    start = None if minutes is None else END - timedelta(minutes=minutes)
    grid = RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 2, 2)
    return RadarFrame(np.full((2, 2), 6.0, np.float32), "mm/h", END, grid, Path("a.h5"), start=start)


@pytest.mark.parametrize("minutes", [None, 1.0, 5.0, 7.5])
def test_instantaneous_and_short_intervals_are_accepted(minutes):
    # 6 mm/h are 10 log10(6) = 7.78 dB: code 1 + (7.78 + 10) / 0.15 = 119.5 of KNMI's encoding.
    encoded = encode_frame(accumulation(minutes), encoding_of_run(DataConfig(dataset="knmi"), any_spacing=True))
    assert encoded.interval_minutes == minutes and np.isin(encoded.codes, [119, 120]).all()


@pytest.mark.parametrize("minutes", [7.6, 15.0, 60.0])
def test_long_interval_is_an_error_unless_requested(minutes):
    with pytest.raises(DataError, match=rf"a.h5 is an accumulation over {minutes:g} minutes and the time step of the "
                       r"model is 5 minutes; .* at most 7.5 minutes, or --any-interval"):  # fmt: skip
        encode_frame(accumulation(minutes), encoding_of_run(DataConfig(dataset="knmi"), any_spacing=True))
    encoding = encoding_of_run(DataConfig(dataset="knmi"), any_spacing=True, any_interval=True)
    assert encode_frame(accumulation(minutes), encoding).interval_minutes == minutes


def test_limit_follows_the_time_step_of_the_model():
    encoding = encoding_of_run(DataConfig(dataset="knmi", frame_stride=6), any_spacing=True)
    assert encoding.step_minutes == 30 and encode_frame(accumulation(45.0), encoding).interval_minutes == 45.0


@pytest.mark.parametrize("start", [END, END + timedelta(minutes=5)])
def test_interval_must_start_before_its_end(start):
    grid = RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 1, 1)
    with pytest.raises(DataError, match=r"a.h5: the accumulation interval starts at .*; the end must be later"):
        RadarFrame(np.ones((1, 1), np.float32), "mm/h", END, grid, Path("a.h5"), start=start)


def test_odim_accumulation_has_its_interval_and_its_end_as_time(tmp_path):
    # Nominal time 01:00, interval 00:30 to 00:45: 1.5 mm in a quarter of an hour are 6 mm/h.
    groups = layout([[1.5]], quantity="ACRR")
    groups["dataset1/what"] |= {"starttime": "003000", "endtime": "004500"}
    path = write_layout(tmp_path / "a.h5", groups)
    (frame,) = read_frames(path)
    assert frame.time == datetime(2024, 11, 26, 0, 45, tzinfo=UTC) and frame.interval_minutes == 15.0
    assert frame.values == 6.0 and frame_times(path) == [frame.time]


@pytest.mark.parametrize("quantity", ["RATE", "DBZH"])
def test_odim_rate_and_reflectivity_are_instantaneous(tmp_path, quantity):
    (frame,) = read_frames(write_layout(tmp_path / "a.h5", layout([[1.0]], quantity=quantity)))
    assert frame.start is None and frame.time == END


def test_time_is_that_of_the_quantity_that_is_read(tmp_path):
    # An accumulation that ends at 00:55 next to a reflectivity of 01:00.
    groups = layout([[1.0]], quantity="ACRR")
    groups["dataset1/what"]["endtime"] = "005500"
    groups |= {"dataset2/data1/what": {"quantity": "DBZH"}, "dataset2/data1/data": np.array([[20.0]])}
    path = write_layout(tmp_path / "a.h5", groups)
    for unit, minute in (("mm/h", 55), ("dBZ", 0)):
        assert frame_times(path, prefer=unit)[0].minute == minute
        assert read_frames(path, prefer=unit)[0].time == frame_times(path, prefer=unit)[0]
