"""The symmetries of the square: all occur, equally often, and the same for whatever belongs to one sample."""

import pytest
import torch

from simcast_hpc.config import ConfigError, DataConfig
from simcast_hpc.data.augment import augment, random_crop, random_symmetry, training_grid


def _square() -> torch.Tensor:
    return torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)


def _symmetries() -> list[torch.Tensor]:
    turned = [torch.rot90(_square(), turns, (-2, -1)) for turns in range(4)]
    return turned + [frame.flip(-1) for frame in turned]


def test_all_eight_symmetries_occur_equally_often():
    positions = range(1600)
    got = random_symmetry(_square().expand(1600, 1, 3, 3), positions, seed=1)
    counts = [int((got == wanted).flatten(1).all(dim=1).sum()) for wanted in _symmetries()]
    assert sum(counts) == 1600
    assert all(140 <= count <= 260 for count in counts), counts


def test_codes_and_extension_of_a_sample_turn_alike():
    positions = list(range(40, 80))
    codes = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    together = random_symmetry(codes, positions, seed=7)
    for part in (slice(0, 2), slice(2, 3)):
        alone = random_symmetry(codes[:, part].half(), positions, seed=7)
        torch.testing.assert_close(alone, together[:, part].half(), rtol=0, atol=0)


def test_a_samples_symmetry_depends_on_seed_and_position_alone():
    codes = torch.randint(0, 256, (6, 2, 4, 4), dtype=torch.uint8)
    whole = random_symmetry(codes, [3, 9, 27, 81, 5, 6], seed=7)
    parts = [random_symmetry(codes[i : i + 1], [place], seed=7) for i, place in enumerate([3, 9, 27, 81, 5, 6])]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=0)
    many = codes[:1].expand(64, 2, 4, 4)
    assert not torch.equal(random_symmetry(many, range(64), seed=7), random_symmetry(many, range(64), seed=8))


def test_an_oblong_grid_is_flipped_and_never_turned():
    frame = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    got = random_symmetry(frame.expand(400, 1, 2, 3), range(400), seed=1)
    assert got.shape == (400, 1, 2, 3)
    wanted = [frame, frame.flip(-1), frame.flip(-2), frame.flip(-1, -2)]
    counts = [int((got == each).flatten(1).all(dim=1).sum()) for each in wanted]
    assert sum(counts) == 400 and min(counts) > 60


def test_positions_must_be_as_many_as_samples():
    with pytest.raises(ValueError, match="zip"):
        random_symmetry(torch.zeros(3, 1, 4, 4), [1, 2], seed=0)


def test_crops_are_functions_of_the_position_and_reach_every_place():
    codes = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6)
    cut = random_crop(codes.expand(800, 1, 6, 6), range(800), size=4, seed=3)
    assert cut.shape == (800, 1, 4, 4)
    corners = cut[:, 0, 0, 0].tolist()
    assert set(corners) == {top * 6 + left for top in range(3) for left in range(3)}
    assert all(50 <= corners.count(corner) <= 130 for corner in set(corners))
    for place in (0, 17, 799):
        alone = random_crop(codes, [place], size=4, seed=3)
        assert torch.equal(alone[0], cut[place])
        assert torch.equal(alone[0, 0], codes[0, 0, corners[place] // 6 :, corners[place] % 6 :][:4, :4])


def test_codes_and_extension_are_cut_and_turned_alike():
    codes = torch.randint(0, 256, (6, 4, 9, 9), dtype=torch.uint8)
    config = DataConfig(augment=True, crop=5)
    whole = augment(codes, range(6), config, seed=1)
    parts = [augment(part, range(6), config, seed=1) for part in codes.split(2, dim=1)]
    assert whole.shape == (6, 4, 5, 5) and torch.equal(whole, torch.cat(parts, dim=1))
    assert torch.equal(augment(codes, range(6), DataConfig(), seed=1), codes), "off by default"


def test_a_crop_larger_than_the_grid_is_rejected():
    assert training_grid(DataConfig(), (9, 5)) == (9, 5) and training_grid(DataConfig(crop=5), (9, 5)) == (5, 5)
    with pytest.raises(ConfigError, match=r"data\.crop=6 is larger than the data's grid of 9 x 5 pixels"):
        training_grid(DataConfig(crop=6), (9, 5))
