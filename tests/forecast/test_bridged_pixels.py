"""Pixels that are missing in some input frames, by the outage of a radar: `--bridge` interpolates them in time."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.input_frames import stack_frames
from simcast_hpc.forecast.predictor import Predictor
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import EncodedFrame, RadarGrid, encoding_of_run
from tests.forecast.watch_runs import write_frame
from tests.radar.radar_files import LAEA, moment, predict, storm

_ = np.nan


def predictor(model: Path, *, frames_in: int, bridge: int) -> Predictor:
    trained = load_trained(model)
    code = encoding_of_run(trained.config.data)
    return Predictor(trained, code, FrameRequest(frames_in, code.step_minutes, bridge), (32, 32), 8)


def bridged(model: Path, field: np.ndarray, *, bridge: int, lost: tuple[int, ...] = ()) -> tuple[np.ndarray, list[int]]:
    """Return dBZ ``[T, H, W]`` after bridging, and the number of interpolated pixels by frame."""
    maker = predictor(model, frames_in=len(field), bridge=bridge)
    encoding = maker.code.spec.encoding
    codes = encoding.encode(field.astype(np.float32))
    chosen = maker.inputs([moment(k) for k in range(len(field)) if k not in lost], moment(len(field) - 1))
    grid = RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, *field.shape[1:])
    frames = {
        time: EncodedFrame(one, grid, "dBZ", time, Path("frame"))
        for time, one in zip(chosen.times, codes, strict=True)
        if time not in chosen.missing
    }
    inputs = stack_frames(frames, chosen, maker.code, bridge=bridge)
    return encoding.decode(inputs.codes), inputs.bridged


def test_interpolates_in_linear_units_up_to_the_largest_gap(model):
    """Z = 10 and 100 (10 and 20 dBZ): the middle is 55, 17.404 dBZ; the thirds are 40 and 70, 16.021 and 18.451 dBZ."""
    pixels = np.array(
        [
            [10.0, 10.0, 10.0, 10.0, _, 10.0],
            [_, _, 20.0, 10.0, 10.0, _],
            [20.0, _, _, 10.0, 10.0, _],
            [20.0, 20.0, 10.0, _, 10.0, _],
        ]
    )  # columns: a gap of one frame, of two, of one later, the last frame, the first frame, three up to the end
    want = {
        0: pixels[1:3, :3],
        1: [[17.404, _, 20.0], [20.0, _, 17.404]],
        2: [[17.404, 16.021, 20.0], [20.0, 18.451, 17.404]],
    }
    step = 0.5  # the resolution of the encoding in dBZ
    for bridge, middle in want.items():
        got, counts = bridged(model, pixels[:, None], bridge=bridge)
        np.testing.assert_allclose(got[1:3, 0, :3], middle, atol=step / 2 + 0.001)
        np.testing.assert_array_equal(got[:, 0, 3:], pixels[:, 3:])  # nothing is known after or before these gaps
        np.testing.assert_array_equal(got[[0, 3], 0, :3], pixels[[0, 3], :3])
        assert counts == [0, *(np.isfinite(middle).sum(1) - np.isfinite(pixels[1:3, :3]).sum(1)), 0]


def test_no_echo_counts_as_zero_and_missing_frames_share_the_gap(model):
    """Half of Z = 100 is 50, 16.990 dBZ. With frame 1 lost, a pixel that frame 2 lacks has a gap of two frames."""
    field = np.array([[[-np.inf, 20.0]], [[_, _]], [[20.0, _]], [[20.0, 20.0]]])
    got, counts = bridged(model, field, bridge=1, lost=(1,))
    np.testing.assert_allclose(got[1:3, 0], [[16.990, _], [20.0, _]], atol=0.251)
    assert counts == [0, 1, 0, 0]
    got, counts = bridged(model, field, bridge=2, lost=(1,))
    np.testing.assert_allclose(got[1:3, 0], [[16.990, 20.0], [20.0, 20.0]], atol=0.251)
    assert counts == [0, 2, 1, 0]


def test_forecast_loses_only_what_cannot_be_interpolated(model, tmp_path):
    """The middle frame lacks the west, the last one a corner; the storm always lacks a corner in the northeast."""
    fields = [storm(k) for k in range(3)]
    always = np.isnan(fields[0])
    fields[1][:, :24], fields[2][30:, :10] = np.nan, np.nan
    paths = [write_frame(tmp_path / f"{k}.nc", k, field) for k, field in enumerate(fields)]
    corner = np.zeros_like(always)
    corner[30:, :10] = True
    west = np.zeros_like(always)
    west[:, :24] = True

    def forecast(*options: object) -> tuple[np.ndarray, str]:
        (path,) = predict(model, *paths, "--out", tmp_path / "out", "--write", "nc", *options)
        with xr.open_dataset(path) as dataset:
            assert dataset.attrs["simcast_bridged"] == "none"
            return dataset.reflectivity.values, dataset.attrs["simcast_bridged_pixels"]

    values, attribute = forecast()
    assert (np.isnan(values) == (always | west | corner)).all() and attribute == "none"
    values, attribute = forecast("--bridge", 1)
    assert (np.isnan(values) == (always | corner)).all()
    count = int((west & ~corner & ~always).sum())
    assert json.loads(attribute) == [{"time": "2024-11-26T01:05Z", "pixels": count}]
