"""A trained model as a pysteps nowcast method: units, transforms, linear blending and STEPS blending."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import simcast_hpc as sc
from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import read_spec
from tests.archives import random_codes

pytest.importorskip("pysteps")

RAIN = "knmi"  # a data set in mm/h


@pytest.fixture(scope="module")
def persistence() -> sc.Forecaster:
    return sc.load("persistence", dataset=RAIN)


@pytest.fixture(scope="module")
def precip() -> np.ndarray:
    """Three fields of rain rates in mm/h, dry over half of the area."""
    codes = random_codes(1, 3, size=32, seed=4)[0]
    codes[..., :16] = 0
    return read_spec(RAIN).encoding.decode(codes).astype(np.float64)


def test_returns_the_unit_of_the_input(persistence: sc.Forecaster, precip: np.ndarray):
    method = sc.PystepsNowcast(persistence)
    nowcast, seconds = method(precip, None, 4, measure_time=True)
    assert nowcast.shape == (4, 32, 32) and seconds > 0
    np.testing.assert_allclose(nowcast[3], precip[-1], rtol=1e-4)
    np.testing.assert_array_equal(method(precip, None, [2, 4]), nowcast[[1, 3]])


def test_decibel_transform_keeps_the_zero_value(persistence: sc.Forecaster, precip: np.ndarray):
    decibel = np.where(precip >= 0.1, 10 * np.log10(np.maximum(precip, 0.1)), -15.0)
    nowcast = sc.PystepsNowcast(persistence, transform="dB")(decibel, None, 2)
    np.testing.assert_allclose(nowcast[1], decibel[-1], atol=1e-3)
    assert (nowcast[:, :, :16] == -15.0).all()


def test_masked_and_infinite_pixels_are_missing_and_dry(persistence: sc.Forecaster, precip: np.ndarray):
    method = sc.PystepsNowcast(persistence)
    integers = np.ma.masked_greater(precip.astype(int), 20)
    np.testing.assert_array_equal(method(integers, None, 1), method(integers.astype(float).filled(np.nan), None, 1))
    with np.errstate(divide="ignore"):
        decibel = 10 * np.log10(precip)
    external = sc.PystepsNowcast(persistence, transform="dB").external_nowcast(decibel, 1)
    assert (external[:, :, :, :16] == -15.0).all() and np.isfinite(external).all()
    decibel[:, :4] = np.nan  # outside of the radar coverage
    method = sc.PystepsNowcast(persistence, transform="dB")
    nowcast, external = method(decibel, None, 1), method.external_nowcast(decibel, 1)
    assert np.isnan(nowcast[:, :4]).all() and np.isfinite(nowcast[:, 4:]).all(), "missing is not dry"
    assert (external[:, :, :4] == -15.0).all() and np.isfinite(external).all()


def test_reflectivity_uses_the_marshall_palmer_relation(persistence, precip: np.ndarray):
    reflectivity = 10 * np.log10(200 * np.maximum(precip, 0.02) ** 1.6)
    nowcast = sc.PystepsNowcast(persistence, unit="dBZ")(reflectivity, None, 1)
    wet = precip[-1] > 1
    np.testing.assert_allclose(nowcast[0][wet], reflectivity[-1][wet], atol=0.2)  # within one code
    assert np.isfinite(nowcast).all()


def test_rejects_invalid_units_time_steps_and_shapes(persistence: sc.Forecaster, precip: np.ndarray):
    with pytest.raises(ConfigError, match=r"unit='kg/m\^2' cannot be converted to 'mm/h'"):
        sc.PystepsNowcast(persistence, unit="kg/m^2")
    with pytest.raises(ConfigError, match="transform='dB' does not apply to unit='dBZ'"):
        sc.PystepsNowcast(persistence, unit="dBZ", transform="dB")
    for options in ({"threshold": 0.0}, {"threshold": np.nan}, {"zerovalue": np.nan}, {"zerovalue": 5.0}):
        with pytest.raises(ConfigError, match=r"zerovalue=.* threshold=|threshold=.* zerovalue="):
            sc.PystepsNowcast(persistence, transform="dB", **options)
    with pytest.raises(TypeError, match="forecaster='persistence' is not a forecaster"):
        sc.PystepsNowcast("persistence")  # type: ignore[arg-type]
    method = sc.PystepsNowcast(persistence)
    with pytest.raises(ValueError, match="name='SimCast' must be text in lower case"):
        method.register("SimCast")
    with pytest.raises(ValueError, match=r"timestep=nan min"):
        method(precip, None, 2, timestep=np.nan)
    with pytest.raises(ValueError, match="plus infinity"):
        method(np.where(precip > 3, np.inf, precip), None, 2)
    with pytest.raises(ValueError, match="timestep=10 min, but the model's step is 5 min"):
        method(precip, None, 2, timestep=10)
    with pytest.raises(ValueError, match="whole steps"):
        method(precip, None, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"precip has shape \(32, 32\)"):
        method(precip[-1], None, 2)


def test_pysteps_linear_blending_finds_it_by_name(persistence: sc.Forecaster, precip: np.ndarray):
    from pysteps import blending

    sc.PystepsNowcast(persistence).register("simcast-test")
    metadata = {"unit": "mm/h", "transform": None, "threshold": 0.1, "zerovalue": 0.0, "accutime": 5}
    model = np.full((6, 32, 32), 2.0)
    blended = blending.linear_blending.forecast(
        precip, metadata, np.zeros((2, 32, 32)), 6, 5, "simcast-test", model, metadata,
        start_blending=10, end_blending=20,
    )  # fmt: skip
    np.testing.assert_allclose(blended[0], precip[-1], rtol=1e-4)  # 5 min: the nowcast only
    np.testing.assert_allclose(blended[-1], 2.0)  # 30 min: the model only
    np.testing.assert_allclose(blended[2], (precip[-1] + 2.0) / 2, rtol=1e-4)  # 15 min: half of each
    with pytest.raises(ValueError, match="pysteps has a nowcast method 'steps'"):
        sc.PystepsNowcast(persistence).register("steps")


def test_pysteps_steps_blending_accepts_external_nowcast(runs: Path, tmp_path: Path):
    """The STEPS blending of pysteps accepts the forecast of a trained model as its external nowcast."""
    from pysteps import blending

    student = sc.load(runs / "student", device="cpu")  # synthetic VIL
    rng = np.random.default_rng(0)
    smooth = rng.gamma(0.5, 2.0, (3, 16, 16)).repeat(4, axis=-1).repeat(4, axis=-2)
    method = sc.PystepsNowcast(student, unit="kg/m^2", transform="dB")
    decibel = np.where(smooth >= 0.1, 10 * np.log10(np.maximum(smooth, 0.1)), -15.0)
    external = method.external_nowcast(decibel, 2)
    assert external.shape == (1, 3, 64, 64)
    np.testing.assert_array_equal(external[0, 0], decibel[-1])
    np.testing.assert_array_equal(external[0, 1:], method(decibel, None, 2))
    blended = blending.steps.forecast(
        precip=decibel, precip_models=np.repeat(decibel[-1:][None], 3, axis=1), precip_nowcast=external,
        nowcasting_method="external_nowcast", velocity=np.zeros((2, 64, 64)),
        velocity_models=np.zeros((1, 3, 2, 64, 64)), timesteps=2, timestep=5, issuetime=datetime(2024, 6, 1),
        n_ens_members=1, n_cascade_levels=4, precip_thr=-10.0, kmperpixel=1.0, noise_method=None, seed=1,
        vel_pert_method=None, mask_method=None, probmatching_method=None, outdir_path_skill=str(tmp_path),
    )  # fmt: skip
    assert blended.shape == (1, 2, 64, 64) and np.isfinite(blended).all()
