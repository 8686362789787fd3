"""Ensembles of networks with noise inputs: members, seeds, files, tables, tiles; runs that are rejected."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import simcast_hpc as sc
from simcast_hpc.cli import app
from simcast_hpc.config import ConfigError, SamplingConfig
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.evaluation import run_entry
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.predictor import Predictor, noise_of_tile
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.inference.noise_ensemble import NoiseEnsemble, load_noise_ensemble
from simcast_hpc.inference.trained_ensemble import load_run
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import encoding_of_run
from simcast_hpc.radar.frame_encoding import EncodedFrame
from simcast_hpc.radar.radar_frame import RadarGrid
from tests.archives import random_codes
from tests.emulated_graphs import EmulatedGraph
from tests.generative_runs import write_noise_run

CODES = torch.from_numpy(random_codes(3, 3, missing=0.05, seed=4))


@pytest.fixture(scope="module", params=["extrapolation", "none"])
def run(request, root: Path, tmp_path_factory) -> Path:
    return write_noise_run(tmp_path_factory.mktemp("noise") / "direct", root, base=request.param)


@pytest.fixture(scope="module")
def ensemble(run: Path) -> NoiseEnsemble:
    return load_noise_ensemble(run)


def changed(ensemble: NoiseEnsemble, **values) -> NoiseEnsemble:
    return ensemble.sampled_by(ensemble.sampling.model_copy(update=values))


def test_members_differ_and_are_in_range(ensemble):
    members = ensemble.forecast(CODES, frames_out=4)
    assert members.shape == (3, 5, 4, 16, 16) and members.dtype == torch.float32
    assert members.min() >= 0 and members.max() <= 1
    spread = (members[:, :, None] - members[:, None]).abs().flatten(3).amax(-1) + torch.eye(5)
    assert spread.min() > 1e-3


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_chunk_size_does_not_change_members(ensemble, chunk):
    torch.testing.assert_close(
        changed(ensemble, chunk=chunk).forecast(CODES, frames_out=4),
        ensemble.forecast(CODES, frames_out=4),
        atol=1e-5,
        rtol=0,
    )


def test_member_is_independent_of_other_members_and_samples(ensemble):
    together = ensemble.forecast(CODES, frames_out=4)
    single = ensemble.members(CODES[1:2], [4, 0])
    torch.testing.assert_close(single[0], together[1, [4, 0]], atol=1e-5, rtol=0)
    more = changed(ensemble, members=7).forecast(CODES, frames_out=4)
    torch.testing.assert_close(more[:, :5], together, atol=1e-5, rtol=0)


def test_members_depend_on_the_seed(ensemble):
    base = ensemble.members(CODES[:1], [0])
    assert torch.equal(ensemble.members(CODES[:1], [0]), base)
    assert (changed(ensemble, seed=1).members(CODES[:1], [0]) - base).abs().max() > 1e-3


def test_member_is_one_pass_with_its_noise(ensemble):
    """Missing pixels are NaN to a network with a base forecast and 0 to others."""
    noise = ensemble.noise_of_domain(CODES[0], [3], grid=(16, 16))
    assert noise.shape == (1, 4, 2, 16, 16)
    missing = 0.0 if ensemble.config.model.base == "none" else torch.nan
    inputs = torch.where(CODES[:1] == 255, missing, CODES[:1].float() / 255)[:, :, None]
    want = ensemble.network(inputs, noise[None])[:, :, :, 0].clamp(0, 1)
    torch.testing.assert_close(ensemble.members(CODES[:1], [3]), want, atol=1e-6, rtol=0)


def test_float_frames_have_the_members_of_encoded_ones(ensemble):
    frames = torch.where(CODES == 255, torch.nan, CODES.float() / 255)
    torch.testing.assert_close(ensemble.members(frames, [1]), ensemble.members(CODES, [1]), atol=1e-6, rtol=0)


def test_cuda_graph_does_not_change_members(ensemble):
    chunked = changed(ensemble, chunk=4)
    want = chunked.forecast(CODES, frames_out=4)
    graphed = replace(chunked, graphs=GraphCache(capture=EmulatedGraph))  # pyright: ignore[reportArgumentType]
    before = EmulatedGraph.captures
    assert torch.equal(graphed.forecast(CODES, frames_out=4), want)
    assert EmulatedGraph.captures == before + 2, "chunks of four and of one member, each from its second call on"
    assert torch.equal(changed(graphed, cuda_graph=False).forecast(CODES, frames_out=4), want)


def test_a_run_with_noise_is_an_ensemble_and_no_deterministic_model(run, runs):
    ensemble = load_run(run, change_sampling=lambda own: own.model_copy(update={"members": 3}))
    assert isinstance(ensemble, NoiseEnsemble) and ensemble.sampling.members == 3
    with pytest.raises(ConfigError, match=r"is an ensemble \(model.noise_channels=2\)"):
        load_trained(run)
    with pytest.raises(ConfigError, match=r"is deterministic \(model.noise_channels=0\)"):
        load_noise_ensemble(runs / "student")
    with pytest.raises(ConfigError, match=r"sampling.steps=6 has no effect on the direct tiny, .*; set only members"):
        load_run(run, change_sampling=lambda own: SamplingConfig(steps=6))
    with pytest.raises(ConfigError, match="takes heights and widths that are multiples of 2, got 15 x 16"):
        ensemble.check_grid((15, 16))
    with pytest.raises(ValueError, match="the ensemble forecasts 4 frames, not 5"):
        ensemble.forecast(CODES, frames_out=5)


def test_entry_of_an_evaluation_names_members_and_parameters(ensemble):
    entry = run_entry("crps", ensemble)
    network = "SimVP" if ensemble.config.model.base == "none" else "SimVP + extrapolation"
    assert entry.note == f"5 members of direct, one pass per member; {network} with noise"
    assert entry.steps == 3 and entry.parameters == sum(one.numel() for one in ensemble.network.parameters())
    assert entry.forecast_windows([], CODES, frames_out=4).shape == (3, 5, 4, 16, 16)


def test_python_interface(run, ensemble):
    forecaster = sc.load(run, device="cpu")
    assert forecaster.members == 5
    members = forecaster.forecast(CODES.numpy(), lead_times=[2, 4], members=3)
    assert members.shape == (3, 3, 2, 16, 16)
    expected = ensemble.members(CODES, range(3))[:, :, [1, 3]]
    missing = (CODES == 255).any(dim=1)[:, None, None]  # in one of the input frames
    assert missing.any()
    np.testing.assert_allclose(members, np.where(missing, np.nan, expected), atol=1e-5)
    with pytest.raises(ValueError, match="beyond the ensemble's horizon; it has 1 to 4"):
        forecaster.forecast(CODES.numpy(), lead_times=5)


def test_sample_command_writes_the_members(run, ensemble, tmp_path):
    out = tmp_path / "members.h5"
    arguments = ["sample", str(run), "--out", str(out), "--split", "train", "--windows", "2", "--single", "--quiet"]
    done = CliRunner().invoke(app, [*arguments, "--set", "members=3"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    source = open_windows(ensemble.config.data, split="train", frames=7)
    codes = torch.from_numpy(np.stack([source.read(index)[:3] for index in range(2)]))
    with h5py.File(out) as file:
        assert "autoencoder" not in file.attrs and file.attrs["weights"] == ensemble.weights_hash
        np.testing.assert_allclose(file["forecast"][()], ensemble.members(codes, range(3)), atol=1e-5)
        np.testing.assert_allclose(file["mean"][()], file["forecast"][()].mean(1), atol=1e-6)


def test_predictor_of_one_tile_equals_the_members(ensemble, tmp_path):
    code = encoding_of_run(ensemble.config.data, any_spacing=True)
    codes = random_codes(1, 3, seed=7)[0]
    times = [datetime(2024, 11, 26, 1, tzinfo=UTC) + timedelta(minutes=5 * k) for k in range(3)]
    grid = RadarGrid("+proj=laea +lat_0=52 +lon_0=10", 0.0, 0.0, 8000.0, 8000.0, 16, 16)
    frames = {t: EncodedFrame(c, grid, "kg/m^2", t, tmp_path) for t, c in zip(times, codes, strict=True)}
    forecast = Predictor(ensemble, code, FrameRequest(3, 5.0), (16, 16), 4).predict(frames, times[-1])
    members = ensemble.forecast(torch.from_numpy(codes)[None], frames_out=4)[0].numpy()
    np.testing.assert_allclose(forecast.values, code.linear_of_forecast(members), rtol=1e-5, atol=1e-6)
    assert forecast.mean is not None and forecast.probability is not None
    assert "simcast_student_weights_sha256" not in forecast.provenance


def test_overlapping_tiles_share_their_noise(ensemble):
    noise = ensemble.noise_of_domain(torch.zeros(3, 4, 4, dtype=torch.uint8), [0, 1], grid=(32, 48))
    left, right = noise_of_tile(noise, (0, 0), (16, 16), 1), noise_of_tile(noise, (8, 10), (16, 16), 1)
    assert left.shape == right.shape == (2, 4, 2, 16, 16)
    assert torch.equal(left[..., 8:, 10:], right[..., :8, :6])
    assert (left[0] - left[1]).abs().max() > 1
