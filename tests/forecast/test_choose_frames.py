"""Choice of a forecast's input frames: cadence, gaps, grids and units, and the error of each case."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.forecast.choose_frames import (
    FrameRequest,
    choose_frames,
    interpolate,
    pixel_gaps,
    require_one_grid_and_unit,
)
from simcast_hpc.radar import RadarFrame, RadarGrid
from tests.radar.radar_files import LAEA, moment

GRID = RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 2, 4)


def test_chooses_frames_at_the_models_cadence_from_a_faster_radar():
    available = [moment(k, minutes=2.0) for k in range(20)]
    frame_set = choose_frames(available, available[-1], FrameRequest(4, 4.0))
    assert list(frame_set.frames) == [available[k] for k in (13, 15, 17, 19)]


def test_accepts_frames_some_seconds_off_their_nominal_time():
    available = [moment(k) + timedelta(seconds=20 * (-1) ** k) for k in range(5)]
    assert choose_frames(available, moment(4), FrameRequest(5, 5.0)).missing == ()


def test_gap_error_names_times_and_the_bridge_option():
    available = [moment(k) for k in (0, 1, 3, 4)]
    with pytest.raises(DataError, match=r"01:20 UTC: 1 of 5 frames every 5 minutes are missing: 01:10.*--bridge 1"):
        choose_frames(available, moment(4), FrameRequest(5, 5.0))


def test_rejects_another_cadence():
    available = [moment(k, minutes=15.0) for k in range(6)]
    with pytest.raises(DataError, match=r"the available frames are 15 minutes apart"):
        choose_frames(available, available[-1], FrameRequest(4, 5.0))


@pytest.mark.parametrize("lost", [0, 4])
def test_never_interpolates_the_first_or_last_frame(lost):
    available = [moment(k) for k in range(5) if k != lost]
    with pytest.raises(DataError, match=r"1 of 5 frames") as error:
        choose_frames(available, moment(4), FrameRequest(5, 5.0, bridge=2))
    assert str(error.value).endswith(
        "; the frames must span 20 minutes, from 01:00 to 01:20: --bridge interpolates between frames, never the first "
        "or the last"
    )
    assert "minutes apart" not in str(error.value)  # the cadence is the model's


def test_finds_gaps_of_pixels():
    """Pixels: no gap, one frame, two frames, first frame, last frame, frames 1 and 3."""
    there = ["xxxxx", "x.xxx", "x..xx", ".xxxx", "xxxx.", "x.x.x"]
    missing = np.array([[[pixel[k] == "." for pixel in there]] for k in range(5)])

    def gaps(longest: int) -> list[tuple[int, int, list[int]]]:
        return [
            (before, after, np.flatnonzero(pixels[0]).tolist())
            for before, after, pixels in pixel_gaps(missing, longest)
        ]

    assert gaps(0) == []
    assert gaps(1) == [(0, 2, [1, 5]), (2, 4, [5])]
    assert gaps(2) == gaps(3) == [(0, 2, [1, 5]), (0, 3, [2]), (2, 4, [5])]


def test_interpolates_linearly_in_time():
    earlier, later = np.array([[1.0, 4.0]], np.float32), np.array([[7.0, 1.0]], np.float32)
    times = [moment(k) for k in range(4)]
    np.testing.assert_allclose(interpolate(earlier, later, times, 1), [[3.0, 3.0]], rtol=1e-6)
    np.testing.assert_allclose(interpolate(earlier, later, times, 2), [[5.0, 2.0]], rtol=1e-6)
    frame_set = choose_frames([moment(0), moment(3)], moment(3), FrameRequest(4, 5.0, bridge=2))
    assert frame_set.missing == (moment(1), moment(2))


@pytest.mark.parametrize("year", [1, 1939, 9999])
def test_rejects_issue_times_outside_the_calendar(year):
    issue = datetime(year, 1, 1, tzinfo=UTC)
    with pytest.raises(
        DataError, match=f"the issue time {year:04d}-01-01T00:00:00.00:00 must be between 1940 and 9998"
    ):
        choose_frames([issue], issue, FrameRequest(3, 5.0))


def test_rejects_two_grids_and_two_units():
    other = RadarGrid(LAEA, 5000.0, 0.0, 1000.0, 1000.0, 2, 4)

    def frame(number: int, unit="mm/h", grid=GRID) -> RadarFrame:
        return RadarFrame(np.ones((2, 4), np.float32), unit, moment(number), grid, Path(f"{moment(number):%H%M}.h5"))

    with pytest.raises(DataError, match=r"0105\.h5 has another grid than 0100\.h5: left 5000 instead of 0 m"):
        require_one_grid_and_unit([frame(0), frame(1, grid=other)])
    with pytest.raises(DataError, match=r"0105\.h5 is in dBZ and 0100\.h5 in mm/h"):
        require_one_grid_and_unit([frame(0), frame(1, "dBZ")])
