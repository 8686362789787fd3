"""Counter-based noise: published words, moments of the normal distribution, dependence on the counters."""

import pytest
import torch
import triton
import triton.language as tl

from simcast_kernels.device.philox_tile import keep_tile
from simcast_kernels.philox import normals, philox


def test_philox_matches_published_words():
    """Known answers of Random123's philox4x32-10: all zeros, and the digits of pi."""
    zero = torch.zeros((), dtype=torch.int64)
    words = [int(word) for word in philox(0, [zero] * 4)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    counters = [torch.tensor(c) for c in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    words = [int(word) for word in philox(0x299F31D0A4093822, counters)]
    assert words == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    row = torch.arange(count)
    return row // 5, row % 5


def test_numbers_are_standard_normal():
    z = normals(7, *rows(20), step=0, elements=20_000, dtype=torch.float64)
    count = z.numel()
    assert z.mean().item() == pytest.approx(0, abs=4 * count**-0.5)
    assert z.square().mean().item() == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    assert z.pow(4).mean().item() == pytest.approx(3, abs=4 * (96 / count) ** 0.5)
    cumulative = torch.special.ndtr(z.flatten()).sort().values
    distance = (cumulative - (torch.arange(count) + 0.5) / count).abs().max().item()
    assert distance < 1.95 * count**-0.5, "the Kolmogorov-Smirnov bound at 1 in 1000"
    for shift in (1, 2, 3, 4):
        assert (z[:, shift:] * z[:, :-shift]).mean().item() == pytest.approx(0, abs=4 * count**-0.5)
    assert (z[1:] * z[:-1]).mean().item() == pytest.approx(0, abs=4 * count**-0.5), "rows are independent"


def test_row_depends_on_its_counters_only():
    sample, member = rows(10)
    together = normals(3, sample, member, step=4, elements=101)
    order = torch.tensor([7, 2, 9])
    assert torch.equal(normals(3, sample[order], member[order], step=4, elements=101), together[order])
    assert torch.equal(normals(3, sample, member, step=4, elements=50), together[:, :50])


def test_other_counters_give_other_numbers():
    sample, member = torch.tensor([1]), torch.tensor([2])
    base = normals(3, sample, member, step=4, elements=8)
    others = [
        normals(4, sample, member, step=4, elements=8),
        normals(3 + 2**40, sample, member, step=4, elements=8),
        normals(3, sample + 1, member, step=4, elements=8),
        normals(3, sample, member + 1, step=4, elements=8),
        normals(3, member, sample, step=4, elements=8),
        normals(3, sample, member, step=5, elements=8),
    ]
    assert all((other - base).abs().min() > 1e-6 for other in others)


@triton.jit
def _mask_kernel(out, seed, head, sample, FIRST: tl.constexpr, ADJACENT: tl.constexpr, DROP_BELOW: tl.constexpr):
    row, column = 7 * tl.arange(0, 16), FIRST + tl.arange(0, 32)
    keep = keep_tile(seed, row, column, FIRST, head, sample, ADJACENT, 32, DROP_BELOW)
    tl.store(out + tl.arange(0, 16)[:, None] * 32 + tl.arange(0, 32)[None, :], keep.to(tl.uint8))


@pytest.mark.kernel
@pytest.mark.parametrize("seed", [11, 2**40 + 3])
def test_mask_of_a_tile_equals_the_reference_bit_by_bit(seed, kernel_device):
    """Four columns by one call, and each column by its own call, against Philox in PyTorch.

    Quad c of 16 columns has the columns 2c, 2c + 1, 2c + 8 and 2c + 9.
    """
    first, head, sample, drop_below = 48, 3, 2, 2**30
    row, column = 7 * torch.arange(16)[:, None], torch.arange(first, first + 32)
    quad, word = column // 16 * 4 + column % 8 // 2, column % 2 + column % 16 // 8 * 2
    words = torch.stack(philox(seed, (row, quad, torch.tensor(head), torch.tensor(sample))), dim=-1)
    want = (words.gather(-1, word.expand(16, 32).unsqueeze(-1)).squeeze(-1) >= drop_below).to(torch.uint8)
    assert 0.6 < want.float().mean() < 0.9
    for adjacent in (True, False):
        got = torch.full((16, 32), 7, dtype=torch.uint8, device=kernel_device)
        _mask_kernel[(1,)](got, seed, head, sample, FIRST=first, ADJACENT=adjacent, DROP_BELOW=drop_below)
        assert torch.equal(got.cpu(), want)
