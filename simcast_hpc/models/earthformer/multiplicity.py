"""How often each token counts as a key of the global vectors, where whole cuboids need more tokens than there are.

The released code renews the global vectors from the padded tokens, in the order of cuboids. What that means without
moving a token: each real token counts once, never, or more than once, and some keys of zeros count besides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_kernels.cuboid_attention.geometry import Grid, make_grid
from simcast_kernels.cuboid_attention.reference import resample, to_cuboids

from .patterns import Cuboid, Triple


def key_multiplicity(cuboid: Cuboid, tokens: Triple, *, padding: str) -> tuple[Tensor | None, int]:
    """Return how often each token counts, int64 ``[T * H * W]`` on the CPU, and how many keys of zeros do.

    ``zeros`` counts every token once and every padded one as a key of zeros; ``nearest`` counts a token as often as
    it is repeated. ``ignore`` follows the released code, whose mask marks places of the padded and rolled grid while
    its keys stand in the order of cuboids: so it leaves out real tokens in the stead of padded ones. Weights that
    were published for it expect that. None for the first stands for once each.
    """
    # The device is named, so that a model that is built on the meta device has real counts as well.
    places = torch.arange(1, tokens[0] * tokens[1] * tokens[2] + 1, device="cpu").view(1, *tokens, 1)
    grid = make_grid(tokens, cuboid=cuboid.size, strategy=cuboid.strategy, shift=cuboid.shift)
    if not any(grid.padding):
        return None, 0
    if padding == "zeros":
        return None, grid.padded[0] * grid.padded[1] * grid.padded[2] - places.numel()
    if padding == "nearest":
        repeated = resample(places, grid.padded)
        assert repeated is not None
        counted = repeated.flatten()
    else:
        counted = to_cuboids(places, grid).flatten()[_marked(grid)]
    counts = counted.bincount(minlength=places.numel() + 1)
    return counts[1:], int(counts[0])


def _marked(grid: Grid) -> Tensor:
    """Return the places that the released code's mask marks as real, bool, over the padded and rolled grid."""
    t, h, w = grid.padding
    real = F.pad(torch.ones(grid.size, dtype=torch.bool, device="cpu"), (0, w, 0, h, 0, t))
    return real.roll([-shift for shift in grid.shift], (0, 1, 2)).flatten()
