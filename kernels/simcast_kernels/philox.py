"""Counter-based random numbers (Philox) in PyTorch: the same words for the same counters as ``device/philox_tile.py``.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011), section 3.3 (Philox4x32-10); Box and Muller,
A note on the generation of random normal deviates (1958).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ROUND_A, _ROUND_B, _KEY_A, _KEY_B = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_CHUNK = 2**14
WORDS = 4  # words per call, so 4 elements share a counter


def philox(key: int, counters: Sequence[Tensor], *, rounds: int = 10) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox4x32 for four int64 counters below 2^32, as int64."""
    counters = torch.broadcast_tensors(*counters)
    shape, device = counters[0].shape, counters[0].device
    words = torch.stack([counter.flatten() for counter in counters])
    # On a CPU in chunks that fit its cache: every round passes over memory ten times.
    for chunk in words.split(_CHUNK if device.type == "cpu" else max(1, words.shape[1]), dim=1):
        _rounds(key, chunk, rounds)
    c0, c1, c2, c3 = words.view(4, *shape)
    return c0, c1, c2, c3


def _rounds(key: int, words: Tensor, rounds: int) -> None:
    """Replace counters by words, both int64 ``[4, n]``, in place."""
    c0, c1, c2, c3 = (word.clone() for word in words)
    low, high = torch.empty_like(c0), torch.empty_like(c0)
    k0, k1 = key & _WORD, key >> 32
    for _ in range(rounds):
        # The product of two words overflows int64; its low 64 bits are correct. Bits above a word, including the sign,
        # are masked before the next product.
        torch.mul(c0, _ROUND_A, out=low)
        torch.mul(c2, _ROUND_B, out=high)
        torch.bitwise_right_shift(high, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_WORD)
        torch.bitwise_right_shift(low, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_WORD)
        c1, high, c3, low = high, c1, low, c3
        k0, k1 = k0 + _KEY_A & _WORD, k1 + _KEY_B & _WORD
    words[0], words[2] = c0, c2
    torch.bitwise_and(c1, _WORD, out=words[1])
    torch.bitwise_and(c3, _WORD, out=words[3])


def normals(
    key: int, sample: Tensor, member: Tensor, *, step: int, elements: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return standard normal noise ``[rows, elements]``, a function of key, sample, member, step and element only.

    Element e uses the counters (e // 4, sample, member, step): words 0 and 1 give the first two of four elements, words
    2 and 3 the last two, by Box-Muller with the uniform numbers ``(word + 1/2) / 2^32``.

    Args:
        key: key of the random stream, 0 <= key < 2^63.
        sample: sample of each row, int64 ``[rows]``, 0 <= sample < 2^32.
        member: ensemble member of each row, int64 ``[rows]``, 0 <= member < 2^32.
        step: 0 <= step < 2^32.
        elements: elements per row.
        dtype: float32 or float64; the words are the same.
    """
    quads = torch.arange(-(-elements // WORDS), device=sample.device)
    step_ = torch.full((), step, dtype=torch.int64, device=sample.device)
    words = philox(key, (quads[None], sample[:, None], member[:, None], step_))
    # In float32 both operations round to nearest, so the uniform numbers of the kernel are bitwise equal.
    uniform = [word.to(dtype) * 2.0**-32 + 2.0**-33 for word in words]
    pairs = []
    for first, second in (uniform[:2], uniform[2:]):
        radius, angle = torch.sqrt(-2.0 * torch.log(first)), 2.0 * math.pi * second
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :elements]
