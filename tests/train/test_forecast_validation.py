"""Validation of forecasts: scores and loss equal a direct computation in float64, at any number of ranks."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcast_hpc.baselines import load_baseline
from simcast_hpc.config import ConfigError
from simcast_hpc.data import open_windows as opening
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.models import build_model
from simcast_hpc.train import forecast_validation, trainer, validation
from simcast_hpc.train.forecast_validation import ForecastValidation, higher_is_better
from tests.archives import Row, make_archive, random_codes, tiny_config, write_trained
from tests.generative_runs import OneRank

RANKS: Any = OneRank()
_DATES = ("2018-06-01", "2018-07-01", *("2019-02-01",) * 3, *("2019-07-01",) * 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    rows = [Row(f"E{number}", number, time_utc=f"{date} 12:00:00") for number, date in enumerate(_DATES)]
    return make_archive(tmp_path_factory.mktemp("archive"), random_codes(len(rows), 11, missing=0.01), rows=rows)


def _plan(run_dir: Path, root: Path, **over: Any) -> trainer.Plan:
    data = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}
    section = {"windows": 4} | over.pop("validation", {})
    return trainer.plan(tiny_config(run_dir, **{"data": data, "validation": section} | over))


def _prepared(run_dir: Path, root: Path, **over: Any) -> tuple[ForecastValidation, dict[str, torch.Tensor]]:
    """Return a prepared validation and random weights."""
    checked = _plan(run_dir, root, **over).validation
    assert isinstance(checked, ForecastValidation)
    checked.prepare(RANKS)
    config = checked.config
    torch.manual_seed(3)
    network = build_model(config.model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)
    return checked, network.state_dict()


def test_one_input_frame_has_no_extrapolation(tmp_path, root):
    sequence = {"frames_in": 1, "frames_out": 4, "teacher_frames_out": 2}
    checked, weights = _prepared(tmp_path / "run", root, sequence=sequence)
    assert set(checked.baselines) == {"persistence"} and "csi/mean" in checked.scores(weights, RANKS)


def _csi(forecast: np.ndarray, observed: np.ndarray, threshold: float) -> float:
    """Return the CSI of codes, counted pixel by pixel; 255 is missing."""
    valid = observed != 255
    hit, miss, false = (
        int((valid & a & b).sum())
        for a, b in (
            (forecast >= threshold, observed >= threshold),
            (forecast < threshold, observed >= threshold),
            (forecast >= threshold, observed < threshold),
        )
    )
    return hit / (hit + miss + false)


@pytest.mark.parametrize("stage", ["direct", "teacher"])
def test_scores_and_loss_equal_those_of_the_forecasts(root, tmp_path, stage):
    """The teacher is scored on its rollout to the long horizon; its loss is that of the short one."""
    checked, weights = _prepared(tmp_path / "run", root, stage=stage, loss={"thresholds": [], "weights": [1.0]})
    source = open_windows(checked.config.data, split="val", frames=7)
    assert (len(source), checked.indices) == (9, [0, 2, 4, 6])
    windows = np.stack([source.read(index) for index in checked.indices])
    network = build_model(checked.config.model, frames_in=3, frames_out=checked.config.frames_out)
    network.load_state_dict(weights)
    model = TrainedModel(network.eval(), checked.config, "")
    forecast = model.forecast(torch.from_numpy(windows[:, :3]), frames_out=4).double().numpy()
    observed, valid = windows[:, 3:], windows[:, 3:] != 255
    scores = checked.scores(weights, RANKS)
    error = (forecast - observed / 255)[valid]
    assert scores["mse"] == pytest.approx((error**2).mean(), rel=1e-6)
    assert scores["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    codes = forecast.astype(np.float32) * 255
    thresholds = target_spec(checked.config.data).threshold_codes()
    often = [threshold for threshold in thresholds if (valid & (observed >= threshold)).sum() >= 1000]
    assert len(often) == len(thresholds) - 1, "219 is too rare for a mean"
    expected = [_csi(codes, observed, threshold) for threshold in often]
    assert scores["csi/mean"] == pytest.approx(np.mean(expected), abs=1e-6)
    with torch.no_grad():
        raw = network(torch.from_numpy(np.where(windows[:, :3] == 255, 0, windows[:, :3] / 255)).float()[:, :, None])
    within = slice(0, checked.config.frames_out)
    raw_error = raw[:, :, 0].double().numpy() - observed[:, within] / 255
    squared = np.where(valid[:, within], raw_error**2, 0)
    assert scores["loss"] == pytest.approx(squared.mean(), rel=1e-5)
    for name in ("persistence", "extrapolation"):
        baseline = load_baseline(name, target_spec(checked.config.data).encoding)
        error = baseline.forecast(torch.from_numpy(windows[:, :3]), frames_out=4).double().numpy() - observed / 255
        assert checked.baselines[name]["mse"] == pytest.approx((error[valid] ** 2).mean(), rel=1e-5)


class _ThreadRanks(OneRank):
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, shared: list[Any]):
        self.rank, self.size, self._barrier, self._shared = rank, size, barrier, shared

    def gather(self, thing: Any) -> list[Any]:
        self._shared[self.rank] = thing
        self._barrier.wait()
        things = list(self._shared)
        self._barrier.wait()
        return things

    def broadcast(self, thing: Any) -> Any:
        return self.gather(thing)[0]


@pytest.mark.parametrize("size", [2, 5])
def test_scores_are_bitwise_independent_of_the_number_of_ranks(root, tmp_path, size):
    single, weights = _prepared(tmp_path / "run", root)
    expected = single.scores(weights, RANKS)
    barrier, shared = threading.Barrier(size), [None] * size
    found: list[Any] = [None] * size
    checks = [_plan(tmp_path / "run", root).validation for _ in range(size)]

    def work(rank: int) -> None:
        ranks: Any = _ThreadRanks(rank, size, barrier, shared)
        check = checks[rank]
        assert check is not None
        check.prepare(ranks)
        found[rank] = check.scores(weights, ranks), check.baselines

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [(expected, single.baselines)] * size


def test_torch_generators_are_unchanged_and_scores_repeat(root, tmp_path):
    checked, weights = _prepared(tmp_path / "run", root)
    state = torch.get_rng_state()
    scores = checked.scores(weights, RANKS)
    assert checked.scores(weights, RANKS) == scores
    assert torch.equal(torch.get_rng_state(), state)
    assert checked.scores({name: 1.5 * tensor for name, tensor in weights.items()}, RANKS)["mse"] != scores["mse"]


@pytest.mark.parametrize("noise", [0, 2])
def test_only_the_splits_train_and_val_are_opened(root, tmp_path, monkeypatch, noise):
    """Also with noise inputs, whose ensembles are scored."""
    opened: list[str] = []

    def spy(config: Any, *, split: Any, frames: int) -> Any:
        opened.append(split)
        return open_windows(config, split=split, frames=frames)

    for module in (opening, trainer, validation):
        monkeypatch.setattr(module, "open_windows", spy, raising=False)
    model = {"hidden_spatial": 4, "hidden_temporal": 8, "temporal_blocks": 2, "groups": 2, "noise_channels": noise}
    loss = {"crps_weight": 1.0, "mse_weight": 0.0} if noise else {}
    sampling = {"sampling": {"members": 3}} if noise else {}
    checked, weights = _prepared(tmp_path / "run", root, model=model, loss=loss, **sampling)
    scores = checked.scores(weights, RANKS)
    assert set(opened) == {"train", "val"}
    assert {checked.source.key(index).event for index in range(len(checked.source))} == {"E2", "E3", "E4"}
    assert ("crps" in scores) == bool(noise) and "loss" in scores
    members = " (sampling.members=3, sampling.seed=0)" if noise else ""
    assert checked.fingerprint == checked.source.fingerprint + members, "scores of other members do not compare"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"score": "csi/men"},
            r"validation\.score='csi/men' is invalid; did you mean 'csi/mean'.* choose from loss, csi",
        ),
        ({"score": "frequency_bias/mean"}, r"'frequency_bias/mean' is invalid"),
        (
            {"protocol": "globl"},
            r"validation\.protocol: unknown verification protocol 'globl'; did you mean 'global'\?",
        ),
        ({"protocol": "hko7"}, r"validation\.protocol: hko7 requires data in dBZ"),
    ],
)
def test_rejects_scores_and_protocols_before_any_device(root, tmp_path, section, message):
    with pytest.raises(ConfigError, match=message):
        _plan(tmp_path / "run", root, validation=section)


def test_rejects_data_without_a_validation_split(tmp_path):
    root = make_archive(tmp_path / "archive", random_codes(2, 11))
    message = r"split 'val' .*set validation\.every_steps=0 and validation\.export=last"
    with pytest.raises(ConfigError, match=message):
        _plan(tmp_path / "run", root)
    assert _plan(tmp_path / "run", root, validation={"every_steps": 0, "export": "last"}).validation is None


def test_rejects_a_score_that_is_undefined_on_the_windows(tmp_path):
    rows = [Row(f"E{n}", n, time_utc=f"{date} 12:00:00") for n, date in enumerate(("2018-06-01", "2019-02-01"))]
    root = make_archive(tmp_path / "archive", np.minimum(random_codes(2, 11), 100), rows=rows)
    with pytest.raises(ConfigError, match=r"csi/219 is undefined on the 3 .* observed: 16, 74;"):
        _prepared(tmp_path / "run", root, validation={"score": "csi/219"})
    checked, weights = _prepared(tmp_path / "run", root)
    scores = checked.scores(weights, RANKS)
    observed = [scores[f"csi/{label}"] for label in ("16", "74")]
    assert scores["csi/mean"] == pytest.approx(np.mean(observed)), "the mean is over the observed thresholds"


def test_a_network_for_cropped_frames_is_validated_on_the_center(root, tmp_path):
    model = {
        "kind": "earthformer", "width": 8, "heads": 1,
        "stem": {"widths": [8], "scales": [2], "convolutions": [1]},
    }  # fmt: skip
    data = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None, "crop": 8}
    checked, weights = _prepared(tmp_path / "run", root, data=data, model=model)
    seen: list[torch.Tensor] = []
    checked._model.network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    checked.scores(weights, RANKS)
    expected = torch.from_numpy(np.asarray(checked.source.read(0)))[:3, 4:12, 4:12].float() / 255
    assert torch.equal(seen[0][0, :, 0], torch.where(expected == 1, 0.0, expected))


def test_runs_of_earlier_versions_keep_their_identity(root, tmp_path):
    """At its defaults, section validation is not part of the identity; any other value is."""
    run = write_trained(tiny_config(tmp_path / "old", validation={}))
    assert not any(key.startswith("validation") for key in tiny_config(run, validation={}).science())
    assert tiny_config(run, validation={"score": "mse"}).science()["validation.score"] == "mse"


def test_directions_of_scores():
    assert [higher_is_better(score) for score in ("csi/mean", "csi_pool4/219", "ssim", "psnr")] == [True] * 4
    assert [higher_is_better(score) for score in ("loss", "mse", "far/16", "crps")] == [False] * 4
    assert forecast_validation.is_higher_better("frequency_bias/16") is None
