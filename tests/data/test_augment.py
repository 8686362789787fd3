"""Augmentation: crops and symmetries are uniform functions of seed and position, equal for all tensors of a sample."""

import pytest
import torch

from simcast_hpc.config import ConfigError, DataConfig
from simcast_hpc.data.augment import augment, random_symmetry
from simcast_hpc.data.crop_positions import training_grid


def _square() -> torch.Tensor:
    return torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)


def _symmetries() -> list[torch.Tensor]:
    rotated = [torch.rot90(_square(), turns, (-2, -1)) for turns in range(4)]
    return rotated + [frame.flip(-1) for frame in rotated]


def test_all_eight_symmetries_occur_equally_often():
    positions = range(1600)
    got = random_symmetry(_square().expand(1600, 1, 3, 3), positions, seed=1)
    counts = [int((got == expected).flatten(1).all(dim=1).sum()) for expected in _symmetries()]
    assert sum(counts) == 1600
    assert all(140 <= count <= 260 for count in counts), counts


def test_frames_and_extension_get_the_same_symmetry():
    positions = list(range(40, 80))
    codes = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    joint = random_symmetry(codes, positions, seed=7)
    for part in (slice(0, 2), slice(2, 3)):
        single = random_symmetry(codes[:, part].half(), positions, seed=7)
        torch.testing.assert_close(single, joint[:, part].half(), rtol=0, atol=0)


def test_symmetry_depends_only_on_seed_and_position():
    codes = torch.randint(0, 256, (6, 2, 4, 4), dtype=torch.uint8)
    joint_result = random_symmetry(codes, [3, 9, 27, 81, 5, 6], seed=7)
    parts = [random_symmetry(codes[i : i + 1], [position], seed=7) for i, position in enumerate([3, 9, 27, 81, 5, 6])]
    torch.testing.assert_close(joint_result, torch.cat(parts), rtol=0, atol=0)
    many = codes[:1].expand(64, 2, 4, 4)
    assert not torch.equal(random_symmetry(many, range(64), seed=7), random_symmetry(many, range(64), seed=8))


def test_non_square_grid_is_only_flipped():
    frame = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    got = random_symmetry(frame.expand(400, 1, 2, 3), range(400), seed=1)
    assert got.shape == (400, 1, 2, 3)
    expected = [frame, frame.flip(-1), frame.flip(-2), frame.flip(-1, -2)]
    counts = [int((got == each).flatten(1).all(dim=1).sum()) for each in expected]
    assert sum(counts) == 400 and min(counts) > 60


def test_rejects_another_number_of_positions():
    with pytest.raises(ValueError, match="zip"):
        random_symmetry(torch.zeros(3, 1, 4, 4), [1, 2], seed=0)


def test_crops_are_uniform_functions_of_the_position():
    codes = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6)
    cropped = augment(codes.expand(800, 1, 6, 6), range(800), DataConfig(crop=4), seed=3)
    assert cropped.shape == (800, 1, 4, 4)
    corners = cropped[:, 0, 0, 0].tolist()
    assert set(corners) == {top * 6 + left for top in range(3) for left in range(3)}
    assert all(50 <= corners.count(corner) <= 130 for corner in set(corners))
    for position in (0, 17, 799):
        single = augment(codes, [position], DataConfig(crop=4), seed=3)
        assert torch.equal(single[0], cropped[position])
        assert torch.equal(single[0, 0], codes[0, 0, corners[position] // 6 :, corners[position] % 6 :][:4, :4])


def test_frames_and_extension_get_the_same_augmentation():
    codes = torch.randint(0, 256, (6, 4, 9, 9), dtype=torch.uint8)
    config = DataConfig(augment=True, crop=5)
    joint_result = augment(codes, range(6), config, seed=1)
    parts = [augment(part, range(6), config, seed=1) for part in codes.split(2, dim=1)]
    assert joint_result.shape == (6, 4, 5, 5) and torch.equal(joint_result, torch.cat(parts, dim=1))
    assert torch.equal(augment(codes, range(6), DataConfig(), seed=1), codes), "off by default"


def test_rejects_a_crop_larger_than_the_grid():
    assert training_grid(DataConfig(), (9, 5)) == (9, 5) and training_grid(DataConfig(crop=5), (9, 5)) == (5, 5)
    with pytest.raises(ConfigError, match=r"data\.crop=6 is larger than the data's grid of 9 x 5 pixels"):
        training_grid(DataConfig(crop=6), (9, 5))
