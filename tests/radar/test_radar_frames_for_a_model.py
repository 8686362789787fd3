"""Which frames a model gets, in which code: cadence, gaps, units, pixels, each refusal with what would be right."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataConfig, DataError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.radar import RadarFrame, RadarGrid, Wanted, choose_frames, code_of_run, coded
from simcast_hpc.radar.frame_sequence import bridged, reject_a_mixture, reject_twins
from tests.radar.radar_files import LAEA, START, moment

GRID = RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 2, 4)


def frame(values, unit="mm/h", *, grid=GRID, time=START) -> RadarFrame:
    return RadarFrame(np.asarray(values, np.float32), unit, time, grid, Path(f"{time:%H%M}.h5"))


def test_the_last_frames_at_the_models_cadence_are_chosen_from_a_faster_radar():
    available = [moment(k, minutes=2.0) for k in range(20)]
    chosen = choose_frames(available, available[-1], Wanted(4, 4.0))
    assert list(chosen.chosen) == [available[k] for k in (13, 15, 17, 19)]


def test_seconds_of_drift_are_no_gap():
    available = [moment(k) + timedelta(seconds=20 * (-1) ** k) for k in range(5)]
    assert choose_frames(available, moment(4), Wanted(5, 5.0)).lacking == ()


def test_a_gap_is_rejected_with_its_times_and_the_cadence():
    available = [moment(k) for k in (0, 1, 3, 4)]
    with pytest.raises(DataError, match=r"01:20 UTC: of 5 frames every 5 minutes, 1 missing: 01:10.*--bridge 1"):
        choose_frames(available, moment(4), Wanted(5, 5.0))


def test_another_cadence_is_rejected():
    available = [moment(k, minutes=15.0) for k in range(6)]
    with pytest.raises(DataError, match=r"frames there come every 15 minutes"):
        choose_frames(available, available[-1], Wanted(4, 5.0))


@pytest.mark.parametrize("lost", [0, 4])
def test_the_first_and_the_last_frame_are_never_bridged(lost):
    available = [moment(k) for k in range(5) if k != lost]
    with pytest.raises(DataError, match=r"1 missing") as refused:
        choose_frames(available, moment(4), Wanted(5, 5.0, bridge=2))
    assert str(refused.value).endswith(
        "; the frames must reach over 20 minutes, from 01:00 to 01:20: --bridge fills gaps between frames, never the "
        "first or the last"
    )
    assert "frames there come every" not in str(refused.value)  # their cadence is the model's


def test_bridging_is_linear_in_time_and_keeps_missing_pixels():
    fields = [np.array([[1.0, 4.0]], np.float32), None, None, np.array([[7.0, np.nan]], np.float32)]
    found = bridged(fields, [moment(k) for k in range(4)])
    np.testing.assert_allclose(found[1], [[3.0, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(found[2], [[5.0, np.nan]], rtol=1e-6)
    chosen = choose_frames([moment(0), moment(3)], moment(3), Wanted(4, 5.0, bridge=2))
    assert chosen.lacking == (moment(1), moment(2))


def test_files_of_two_grids_or_units_or_of_one_time_are_rejected():
    other = RadarGrid(LAEA, 5000.0, 0.0, 1000.0, 1000.0, 2, 4)
    values = np.ones((2, 4))
    with pytest.raises(DataError, match=r"0105\.h5 has another grid than 0100\.h5: left 5000 against 0 m"):
        reject_a_mixture([frame(values), frame(values, grid=other, time=moment(1))])
    with pytest.raises(DataError, match=r"0105\.h5 is in dBZ and 0100\.h5 in mm/h"):
        reject_a_mixture([frame(values), frame(values, "dBZ", time=moment(1))])
    with pytest.raises(DataError, match=r"b and a hold the same time 2024-11-26 01:00:00"):
        reject_twins({Path("a"): [START], Path("b"): [START]})


def test_averaging_is_in_mm_an_hour_over_valid_pixels():
    values = [[1.0, 3.0, np.nan, np.nan], [2.0, np.nan, np.nan, np.nan]]
    code = code_of_run(DataConfig(dataset="knmi", block_mean=2))
    found = coded(frame(values), code)
    assert found.codes.tolist() == [[int(code.spec.encoding.encode(np.array(2.0))), MISSING_CODE]]
    assert found.grid.shape == (1, 2) and found.grid.spacing_x == 2000.0


def test_reflectivity_is_averaged_as_z():
    values = [[30.0, -np.inf, 30.0, 30.0], [-np.inf, -np.inf, 30.0, 30.0]]
    found = coded(frame(values, "dBZ"), code_of_run(DataConfig(dataset="fmi", block_mean=2)))
    # A quarter of the Z is 6.02 dB less, nearest of half decibels.
    assert found.codes.tolist() == [[round(2 * (24.0 + 32)), 2 * (30 + 32)]]


def test_reflectivity_becomes_rain_by_marshall_palmer_or_by_a_given_relation():
    values = np.full((2, 4), 10 * np.log10(200.0) + 16.0)  # 10 mm/h
    by_default = code_of_run(DataConfig(dataset="knmi"))
    np.testing.assert_allclose(by_default.linear(frame(values, "dBZ")), 10.0, rtol=1e-5)
    given = code_of_run(DataConfig(dataset="knmi"), z_r=ZRRelation(a=223.0, b=1.53))
    want = (10 ** ((10 * np.log10(200.0) + 16.0) / 10) / 223.0) ** (1 / 1.53)
    np.testing.assert_allclose(given.linear(frame(values, "dBZ")), want, rtol=1e-5)


def test_rain_becomes_reflectivity_by_the_descriptions_relation_alone():
    rain = frame(np.full((2, 4), 10.0))
    with pytest.raises(DataError, match=r"in mm/h and the model fmi in dBZ; .*--z-r A B gives one"):
        code_of_run(DataConfig(dataset="fmi")).linear(rain)
    code = code_of_run(DataConfig(dataset="hko7"))
    np.testing.assert_allclose(code.from_linear(code.linear(rain)), code.spec.z_r.reflectivity(10.0), rtol=1e-5)


def test_rain_is_not_liquid():
    with pytest.raises(DataError, match=r"in mm/h and the model sevir in kg/m\^2; no option .*docs/own_radar\.md"):
        code_of_run(DataConfig(dataset="sevir")).linear(frame(np.ones((2, 4))))


def test_pixels_that_do_not_fit_are_rejected_and_a_flag_takes_them():
    half = RadarGrid(LAEA, 0.0, 0.0, 700.0, 700.0, 2, 4)
    with pytest.raises(DataError, match=r"pixels of 0\.7 km and the model was trained on 1 km.*--any-spacing"):
        code_of_run(DataConfig(dataset="knmi")).factor(half)
    assert code_of_run(DataConfig(dataset="knmi"), any_spacing=True).factor(half) == 1
    assert code_of_run(DataConfig(dataset="mrms-4km")).factor(GRID) == 4


def test_a_forecast_between_two_codes_lies_between_their_values():
    code = code_of_run(DataConfig(dataset="knmi"))
    places = np.array([0.0, 0.5, 1.0, 100.0, 100.5, 101.0, 254.0]) / 255
    values = code.linear_of_forecast(places.astype(np.float32))
    table = code.spec.encoding.decode(np.array([0, 1, 100, 101, 254], np.uint8))
    np.testing.assert_allclose(values[[0, 2, 3, 5, 6]], table, rtol=1e-5)
    assert 0 < values[1] < 0.1 and table[2] < values[4] < table[3]
