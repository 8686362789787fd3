"""Products of an ensemble: probabilities and the probability-matched mean."""

import pytest
import torch

from simcast_hpc.diffusion import exceedance_probability, probability_matched_mean


def members() -> torch.Tensor:
    return torch.rand(2, 5, 3, 8, 9, generator=torch.Generator().manual_seed(0)) ** 4


def test_probability_is_fraction_of_members():
    field = members()
    got = exceedance_probability(field, [0.1, 0.5])
    assert got.shape == (2, 2, 3, 8, 9)
    assert torch.equal(got[:, 1], (field >= 0.5).sum(dim=1) / 5)
    assert exceedance_probability(torch.full((1, 2, 1, 1, 1), 0.5), [0.5]).item() == 1, "a tie exceeds"
    missing = torch.full((1, 2, 1, 1, 1), float("nan"))
    assert exceedance_probability(missing, [0.0]).item() == 0


def test_matched_mean_has_pattern_of_mean_and_values_of_members():
    field = members()
    matched, mean = probability_matched_mean(field), field.mean(dim=1)
    assert torch.equal(matched.flatten(2).argsort(-1), mean.flatten(2).argsort(-1))
    assert torch.isin(matched, field).all(), "every value occurs in a member"
    assert matched.max() > 0.9 * field.max() > mean.max()
    torch.testing.assert_close(matched.mean(), field.mean(), rtol=0.02, atol=0)


def test_matched_mean_of_equal_members_is_the_member():
    one = members()[:, :1]
    torch.testing.assert_close(probability_matched_mean(one.expand(-1, 7, -1, -1, -1)), one[:, 0])
    torch.testing.assert_close(probability_matched_mean(one), one[:, 0])


def test_rejects_invalid_members():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 9\)"):
        probability_matched_mean(torch.rand(2, 3, 8, 9))
    with pytest.raises(ValueError, match="uint8"):
        exceedance_probability(members().to(torch.uint8), [1.0])
