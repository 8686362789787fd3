"""Windows and crops drawn by rain: exact shares, independent of ranks, workers and resuming."""

from itertools import islice

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError, DataConfig, DataError, ImportanceSamplingConfig, from_mapping
from simcast_hpc.data.crop_positions import CropPositions
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.importance_sampling import mean_rates, probabilities, training_order, window_means
from simcast_hpc.data.loader import micro_batches
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.sample_order import SampleOrder
from simcast_hpc.data.sampling_statistics import STATISTICS, EventStatistics
from simcast_hpc.train.trainer import plan
from tests.archives import make_archive, random_codes, tiny_config
from tests.data.shards import prepared

IMPORTANCE = {"kind": "importance", "minimum_probability": 0.01, "mean_weight": 0.5, "saturation": 2.0}


def _codes(events: int = 6) -> np.ndarray:
    """Return events ``[N, 11, 16, 16]``: dry, except that every third one has rain in its upper left quarter."""
    codes = np.zeros((events, 11, 16, 16), np.uint8)
    codes[::3, :, :8, :8] = random_codes(1, 11, size=8)[0]
    codes[1, 7] = 255
    return codes


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    archive = make_archive(folder / "archive", _codes())
    return archive, prepared(archive, folder / "shards")


def _data(root, **over) -> DataConfig:
    fields = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "sampling": IMPORTANCE}
    return from_mapping(DataConfig, fields | {"max_percent_missing": None} | over)


def test_probability_of_a_window():
    config = ImportanceSamplingConfig(kind="importance", minimum_probability=1e-4, mean_weight=0.1, saturation=1.0)
    rate = np.array([0.0, 0.5, 1e9, np.nan])
    expected = [1e-4, 1e-4 + 0.1 * (1 - np.exp(-0.5)), 0.1001, 0.0]
    np.testing.assert_allclose(probabilities(rate, config), expected, rtol=1e-12)
    assert probabilities(np.array([50.0]), config.model_copy(update={"mean_weight": 1.0}))[0] == 1.0


@pytest.mark.parametrize("frame_stride", [1, 2])
def test_rates_of_windows_equal_those_of_their_pixels(roots, frame_stride):
    spec = read_spec("synthetic")
    source = open_windows(_data(roots[1], frame_stride=frame_stride), split="train", frames=4)
    expected = []
    for index in range(len(source)):
        values = spec.encoding.decode(source.read(index)).astype(np.float64)
        expected.append(np.nanmean(values))
    np.testing.assert_allclose(mean_rates(source), expected, rtol=2e-6)
    held_out = _data(roots[1], hold_out={"folds": 2, "fold": 0}, frame_stride=frame_stride)
    assert len(mean_rates(open_windows(held_out, split="train", frames=4))) < len(source)


def test_windows_without_a_valid_pixel_are_never_drawn():
    statistics = EventStatistics(*(np.full((1, 4), value, np.float32) for value in (np.nan, np.nan, 1.0)))
    means = window_means(statistics, np.array([0]), np.array([1]), frames=2, frame_stride=1)
    assert np.isnan(means.mean_rate[0]) and means.missing_share[0] == 1
    order = SampleOrder(2, seed=0, weights=np.array([0.0, 0.3]))
    assert {order.index(position) for position in range(20)} == {1}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_each_epoch_contains_a_window_by_its_share(size):
    weights = np.random.default_rng(size).random(size) ** 4 + 1e-4
    order = SampleOrder(size, seed=4, weights=weights)
    expected = size * weights / weights.sum()
    epochs = []
    for epoch in range(3):
        drawn = [order.index(epoch * size + place) for place in range(size)]
        assert np.abs(np.bincount(drawn, minlength=size) - expected).max() < 1.001, "rounded up or down"
        epochs.append(drawn)
    assert size == 1 or epochs[0] != epochs[1] != epochs[2]
    fresh = SampleOrder(size, seed=4, weights=weights)
    assert [fresh.index(2 * size + place) for place in range(size)] == epochs[2], "a function of the position"


def _batches(root, *, ranks: int = 1, micro_size: int = 2, first_step: int = 0, steps: int = 9, workers: int = 0):
    """Return, by step, the samples of all ranks: position, window, corner and pixels."""
    config = _data(root, crop={"size": 6, "margin": 1})
    source = open_windows(config, split="train", frames=5)
    order, _ = training_order(config, source, seed=3)
    crops = CropPositions(config, read_spec("synthetic"), seed=3)
    micro = 4 // (micro_size * ranks)
    by_step = {}
    for rank in range(ranks):
        batches = micro_batches(
            source, seed=3, first_step=first_step, global_size=4, micro_size=micro_size, rank=rank, world_size=ranks,
            workers=workers, order=order, crops=crops,
        )  # fmt: skip
        for number, batch in enumerate(islice(batches, micro * steps)):
            samples = by_step.setdefault(first_step + number // micro, [])
            samples += zip(batch.positions, batch.indices, batch.corners or (), strict=True)
    return {step: sorted(samples) for step, samples in by_step.items()}


def test_batches_do_not_depend_on_ranks_micro_batches_workers_or_resuming(roots):
    one = _batches(roots[1])
    assert _batches(roots[1], ranks=2) == one and _batches(roots[1], micro_size=4) == one
    assert _batches(roots[1], workers=2, steps=3) == {step: one[step] for step in range(3)}
    resumed = _batches(roots[1], first_step=5, steps=4)  # 24 windows: within the first and into the second epoch
    assert resumed == {step: one[step] for step in range(5, 9)}


def test_sampling_is_part_of_the_identity(roots, tmp_path):
    def identity(**over):
        return plan(tiny_config(tmp_path / "run", data=_data(roots[1], **over).model_dump(mode="json"))).identity

    uniform, sampled = identity(sampling=None), identity()
    assert "data sampling" not in uniform and not any("sampling" in key for key in uniform)
    added = {key: value for key, value in sampled.items() if key not in uniform}
    assert added.pop("data sampling") and added["data.sampling.saturation"] == 2.0 and len(added) == 5


def test_rejects_data_without_statistics(roots, tmp_path):
    with pytest.raises(ConfigError, match=r"contains an archive; run `simcast data prepare"):
        plan(tiny_config(tmp_path / "run", data=_data(roots[0]).model_dump(mode="json")))
    old = prepared(roots[0], tmp_path / "old")
    (old / STATISTICS).unlink()
    assert len(open_windows(_data(old, sampling=None), split="train", frames=5)) == 24, "remains readable"
    with pytest.raises(DataError, match=r"statistics\.h5 does not exist, because an earlier version prepared"):
        mean_rates(open_windows(_data(old), split="train", frames=5))


def _crops(codes: np.ndarray, **data) -> list[tuple[int, int]]:
    config = from_mapping(DataConfig, {"dataset": "synthetic", **data})
    positions = CropPositions(config, read_spec("synthetic"), seed=1)
    return [positions.corner(codes, position) for position in range(200)]


def test_crops_keep_to_the_coverage_and_follow_the_rain():
    codes = np.full((3, 40, 60), 255, np.uint8)
    codes[:, :, :20] = 0
    codes[:, 30:, :10] = 200
    uniform = _crops(codes, crop=8)
    assert np.mean([left >= 20 for _, left in uniform]) > 0.5, "an integer stays uniform"
    assert _crops(codes, crop={"size": 8, "minimum_coverage": 0.0}) == uniform
    covered = _crops(codes, crop={"size": 8, "minimum_coverage": 0.5})
    shares = [(codes[:, top : top + 8, left : left + 8] != 255).mean() for top, left in covered]
    assert np.mean(np.array(shares) >= 0.5) > 0.98, "else the largest of 16"

    def wet(corners) -> float:
        return float(np.mean([(codes[:, t : t + 8, x : x + 8] == 200).any() for t, x in corners]))

    rainy = _crops(codes, crop={"size": 8, "minimum_coverage": 0.5}, sampling=IMPORTANCE | {"crop_candidates": 16})
    assert wet(rainy) > 2 * wet(covered) > 0
    without = np.full((3, 40, 60), 255, np.uint8)
    assert len(set(_crops(without, crop={"size": 8}))) > 100, "without any coverage the first position is used"


def test_margin_surrounds_the_size():
    crop = from_mapping(DataConfig, {"crop": {"size": 8, "margin": 4}}).cropping
    assert crop is not None and crop.side == 16
    with pytest.raises(ConfigError, match=r"data\.crop\.margin=5 is more than half of data\.crop\.size=8"):
        from_mapping(DataConfig, {"crop": {"size": 8, "margin": 5}})


def test_loss_counts_the_inner_pixels_only(roots, tmp_path):
    def stage(crop):
        return plan(tiny_config(tmp_path / "run", data=_data(roots[1], crop=crop).model_dump(mode="json"))).stage

    with_margin, without = stage({"size": 8, "margin": 4}), stage({"size": 16})
    torch.manual_seed(0)
    module = with_margin.module()
    inputs, target, valid = without.example_sample(1, torch.device("cpu"))
    torch.manual_seed(1)
    inputs, target = torch.rand_like(inputs), torch.randint_like(target, 255)
    prediction = module.model(inputs)
    inner = np.s_[..., 4:-4, 4:-4]
    expected = with_margin.loss(prediction[inner], target[inner], valid[inner])
    torch.testing.assert_close(module(inputs, target, valid), expected, rtol=0, atol=0)
    changed = target.clone()
    changed[..., :4, :] = 0
    assert module(inputs, changed, valid) == module(inputs, target, valid)
