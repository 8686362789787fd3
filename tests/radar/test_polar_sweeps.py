"""Polar volumes and sweeps: geometry, choice of the sweep and values, on files that h5py writes."""

import logging
from datetime import UTC, datetime

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import frame_times, read_frames
from simcast_hpc.radar.radar_frame import QuantityError
from tests.radar.odim_files import gate_at, polar_layout, write_layout

# The pixel 10.5 km east and 1.5 km north of the radar: azimuth atan2(10.5, 1.5) = 81.87 degrees, distance 10.61 km.
PLACE = (10.5, 1.5)


def read(tmp_path, groups, *, conventions="ODIM_H5/V2_3", **choice):
    (frame,) = read_frames(write_layout(tmp_path / "a.h5", groups, conventions=conventions), **choice)
    return frame


def test_pixels_take_the_gate_at_their_position(tmp_path):
    frame = read(tmp_path, polar_layout())
    assert frame.unit == "dBZ" and frame.start is None and frame.time == datetime(2024, 11, 26, 1, tzinfo=UTC)
    assert frame.grid.shape == (64, 64) and frame.grid.projection.startswith("+proj=aeqd +lat_0=55 +lon_0=10 ")
    assert gate_at(frame, *PLACE) == (81, 10)
    # Azimuths 47.05, 230.71 and 353.66 degrees; distances 19.81, 7.11 and 4.53 km.
    assert gate_at(frame, 14.5, 13.5) == (47, 19)
    assert gate_at(frame, -5.5, -4.5) == (230, 7)
    assert gate_at(frame, -0.5, 4.5) == (353, 4)
    assert gate_at(frame, 0.5, 31.5) == (0, 31) and gate_at(frame, -31.5, -31.5) is None


@pytest.mark.parametrize(
    ("how", "ray"),
    [
        ({"astart": 0.0}, 81), ({"astart": -0.5}, 82), ({"astart": 0.5}, 81), ({"astart": [0.9]}, 80),
        # Row 0 at 90 degrees; rays that are measured counter-clockwise; start azimuths only.
        ({"startazA": (np.arange(360) + 90.0) % 360, "stopazA": (np.arange(360) + 91.0) % 360}, 351),
        ({"startazA": np.arange(360) + 1.0, "stopazA": np.arange(360.0)}, 81),
        ({"startazA": 360.0 - np.arange(360), "stopazA": 359.0 - np.arange(360)}, 278),
        ({"startazA": (np.arange(360) + 90.0) % 360}, 351),
        ({"startazA": np.arange(360) + 0.5, "stopazA": np.arange(360) + 0.5}, 81),
        # ODIM 2.0: pairs start:stop in one string or in an array of strings.
        ({"azangles": ",".join(f"{(k + 90) % 360}.0:{(k + 91) % 360}.0" for k in range(360))}, 351),
        ({"azangles": np.array([f"{(k + 90) % 360}:{(k + 91) % 360}" for k in range(360)], "S")}, 351),
        ({"azangles": "".join(f"{(k + 90) % 360}:{(k + 91) % 360},\n " for k in range(360))}, 351),
        ({"azangles": " ," + ", ".join(f"{(k + 90) % 360} : {(k + 91) % 360}" for k in range(360)) + " , "}, 351),
        ({"azangles": np.array([f"{(k + 90) % 360}:{(k + 91) % 360}, " for k in range(360)] + [""], "S")}, 351),
    ],
)  # fmt: skip
@pytest.mark.parametrize("level", ["how", "dataset1/how", "dataset1/data1/how"])
def test_azimuth_of_rays(tmp_path, how, ray, level):
    # astart 0.9: the rays start at 0.9 degrees, so 81.87 is in the ray from 80.9 to 81.9.
    frame = read(tmp_path, polar_layout() | {level: how})
    assert gate_at(frame, *PLACE) == (ray, 10)


def test_first_measured_ray_does_not_turn_the_sweep(tmp_path):
    assert gate_at(read(tmp_path, polar_layout(a1gate=120)), *PLACE) == (81, 10)


@pytest.mark.parametrize("rays", [180, 720])
def test_width_of_rays_follows_their_number(tmp_path, rays):
    groups = polar_layout(rays=rays)
    if rays == 720:  # 65535 values are too few for both
        groups["dataset1/data1/data"] = groups["dataset1/data1/data"] // 2
        assert read(tmp_path, groups).grid.shape == (64, 64)
        return
    assert gate_at(read(tmp_path, groups), *PLACE) == (40, 10)


def test_directions_that_were_not_scanned_are_missing(tmp_path):
    groups = polar_layout(rays=90) | {"dataset1/how": {"startazA": np.arange(90.0), "stopazA": np.arange(1.0, 91.0)}}
    frame = read(tmp_path, groups)
    assert gate_at(frame, *PLACE) == (81, 10)
    assert gate_at(frame, -10.5, 1.5) is None and gate_at(frame, 10.5, -5.5) is None


def test_gap_of_one_ray_is_closed_and_wider_ones_are_missing(tmp_path):
    angles = np.delete(np.arange(360.0), [81, 200, 201, 202, 203, 204, 205])
    groups = polar_layout(rays=len(angles)) | {"dataset1/how": {"startazA": angles, "stopazA": angles + 1}}
    frame = read(tmp_path, groups)
    assert gate_at(frame, *PLACE) == (81, 10)  # the next ray, from 82 degrees
    assert gate_at(frame, -8.5, -19.5) is None  # azimuth 203.6 degrees


@pytest.mark.parametrize(
    ("conventions", "version", "rstart", "gate"),
    [
        ("ODIM_H5/V2_3", "2.3", 2.0, 8), ("ODIM_H5/V2_0", "2.0", 0.25, 10), ("ODIM_H5/V2_4", "2.4", 2000.0, 8),
        ("ODIM_H5/V2_4", "2.4", 2.0, 10), ("", "2.4", 2000.0, 8), ("", "2.2", 2.0, 8), ("ODIM_H5/V2_2", "2.4", 2.0, 8),
    ],
)  # fmt: skip
def test_start_of_the_range_is_in_km_until_version_2_3_and_then_in_meters(tmp_path, conventions, version, rstart, gate):
    # 10.61 km are in gate 8 if the first gate starts at 2 km.
    frame = read(tmp_path, polar_layout(version=version, rstart=rstart), conventions=conventions)
    assert gate_at(frame, *PLACE) == (81, gate)
    assert gate_at(frame, 0.5, 1.5) == (None if gate == 8 else (18, 1))  # 1.58 km


def test_beam_height_shortens_the_ground_distance(tmp_path):
    # At 20 degrees the gates from 10 km along the beam are above cos(20) 10 km = 9.4 km; the pixel needs 10.61 / 0.94.
    frame = read(tmp_path, polar_layout(elangle=20.0))
    assert gate_at(frame, *PLACE) == (81, 11)
    # 240.5 km on the ground are 240.63 km along a beam of 0.5 degrees over 4/3 of the earth's radius, not 240.51.
    assert gate_at(read(tmp_path, polar_layout(rscale=8000.0, rstart=0.6)), 240.5, 0.5) == (89, 30)


@pytest.mark.parametrize("level", ["where", "dataset1/where", "dataset1/data1/where"])
@pytest.mark.parametrize("name", ["lon", "elangle", "rscale"])
def test_geometry_at_any_level(tmp_path, level, name):
    groups = polar_layout()
    groups.setdefault(level, {})
    value = groups["where" if name == "lon" else "dataset1/where"].pop(name)
    groups[level] = groups[level] | {name: value}
    assert gate_at(read(tmp_path, groups), *PLACE) == (81, 10)


def test_single_sweep_object_and_arrays_of_one_element(tmp_path):
    groups = polar_layout()
    groups["what"]["object"] = "SCAN"
    groups["dataset1/where"] = {name: np.array([value]) for name, value in groups["dataset1/where"].items()}
    assert gate_at(read(tmp_path, groups), *PLACE) == (81, 10)


@pytest.mark.parametrize(
    "elevations", [(2.0, 0.5, 1.0), (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5), (-0.3, 0.5)]
)
def test_lowest_sweep_is_read(tmp_path, caplog, elevations):
    frame = read(tmp_path, polar_layout(elevations=elevations))
    assert frame.metadata["elevation_degrees"] == min(elevations) and not caplog.text
    assert frame.metadata["group"] == f"dataset{elevations.index(min(elevations)) + 1}/data1"


def test_first_of_equal_sweeps_is_read_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        frame = read(tmp_path, polar_layout(elevations=(1.0, 0.5, 0.5)))
    assert frame.metadata["group"] == "dataset2/data1"
    assert "elevation 0.5 degrees in dataset2/data1, dataset3/data1; dataset2/data1 is read" in caplog.text


def test_dataset_of_a_volume_can_be_chosen(tmp_path):
    groups = polar_layout(elevations=(0.5, 2.0))
    assert read(tmp_path, groups, dataset=2).metadata["elevation_degrees"] == 2.0
    with pytest.raises(DataError, match=r"no field in dataset3; the datasets are dataset1 \(DBZH\), dataset2 \(DBZH\)"):
        read(tmp_path, groups, dataset=3)


@pytest.mark.parametrize("malfunction", ["True", "true", "TRUE", True, np.bool_(True), 1, 1.0, ["True"], np.array([1])])
@pytest.mark.parametrize("level", ["dataset1/how", "dataset1/data1/how"])
def test_sweep_with_a_malfunction_is_skipped(tmp_path, caplog, malfunction, level):
    groups = polar_layout(elevations=(0.5, 1.0)) | {level: {"malfunc": malfunction}}
    frame = read(tmp_path, groups)
    assert frame.metadata["group"] == "dataset2/data1"
    assert "skipped dataset1/data1, whose how/malfunc is true" in caplog.text


@pytest.mark.parametrize("malfunction", ["False", "false", False, 0, 0.0, "", "0"])
def test_sweep_without_a_malfunction_is_read(tmp_path, malfunction):
    groups = polar_layout(elevations=(0.5, 1.0)) | {"dataset1/how": {"malfunc": malfunction}}
    assert read(tmp_path, groups).metadata["group"] == "dataset1/data1"


def test_malfunction_of_the_radar_rejects_the_file(tmp_path):
    with pytest.raises(DataError, match=r"malfunc is true for all 2 fields; none can be used"):
        read(tmp_path, polar_layout(elevations=(0.5, 1.0)) | {"how": {"malfunc": "True"}})


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_nodata_is_missing_and_undetect_is_no_echo(tmp_path, dtype):
    groups = polar_layout()
    stored = np.full((360, 32), 60, dtype)
    stored[81, 10], stored[47, 19] = 0, 99
    groups["dataset1/data1/data"] = stored
    groups["dataset1/data1/what"] = {"quantity": "DBZH"}
    groups["dataset1/what"] |= {"gain": 0.5, "offset": -32.0, "nodata": 99.0, "undetect": 0.0}
    values = read(tmp_path, groups).values
    assert np.isneginf(values[30, 42]) and np.isnan(values[18, 46]) and values[31, 42] == -2.0


def test_float_sentinels_and_equal_sentinels(tmp_path):
    groups = polar_layout()
    stored = np.full((360, 32), 20.0, np.float32)
    stored[81, 10], stored[47, 19] = -99.9, -88.8
    groups["dataset1/data1/data"] = stored
    groups["dataset1/data1/what"] = {"quantity": "DBZH", "nodata": -99.9, "undetect": -88.8}
    values = read(tmp_path, groups).values
    assert np.isnan(values[30, 42]) and np.isneginf(values[18, 46])
    groups["dataset1/data1/what"]["undetect"] = -99.9
    values = read(tmp_path, groups).values
    assert np.isneginf(values[30, 42]) and np.isnan(values[0, 0])  # the corner is out of range


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"rscale": 0.25}, "reach only 8 m; rscale must be in meters"), ({"rscale": -1.0}, "rscale of .* is -1.0"),
        ({"rstart": 125.0}, "rstart of .* is 125 km; it must be from -1 to 20"),
        ({"elangle": 90.0}, "elangle of .* is 90"),
        ({"elangle": np.nan}, "elangle of dataset1/data1 is nan"), ({"nrays": 720}, "nrays and where/nbins are .720"),
        ({"lat": 95.0}, "lat of dataset1/data1 is 95"), ({"elangle": "low"}, "elangle is 'low'; it must be one number"),
    ],
)  # fmt: skip
def test_invalid_geometry_is_an_error(tmp_path, where, message):
    with pytest.raises(DataError, match=rf"a\.h5.*{message}"):
        read(tmp_path, polar_layout(**where))


@pytest.mark.parametrize("angles", [np.arange(359.0), np.full(360, np.nan), "0.0:1.0"])
def test_invalid_azimuths_are_an_error(tmp_path, angles):
    with pytest.raises(DataError, match=r"how/startazA of dataset1/data1 must contain 360 finite numbers"):
        read(tmp_path, polar_layout() | {"dataset1/how": {"startazA": angles}})


@pytest.mark.parametrize(
    "pairs", ["0:1,1:2", "0-1", ",", ",,".join(["0:1"] * 360), ",".join(["0:1:2"] * 360), ",".join(["0:nan"] * 360)]
)
def test_invalid_pairs_of_azimuths_are_an_error(tmp_path, pairs):
    with pytest.raises(DataError, match="how/azangles of dataset1/data1 must contain 360 pairs start:stop"):
        read(tmp_path, polar_layout() | {"dataset1/how": {"azangles": pairs}})


def test_other_quantities_are_named(tmp_path):
    groups = polar_layout()
    groups["dataset1/data1/what"]["quantity"] = "TH"
    with pytest.raises(DataError, match=r"is a polar volume of \['TH'\]; it must contain DBZH"):
        read(tmp_path, groups)
    with pytest.raises(QuantityError, match=r"is a polar volume of \['TH'\]"):
        frame_times(tmp_path / "a.h5")


def test_a_vertical_sweep_is_skipped_and_alone_an_error(tmp_path):
    groups = polar_layout(elevations=(90.0, 0.5))
    (frame,) = read_frames(write_layout(tmp_path / "a.h5", groups))
    assert frame.metadata["group"] == "dataset2/data1" and frame.metadata["elevation_degrees"] == 0.5
    groups = polar_layout(elevations=(90.0,))
    with pytest.raises(DataError, match=r"where/elangle of dataset1/data1 is 90.0; it must be from -5 to 45"):
        read_frames(write_layout(tmp_path / "b.h5", groups))
    with pytest.raises(DataError, match=r"where/elangle of dataset1/data1 is 90.0; it must be from -5 to 45"):
        read_frames(tmp_path / "a.h5", dataset=1)


def test_stop_azimuths_without_start_azimuths_give_the_place_of_the_rays(tmp_path):
    # Ray 0 stops at 91 degrees, so its center is 90.5 and ray 359 ends at 90.
    groups = polar_layout()
    groups["dataset1/how"] = {"stopazA": (np.arange(360.0) + 91.0) % 360.0}
    (frame,) = read_frames(write_layout(tmp_path / "a.h5", groups))
    # 10.5 km east, 0.5 km south: azimuth 92.73 degrees, distance 10.51 km.
    assert gate_at(frame, 10.5, -0.5) == (2, 10)


def knmi_volume(tmp_path, **changes):
    stored = (1 + 32 * np.arange(360)[:, None] + np.arange(32)).astype(np.uint16)
    stored[0, :2] = [0, 65535]
    formula = {"calibration_Z_formulas": "GEO=0.005*PV+0.0", "calibration_missing_data": 0}
    scan = {"scan_number_azim": 360, "scan_number_range": 32, "scan_azim_bin": 1.0, "scan_range_bin": 1.0}
    groups = {"overview": {"product_datetime_start": "26-NOV-2024;01:00:00.000"}, "geographic": {},
              "radar1": {"radar_location": np.array([10.0, 55.0])}}  # fmt: skip
    for number, (elevation, range_bin) in enumerate(((90.0, 1.0), (2.0, 1.0), (0.3, 0.5), (0.3, 1.0)), 1):
        groups[f"scan{number}"] = scan | {"scan_elevation": elevation, "scan_range_bin": range_bin} | changes
        groups[f"scan{number}/calibration"] = formula
        groups[f"scan{number}/scan_Z_data"] = stored + np.uint16(0 if number == 4 else 9) * (stored > 0)
    path = write_layout(tmp_path / "knmi.h5", groups, conventions="")
    assert frame_times(path) == [datetime(2024, 11, 26, 1, tzinfo=UTC)]
    return path


def test_knmi_polar_volume_reads_the_lowest_sweep_of_the_longest_range(tmp_path):
    (frame,) = read_frames(knmi_volume(tmp_path))
    assert frame.metadata["group"] == "scan4" and frame.unit == "dBZ"
    assert gate_at(frame, *PLACE) == (81, 10) and gate_at(frame, -5.5, -4.5) == (230, 7)
    assert gate_at(frame, -31.5, -31.5) is None
    with pytest.raises(DataError, match=r"360 rays of scan_azim_bin 2\.0 degrees are no full circle"):
        read_frames(knmi_volume(tmp_path, scan_azim_bin=2.0))
