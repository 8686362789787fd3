"""`simcast predict` from files: CF netCDF and Zarr, pictures, provenance, and the error of each invalid input."""

import functools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyproj
import pytest
import torch
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.commands.options import override_sampling
from simcast_hpc.config import SimcastError
from simcast_hpc.export import export_run
from simcast_hpc.forecast.cf_dataset import as_dataset
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.forecast_files import write_netcdf
from simcast_hpc.forecast.load_predictor import PredictorSettings, load_model
from simcast_hpc.forecast.predictor import Predictor, noise_of_tile
from simcast_hpc.inference.trained_ensemble import load_ensemble, load_run
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import EncodedFrame, RadarGrid, encoding_of_run
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from tests.radar.radar_files import LAEA, compliance_errors, moment, predict, small_model, storm, write_odim
from tests.storage.test_hdf5_target import limited


def error_of(*words: object) -> str:
    with pytest.raises(SimcastError) as error:
        predict(*words)
    return str(error.value)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number in range(4):
        write_odim(folder / f"{number}.h5", storm(number), moment(number))
    return folder


@pytest.fixture(scope="module")
def written(model, frames, tmp_path_factory) -> dict[str, Path]:
    """The forecast of the model from the folder of frames, in every format."""
    out = tmp_path_factory.mktemp("forecasts")
    kinds = [word for kind in ("nc", "zarr", "png", "gif") for word in ("--write", kind)]
    return {path.suffix[1:]: path for path in predict(model, frames, "--out", out, "--institution", "Us", *kinds)}


def test_netcdf_is_cf_compliant(written):
    assert compliance_errors(written["nc"]) == ""


def test_cf_checker_detects_invalid_units(written, tmp_path):
    with xr.open_dataset(written["nc"], decode_timedelta=False) as dataset:
        broken = dataset.load()
    broken.reflectivity.attrs["units"] = "furlongs"
    broken.to_netcdf(tmp_path / "broken.nc", engine="h5netcdf")
    assert "furlongs" in compliance_errors(tmp_path / "broken.nc")


def test_xarray_opens_times_and_projection(written):
    with xr.open_dataset(written["nc"], decode_timedelta=False) as dataset:
        issue = np.datetime64("2024-11-26T01:15:00")
        assert dataset.forecast_reference_time.values == issue
        np.testing.assert_array_equal(dataset.time.values, issue + np.arange(5, 25, 5) * np.timedelta64(60, "s"))
        np.testing.assert_array_equal(dataset.forecast_period.values, [5, 10, 15, 20])
        assert dataset.reflectivity.dims == ("time", "y", "x") and dataset.reflectivity.shape == (4, 40, 52)
        assert dataset.reflectivity.attrs["units"] == "dBZ"
        assert dataset.reflectivity.attrs["standard_name"] == "equivalent_reflectivity_factor"
        crs = pyproj.CRS.from_cf(dataset.crs.attrs)
        assert crs == pyproj.CRS.from_user_input(LAEA)
        east, north = pyproj.Proj(LAEA)(dataset.longitude.values, dataset.latitude.values)
        np.testing.assert_allclose(east, np.broadcast_to(dataset.x.values, (40, 52)), atol=1.0)
        np.testing.assert_allclose(north, np.broadcast_to(dataset.y.values[:, None], (40, 52)), atol=1.0)


def test_pixels_missing_in_an_input_are_missing_in_the_forecast(written):
    with xr.open_dataset(written["nc"]) as dataset:
        missing = np.isnan(dataset.reflectivity.values)
    assert (missing == np.isnan(storm(0))).all()


def test_zarr_equals_netcdf(written):
    with (
        xr.open_dataset(written["nc"], decode_timedelta=False) as netcdf,
        xr.open_zarr(written["zarr"], decode_timedelta=False) as zarr,
    ):
        xr.testing.assert_identical(netcdf.load(), zarr.load())


def test_file_has_provenance(written, model):
    with xr.open_dataset(written["nc"]) as dataset:
        attributes = dataset.attrs
    assert attributes["simcast_weights_sha256"] == file_hash(RunDirectory(model).weights)
    assert [item["file"] for item in json.loads(attributes["simcast_inputs"])] == ["1.h5", "2.h5", "3.h5"]
    assert (
        attributes["institution"] == "Us" and attributes["simcast_bridged"] == "none" and attributes["simcast_commit"]
    )
    assert attributes["simcast_run"] == "tiny" and attributes["simcast_stage"] == "direct"
    assert attributes["license"] == "FMI open data, CC BY 4.0"
    assert attributes["attribution"] == "Finnish Meteorological Institute"


def test_name_of_another_data_set_is_reported_by_command_and_python(model, frames, tmp_path, caplog):
    run = tmp_path / "copied"
    shutil.copytree(model, run)
    (run / "config.yaml").write_text((model / "config.yaml").read_text().replace("name: tiny", "name: sevir-direct"))
    result = CliRunner().invoke(app, ["predict", str(run), str(frames), "--out", str(tmp_path), "--write", "nc"])
    warning = "the run is named 'sevir-direct', but its data set is 'fmi', not 'sevir'"
    assert result.exit_code == 0 and warning in result.stderr
    with xr.open_dataset(result.stdout.strip()) as dataset:
        assert dataset.attrs["simcast_run"] == "sevir-direct"
    logging.getLogger("simcast_hpc").propagate = True
    for path, texts in ((model, ""), (run, warning)):
        trained = load_trained(path)
        code = encoding_of_run(trained.config.data)
        Predictor(trained, code, FrameRequest(3, code.step_minutes), (32, 32), 8)
        assert texts in caplog.text and (texts or warning not in caplog.text)


def test_pictures_show_every_lead_time(written):
    with Image.open(written["gif"]) as animation:
        assert animation.n_frames == 5
    with Image.open(written["png"]) as picture:
        assert picture.width > picture.height and len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_one_tile_equals_the_models_forecast(model, tmp_path):
    paths = [write_odim(tmp_path / f"{k}.h5", storm(k, shape=(32, 32)), moment(k)) for k in range(3)]
    (path,) = predict(model, *paths, "--out", tmp_path / "out", "--write", "nc")
    trained = load_trained(model)
    code = encoding_of_run(trained.config.data)
    codes = np.stack([code.spec.encoding.encode(storm(k, shape=(32, 32)).astype(np.float32)) for k in range(3)])
    units = trained.forecast(torch.from_numpy(codes)[None], frames_out=4)[0].numpy()
    want = code.spec.encoding.value_of(np.clip(units * 255, 0, 254))
    with xr.open_dataset(path) as dataset:
        got = dataset.reflectivity.values
    finite = ~np.isnan(got) & np.isfinite(want)
    np.testing.assert_allclose(got[finite], np.maximum(want[finite], code.no_echo_value()), atol=2e-3)
    assert (got[~np.isnan(got) & ~np.isfinite(want)] == code.no_echo_value()).all()


def test_reader_reads_written_netcdf(written):
    from simcast_hpc.radar import read_frames

    frames = read_frames(written["nc"], prefer="dBZ")
    assert len(frames) == 4 and frames[0].unit == "dBZ" and frames[0].grid.shape == (40, 52)
    assert frames[0].grid.left == pytest.approx(2_640_000.0, abs=0.01)


def test_ensemble_has_members_mean_and_probabilities(runs, tmp_path):
    ensemble = load_ensemble(runs / "diffusion")
    code = encoding_of_run(ensemble.config.data, any_spacing=True)
    generator = np.random.default_rng(1)
    grid = RadarGrid(LAEA, 0.0, 0.0, 8000.0, 8000.0, 20, 30)
    coded = {
        moment(k): EncodedFrame(
            generator.integers(0, 255, grid.shape, dtype=np.uint8), grid, "kg/m^2", moment(k), tmp_path / f"{k}"
        )
        for k in range(3)
    }
    predictor = Predictor(ensemble, code, FrameRequest(3, 5.0), (16, 16), 4, batch=3)
    forecast = predictor.predict(coded, moment(2))
    members = forecast.values
    assert members.shape == (5, 4, 20, 30) and np.isfinite(members).all()
    np.testing.assert_allclose(forecast.mean, members.mean(axis=0), rtol=1e-5)
    for level, probability in zip(forecast.thresholds, forecast.probability, strict=True):
        np.testing.assert_allclose(probability, (members >= np.float32(level)).mean(axis=0), atol=1e-6)
    assert members.std(axis=0).mean() > 0.01

    without_members = Predictor(ensemble, code, FrameRequest(3, 5.0), (16, 16), 4, batch=3, keep_members=False)
    repeated = without_members.predict(coded, moment(2))
    assert repeated.values is None
    np.testing.assert_array_equal(repeated.mean, forecast.mean)
    np.testing.assert_array_equal(repeated.probability, forecast.probability)

    path = tmp_path / "ensemble.nc"
    write_netcdf(as_dataset(forecast), path)
    assert compliance_errors(path) == ""
    with xr.open_dataset(path) as dataset:
        assert dataset.vertically_integrated_liquid.dims == ("realization", "time", "y", "x")
        assert dataset.probability_of_exceedance.dims == ("threshold", "time", "y", "x")
        np.testing.assert_allclose(dataset.threshold.values, forecast.thresholds)


def test_precision_option_changes_members_and_provenance(runs, tmp_path):
    codes = np.random.default_rng(2).integers(0, 255, (3, 16, 16), dtype=np.uint8)
    place = RadarGrid(LAEA, 0.0, 0.0, 8000.0, 8000.0, 16, 16)
    coded = {moment(k): EncodedFrame(codes[k], place, "kg/m^2", moment(k), tmp_path / f"{k}") for k in range(3)}

    def predictor(precision: str) -> Predictor:
        change = functools.partial(override_sampling, overrides=[f"sampling.precision={precision}", "members=1"])
        settings = PredictorSettings(batch=1, change_sampling=change, reading={"any_spacing": True})
        return load_model(runs / "diffusion", settings)

    made = {precision: predictor(precision).predict(coded, moment(2)) for precision in ("fp32", "bf16")}
    difference = np.abs(made["bf16"].values - made["fp32"].values)
    assert difference.max() > 0 and difference.mean() < 1.0
    assert '"precision":"bf16"' in made["bf16"].provenance["simcast_sampling"]


def test_dbz_is_never_below_the_value_of_no_echo(model):
    """Blending in linear Z gives any value above 0: 1e-10 is -100 dBZ, and half of code 1 is 3 dB below code 1."""
    code = encoding_of_run(load_run(model).config.data, any_spacing=True)
    floor = code.no_echo_value()
    lowest = np.float32(10 ** (floor / 10))
    linear = np.array([[[0.0, 1e-10, lowest / 2, lowest, 1000.0, np.nan]]], np.float32)
    code.make_physical(linear)
    assert np.isnan(linear[0, 0, 5])
    np.testing.assert_allclose(linear[0, 0, :5], [floor, floor, floor, floor, 30.0], atol=1e-5)


def test_tiled_forecast_has_no_dbz_below_no_echo(written, model):
    floor = encoding_of_run(load_run(model).config.data, any_spacing=True).no_echo_value()
    with xr.open_dataset(written["nc"], decode_timedelta=False) as dataset:
        assert float(dataset.reflectivity.min()) >= np.float32(floor)


def test_one_tile_equals_the_ensembles_members(runs, tmp_path):
    ensemble = load_ensemble(runs / "diffusion")
    code = encoding_of_run(ensemble.config.data, any_spacing=True)
    codes = np.random.default_rng(2).integers(0, 255, (3, 16, 16), dtype=np.uint8)
    grid = RadarGrid(LAEA, 0.0, 0.0, 8000.0, 8000.0, 16, 16)
    coded = {moment(k): EncodedFrame(codes[k], grid, "kg/m^2", moment(k), tmp_path / f"{k}") for k in range(3)}
    values = Predictor(ensemble, code, FrameRequest(3, 5.0), (16, 16), 4).predict(coded, moment(2)).values
    members = ensemble.forecast(torch.from_numpy(codes)[None], frames_out=4)[0].numpy()
    np.testing.assert_allclose(values, code.linear_of_forecast(members), rtol=1e-5, atol=1e-6)


def test_overlapping_tiles_share_their_noise(runs):
    ensemble = load_ensemble(runs / "diffusion")
    noise = ensemble.noise_of_domain(torch.zeros(3, 4, 4, dtype=torch.uint8), [0, 1], grid=(32, 48))
    left, right = noise_of_tile(noise, (0, 0), (16, 16), 2), noise_of_tile(noise, (8, 10), (16, 16), 2)
    assert left.shape == right.shape == (2, 4, 2, 8, 8)
    assert torch.equal(left[..., 4:, 5:], right[..., :4, :3])
    assert (left[0] - left[1]).abs().max() > 1


def test_earthformer_forecasts_in_tiles_of_its_grid(frames, tmp_path):
    attention = {
        "kind": "earthformer", "grid": [32, 32], "width": 8, "heads": 1,
        "stem": {"widths": [4, 8], "scales": [2, 2], "convolutions": [1, 1]},
    }  # fmt: skip
    model = small_model(tmp_path / "run", model=attention, data={"dataset": "fmi"})
    (path,) = predict(model, frames, "--out", tmp_path, "--write", "nc")
    with xr.open_dataset(path) as dataset:
        assert dataset.reflectivity.shape == (4, 40, 52)
        assert np.isfinite(dataset.reflectivity.values[:, 5:]).all()
        assert dataset.attrs["simcast_tile"] == "32 x 32 pixels, overlap 8"
    assert "it was trained on 32 x 32" in error_of(model, frames, "--tile", 16, 16)


def test_interpolated_frames_are_recorded(model, frames, tmp_path):
    paths = [frames / f"{number}.h5" for number in (1, 3)]
    assert "1 of 3 frames every 5 minutes are missing: 01:10" in error_of(model, *paths, "--out", tmp_path)
    (path,) = predict(model, *paths, "--out", tmp_path, "--write", "nc", "--bridge", 1)
    with xr.open_dataset(path) as dataset:
        assert dataset.attrs["simcast_bridged"] == "2024-11-26T01:10Z"


def test_at_option_selects_an_earlier_issue_time(model, frames, tmp_path):
    (path,) = predict(model, frames, "--out", tmp_path, "--write", "nc", "--at", "2024-11-26T01:10")
    assert path.name == "forecast_20241126T0110Z.nc"


def test_rejects_invalid_arguments(model, frames, tmp_path, runs):
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    assert "give either FRAMES (radar files or folders) or --watch FOLDER" in error_of(model)
    assert "bad.h5 begins with" in error_of(model, tmp_path / "bad.h5")
    assert "neither a file nor a folder" in error_of(model, tmp_path / "none")
    assert "--pattern '*.gif'" in error_of(model, frames, "--pattern", "*.gif")
    assert "--at 'noon' is not a time" in error_of(model, frames, "--at", "noon")
    assert "--write png: choose nc or zarr" in error_of(model, frames, "--write", "png")
    assert "--overlap 20 is invalid for tiles of 32 x 32" in error_of(model, frames, "--overlap", 20)
    assert (
        "--tile 31 33 does not suit the model: the direct tiny takes heights and widths that are multiples of 2"
        in error_of(model, frames, "--tile", 31, 33)
    )
    assert "a tile has at least one pixel; it was trained on 32 x 32" in error_of(model, frames, "--tile", 0, 5)
    assert "is deterministic; give a run of stage diffusion, or of a network with noise" in error_of(
        model, frames, "--set", "members=2"
    )
    assert "is not a finished training run" in error_of(tmp_path, frames)
    for arguments in (
        [frames, "--any-spacing"],
        [frames / "3.h5"],
    ):  # one frame is too few, but the unit is checked first
        assert "no option converts between them" in error_of(runs / "student", *arguments)
    coarse = [write_odim(tmp_path / f"{k}.h5", storm(k), moment(k), spacing=2700.0) for k in range(3)]
    assert "pixels of 2.7 km and the model was trained on 1 km" in error_of(model, *coarse)


def test_rejects_pipeline_directory_and_names_finished_stages(model, frames, tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    stages = "{teacher: {}, student: {}, direct: {}, autoencoder: {}}"
    (folder / "config.yaml").write_text(f"name: p\nrun_dir: {folder}\nstages: {stages}\n")
    message = error_of(folder, frames)
    assert (
        "is the directory of a pipeline; none of its forecasting stages is finished: run `simcast pipeline`" in message
    )
    for name in ("student", "direct", "autoencoder"):
        shutil.copytree(model, folder / name)
    config = folder / "autoencoder" / "config.yaml"
    config.write_text(config.read_text().replace("stage: direct", "stage: autoencoder"))
    assert "stage: autoencoder" in config.read_text()
    stages = f"{folder}/student, {folder}/direct"
    message = f"{folder} is the directory of a pipeline; name one of its forecasting stages: {stages}"
    assert error_of(folder, frames) == message
    for load in (load_trained, load_run, lambda path: export_run(path, tmp_path / "out")):
        with pytest.raises(SimcastError) as error:
            load(folder)
        assert str(error.value) == message
    with (folder / "config.yaml").open("a") as file:
        file.write("of_another_version: 1\n")
    assert error_of(folder, frames) == message


@pytest.mark.parametrize("size", [0, 4096])
def test_full_disk_leaves_no_files(model, frames, tmp_path, size):
    with limited(size), pytest.raises(OSError, match="File too large"):
        predict(model, frames, "--out", tmp_path / "out", "--write", "nc")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_output_package_is_reported_before_the_forecast(model, frames, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "zarr" else name)
    message = error_of(model, frames, "--out", tmp_path / "out", "--write", "zarr")
    assert "needs zarr, which is not installed: pip install -c constraints.txt -e '.[io]'" in message
    assert "is not a finished training run" in error_of(tmp_path, frames, "--write", "zarr")
    assert "neither a file nor a folder" in error_of(model, tmp_path / "none", "--write", "zarr")
