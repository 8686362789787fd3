"""Quantile mapping and probability matching: hand-computed values, NumPy's quantiles, pysteps, and the fitted split."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.data.encoding import Decibel, Linear, SevirVil
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.ranks import SingleRank
from simcast_hpc.inference import calibration
from simcast_hpc.inference.calibration import calibrate_run, fit_quantile_mapping, is_calibrated
from simcast_hpc.inference.postprocessing import (
    load_postprocessing,
    load_quantile_mapping,
    model_identity,
    no_echo_limit,
)
from simcast_hpc.inference.probability_matching import ProbabilityMatching
from simcast_hpc.inference.quantile_mapping import (
    BINS,
    BINS_PER_CODE,
    FILE_NAME,
    QuantileMapping,
    forecast_bins,
    observed_codes,
)
from simcast_hpc.inference.trained_ensemble import load_run
from tests.archives import tiny_config, write_trained

HALF_CODE = 0.5 / 255


def mapping_of(forecast: np.ndarray, observed: np.ndarray, *, no_echo: float = HALF_CODE) -> QuantileMapping:
    """Return the mapping from floats in [0, 1] ``[T', N]`` to encoded values ``[T', N]``, 255 missing."""
    valid = torch.from_numpy(observed != 255)
    bins = [forecast_bins(torch.from_numpy(row), known) for row, known in zip(forecast, valid, strict=True)]
    codes = [observed_codes(torch.from_numpy(row), known) for row, known in zip(observed, valid, strict=True)]
    return QuantileMapping(torch.stack(bins).numpy(), torch.stack(codes).numpy(), no_echo)


def apply(mapping: QuantileMapping, values: np.ndarray) -> np.ndarray:
    """Return mapped encoded values of encoded values ``[T', N]``, not rounded."""
    fields = torch.from_numpy(np.asarray(values, dtype=np.float32) / np.float32(255))[None, :, :, None]
    return mapping.apply(fields)[0, :, :, 0].numpy() * 255


def test_equal_distributions_are_not_changed():
    codes = np.random.default_rng(0).gamma(0.5, 40, (2, 40_000)).clip(0, 254).round().astype(np.uint8)
    mapping = mapping_of((codes / np.float32(255)).astype(np.float32), codes)
    np.testing.assert_allclose(apply(mapping, codes), codes, atol=1e-3)
    between = np.linspace(1, 200, 331)  # values that no pixel has
    np.testing.assert_allclose(apply(mapping, np.stack([between, between])), np.stack([between, between]), atol=0.6)


def test_small_discrete_distribution():
    """Half of the pixels 0, then 30 % and 20 %: 10 -> 40 and 20 -> 100; linear between; 25 -> 105, at most 100."""
    forecast = np.repeat([0, 10, 20], [5000, 3000, 2000])
    observed = np.repeat([0, 40, 100], [5000, 3000, 2000]).astype(np.uint8)
    mapping = mapping_of((forecast[None] / np.float32(255)).astype(np.float32), observed[None])
    np.testing.assert_allclose(
        apply(mapping, np.array([[0, 5, 10, 15, 20, 25, 254]])), [[0, 20, 40, 70, 100, 100, 100]], atol=1e-3
    )


def test_constant_difference_in_the_tail_is_bounded_by_the_highest_observation():
    """Of 100,000 pixels the highest 100 begin above 10 -> 30: 12 -> 32, 60 -> 80, and at most the 90 of one pixel."""
    forecast = np.repeat([0, 10, 50], [90_000, 9_990, 10])
    observed = np.repeat([0, 30, 90], [90_000, 9_999, 1]).astype(np.uint8)
    mapping = mapping_of((forecast[None] / np.float32(255)).astype(np.float32), observed[None])
    np.testing.assert_allclose(apply(mapping, np.array([[10, 12, 60, 75, 254]])), [[30, 32, 80, 90, 90]], atol=1e-3)


def test_quantiles_equal_those_of_numpy():
    generator = np.random.default_rng(1)
    forecast = (generator.gamma(2.0, 12, 200_000).clip(0, 254) / 255).astype(np.float32)
    truth = generator.gamma(1.0, 40, 200_000).clip(0, 254)
    mapping = mapping_of(forecast[None], truth.round().astype(np.uint8)[None])
    levels = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
    mapped = apply(mapping, np.quantile(forecast.astype(np.float64), levels)[None] * 255)[0]
    np.testing.assert_allclose(mapped, np.quantile(truth, levels), atol=0.6, rtol=0.01)
    everywhere = apply(mapping, np.linspace(0, 255, 5000)[None])[0]
    assert (np.diff(everywhere) >= 0).all() and everywhere[0] == 0 and everywhere.max() <= truth.round().max()
    matched = apply(mapping, forecast[None] * 255)[0]
    np.testing.assert_allclose(np.sort(matched)[::997], np.sort(truth)[::997], atol=0.6, rtol=0.02)


def test_each_lead_time_and_member_has_its_mapping_and_missing_pixels_do_not_count():
    forecast = np.repeat([[0, 10], [0, 20]], [4000, 2000], axis=1) / np.float32(255)
    observed = np.repeat([[0, 30], [0, 80]], [4000, 2000], axis=1).astype(np.uint8)
    masked = np.concatenate([observed, np.full((2, 3000), 255, np.uint8)], axis=1)
    noise = np.random.default_rng(0).random((2, 3000), dtype=np.float32)
    mapping = mapping_of(np.concatenate([forecast, noise], axis=1).astype(np.float32), masked)
    np.testing.assert_allclose(apply(mapping, np.array([[10], [20]])), [[30], [80]], atol=1e-3)
    members = torch.tensor([[10.0, 20.0], [0.0, float("nan")]])[None, :, :, None, None] / 255  # [1, M, T', 1, 1]
    np.testing.assert_allclose(mapping.apply(members)[0, :, :, 0, 0] * 255, [[30, 80], [0, np.nan]], atol=1e-3)
    assert mapping.apply(members[:, :, :1]).shape == (1, 2, 1, 1, 1)
    with pytest.raises(ConfigError, match="has 2 lead times, the forecast 3; choose at most 2"):
        mapping.apply(torch.zeros(1, 3, 4, 4))


def test_no_echo_is_not_increased():
    """Observed rain is four times as frequent as in the forecast; the area without echo is kept."""
    forecast = np.repeat([0, 3, 10], [8000, 1000, 1000]) / np.float32(255)
    observed = np.repeat([0, 60], [2000, 8000]).astype(np.uint8)
    mapping = mapping_of(forecast[None].astype(np.float32), observed[None], no_echo=5.5 / 255)
    np.testing.assert_allclose(apply(mapping, np.array([[0, 3, 5.4]])), [[0, 3, 5.4]], atol=1e-3)
    assert apply(mapping, np.array([[10]]))[0, 0] == pytest.approx(60)
    assert no_echo_limit(SevirVil()) == 5.5 / 255
    assert no_echo_limit(Linear(unit="dBZ", gain=0.5, offset=-32.0, zero_is_no_echo=True)) == HALF_CODE
    assert no_echo_limit(Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, floor=0.2)) == 21.5 / 255


def test_rejects_too_few_pixels_with_echo():
    forecast, observed = np.full((2, 2000), 0.2, np.float32), np.full((2, 2000), 30, np.uint8)
    observed[1, 400:] = 0
    with pytest.raises(ConfigError, match="have 2000 in the forecasts and 400 in the observations at lead time 2"):
        mapping_of(forecast, observed)


def test_positions_are_the_inverse_of_values():
    for encoding in (SevirVil(), Linear(unit="dBZ", gain=0.5, offset=-32.0, zero_is_no_echo=True),
                     Linear(unit="dBZ", gain=0.5, offset=-32.0),
                     Decibel(unit="mm/h", offset_db=-10.0, step_db=0.15, floor=0.2)):  # fmt: skip
        positions = np.linspace(encoding.first_echo, 254, 999)
        np.testing.assert_allclose(encoding.position_of(encoding.value_of(positions)), positions, atol=1e-9)
        assert encoding.position_of(encoding.value_of(np.array([0.0])))[0] == 0
        assert np.isnan(encoding.position_of(np.array([np.nan]))[0]) and encoding.position_of(np.array([1e9]))[0] == 254


def test_probability_matching_by_hand():
    frames = torch.zeros(1, 2, 2, 4, dtype=torch.uint8)
    frames[0, 1] = torch.tensor([[255, 200, 0, 0], [50, 100, 0, 0]])
    forecast = torch.tensor([[0.9, 0.1, 0.3, 0.0], [0.2, 0.0, 0.4, 0.0]])[None, None]
    matched = ProbabilityMatching(HALF_CODE).apply(forecast, frames)
    # Sorted last frame 200 100 50 0 0 0 0 for forecasts .4 .3 .2 .1 0 0 0; the missing pixel keeps its forecast.
    expected = torch.tensor([[0.9 * 255, 0, 100, 0], [50, 0, 200, 0]]) / 255
    torch.testing.assert_close(matched[0, 0], expected)
    members = torch.stack([forecast, forecast.flip(-1)], dim=1).expand(1, 2, 3, 2, 4)
    assert ProbabilityMatching(HALF_CODE).apply(members, frames).shape == members.shape
    torch.testing.assert_close(ProbabilityMatching(HALF_CODE).apply(members, frames)[0, 0, 2], expected)
    all_missing = torch.full_like(frames, 255)
    torch.testing.assert_close(ProbabilityMatching(HALF_CODE).apply(forecast, all_missing), forecast)


@pytest.mark.parametrize("wet", [0.2, 0.7])
def test_probability_matching_equals_pysteps(wet: float):
    """With more and with fewer echoes in the forecast than in the last frame."""
    pysteps = pytest.importorskip("pysteps.postprocessing.probmatching")
    generator = np.random.default_rng(2)
    last = np.where(generator.random((1, 24, 24)) < 0.4, generator.integers(1, 255, (1, 24, 24)), 0).astype(np.uint8)
    forecast = np.where(generator.random((24, 24)) < wet, 0.01 + 0.9 * generator.random((24, 24)), 0.0)
    expected = pysteps.nonparam_match_empirical_cdf(forecast.astype(np.float32), last[0] / 255)
    matched = ProbabilityMatching(HALF_CODE).apply(
        torch.from_numpy(forecast).float()[None, None], torch.from_numpy(last)[None]
    )
    # Unlike pysteps, which removes values below a percentile, all ranks are used: the lowest echo may differ.
    different = np.abs(matched[0, 0].numpy() - expected) > 1e-6
    assert different.sum() <= 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of random weights on an archive of storms, for which the split val has enough echo."""
    folder = tmp_path_factory.mktemp("calibration")
    write_archive(folder / "storms", seed=5, events={"train": 2, "val": 3, "test": 2}, size=32, frames_per_event=12)
    torch.manual_seed(0)
    data = {"dataset": "synthetic", "root": str(folder / "storms"), "window_stride": 2}
    return write_trained(tiny_config(folder / "student", data=data))


class _Biased:
    """A stand-in for a trained network: half of the last frame's encoded values."""

    def __init__(self, run: Path):
        model = load_run(run)
        self.config, self.weights_hash = model.config, model.weights_hash

    def forecast(self, codes: torch.Tensor, *, frames_out: int) -> torch.Tensor:
        last = torch.where(codes[:, -1:] == 255, 0, codes[:, -1:] // 2)
        return last.expand(-1, frames_out, -1, -1) / 255.0


def test_fit_opens_only_the_validation_split(run: Path, monkeypatch):
    opened, open_windows = [], calibration.open_windows
    monkeypatch.setattr(calibration, "open_windows", lambda *a, **k: opened.append(k["split"]) or open_windows(*a, **k))
    model = _Biased(run)
    mapping = fit_quantile_mapping(model, model.config.data, model.config.sequence)
    assert opened == ["val"]
    source = open_windows(model.config.data, split="val", frames=7)
    windows = torch.from_numpy(np.stack([source.read(k) for k in range(len(source))]))
    past, observed = windows[:, :3], windows[:, 3:]
    assert mapping.identity["windows"] == len(source) and mapping.identity["data"] == source.fingerprint
    for lead in range(4):
        valid = (observed[:, lead] != 255).numpy()
        np.testing.assert_array_equal(
            mapping.observed[lead], np.bincount(observed[:, lead].numpy()[valid], minlength=255)
        )
        halved = np.where(past[:, -1] == 255, 0, past[:, -1] // 2)[valid]
        np.testing.assert_array_equal(mapping.forecast[lead][::BINS_PER_CODE], np.bincount(halved, minlength=256))
        assert mapping.forecast[lead].sum() == valid.sum()
    few = fit_quantile_mapping(model, model.config.data, model.config.sequence, windows=4, batch_size=1)
    assert few.identity["windows"] == 4 and few.observed.sum() < mapping.observed.sum()


class _OneOfTwo(SingleRank):
    """One of two ranks that run one after the other: each gathers its counts and those of the other, if known."""

    size = 2

    def __init__(self, rank: int, other: Any = None):
        self.rank, self.other, self.own = rank, other, None

    @contextmanager
    def together(self) -> Iterator[None]:
        yield

    def gather(self, thing: Any) -> list[Any]:
        self.own = thing
        return [thing, self.other or thing]

    gather_on_first = gather

    def broadcast(self, thing: Any) -> Any:
        return thing


def test_ranks_and_batches_do_not_change_the_counts(run: Path):
    model = _Biased(run)
    first = _OneOfTwo(0)
    fit_quantile_mapping(model, model.config.data, model.config.sequence, ranks=first)
    both = fit_quantile_mapping(
        model, model.config.data, model.config.sequence, ranks=_OneOfTwo(1, first.own), batch_size=1
    )
    single = fit_quantile_mapping(model, model.config.data, model.config.sequence, batch_size=3)
    np.testing.assert_array_equal(both.forecast, single.forecast)
    np.testing.assert_array_equal(both.observed, single.observed)


def test_mapping_is_stored_with_its_run_and_rejected_for_another(run: Path):
    model = load_run(run)
    with pytest.raises(ConfigError, match=r"quantile_mapping\.npz does not exist; run `simcast calibrate"):
        load_postprocessing("quantile-mapping", run, model)
    biased = _Biased(run)
    assert not is_calibrated(run, biased, model.config.data)
    path = calibrate_run(run, biased, model.config.data)
    mapping = load_quantile_mapping(run, model)
    np.testing.assert_array_equal(
        mapping.forecast, fit_quantile_mapping(biased, model.config.data, model.config.sequence).forecast
    )
    assert is_calibrated(run, model, model.config.data)
    biased.weights_hash = "f" * 64
    calibrate_run(run, biased, model.config.data)
    with pytest.raises(ConfigError, match=r"was fitted with weights=ffffffffffff, but the model has [0-9a-f]{12}"):
        load_postprocessing("quantile-mapping", run, model)
    assert not is_calibrated(run, model, model.config.data)
    path.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="damaged or not an npz file"):
        load_quantile_mapping(run, model)
    np.savez(path, forecast=np.zeros((4, BINS)), observed=np.zeros((4, 255)), no_echo=0.1, identity='{"version": 1}')
    with pytest.raises(ConfigError, match="is no quantile mapping of this version"):
        load_quantile_mapping(run, model)
    path.unlink()
    with pytest.raises(ConfigError, match="postprocess 'cdf' is unknown; choose none, quantile-mapping or"):
        load_postprocessing("cdf", run, model)
    assert load_postprocessing("none", run, model) is None


def test_sampling_settings_belong_to_the_identity(runs: Path):
    ensemble = load_run(runs / "diffusion")
    observed = np.zeros((4, 255), np.int64)
    observed[:, 9] = 2000
    forecast = np.zeros((4, BINS), np.int64)
    forecast[:, 30] = 2000
    QuantileMapping(forecast, observed, HALF_CODE, model_identity(ensemble)).save(runs / "diffusion" / FILE_NAME)
    try:
        more = ensemble.sampled_by(ensemble.sampling.model_copy(update={"members": 2}))
        assert load_quantile_mapping(runs / "diffusion", more).leads == 4
        other = ensemble.sampled_by(ensemble.sampling.model_copy(update={"steps": 2}))
        with pytest.raises(ConfigError, match=r"fitted with sampling\.steps=4, but the model has 2"):
            load_quantile_mapping(runs / "diffusion", other)
        # 2. A field that older mappings lack, in both directions
        assert "sampling.order" not in model_identity(ensemble)
        solvers = [
            ensemble.sampled_by(ensemble.sampling.model_copy(update={"sampler": "dpm_solver", "order": order}))
            for order in (2, 3)
        ]
        for fitted, used, message in (
            (*solvers, "order=default, but the model has 3"),
            (*solvers[::-1], "order=3, but the model has default"),
        ):
            path = runs / "diffusion" / FILE_NAME
            QuantileMapping(forecast, observed, HALF_CODE, model_identity(fitted)).save(path)
            with pytest.raises(ConfigError, match=message):
                load_quantile_mapping(runs / "diffusion", used)
    finally:
        (runs / "diffusion" / FILE_NAME).unlink()
