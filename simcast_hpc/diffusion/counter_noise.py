"""Random numbers of training and sampling as functions of counters: nothing of them needs saving, or agreeing on.

The noise of an element is a function of (seed, purpose, sample, member, step, element). So members never repeat, and
always reproduce, however they are batched, chunked or spread over ranks.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from simcast_kernels.philox import normals, philox
from simcast_kernels.sampler_step import Counters

_START = 2**32 - 1  # the step whose noise a sampler begins from; a schedule has no such timestep


def stream_key(seed: int, purpose: str) -> int:
    """Return the Philox key of one use of chance under a seed, in [0, 2^63); uses do not share a stream."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Rows:
    """What the rows of a batch are: a member of a sample each.

    Attributes:
        key: the stream, from :func:`stream_key`.
        sample: which sample a row belongs to, int64 ``[rows]``, in [0, 2^32): its place in the data set.
        member: which member of it, int64 ``[rows]``, in [0, 2^32).
    """

    key: int
    sample: Tensor
    member: Tensor

    def counters(self, step: int) -> Counters:
        """Return where the noise that a sampler adds at ``step`` comes from."""
        return Counters(self.key, self.sample, self.member, step)

    def start(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the noise that sampling begins from, ``[rows, *shape]``."""
        return self.normal(shape, step=_START, dtype=dtype)

    def normal(self, shape: tuple[int, ...], *, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers ``[rows, *shape]`` of one step."""
        flat = normals(
            self.key, self.sample, self.member, step=step, elements=int(torch.Size(shape).numel()), dtype=dtype
        )
        return flat.view(-1, *shape)

    def uniform(self) -> Tensor:
        """Return one number in [0, 1) for each row, float64."""
        zero = torch.zeros((), dtype=torch.int64, device=self.sample.device)
        return philox(self.key, (zero, self.sample, self.member, zero))[0].double() * 2.0**-32


def rows_of(positions: list[int], *, seed: int, purpose: str, device: torch.device | str) -> Rows:
    """Return rows for training: each sample by its position in the run, one member.

    Position p of the run is split into two words, so that runs of any length have streams of their own.
    """
    place = torch.tensor(positions, dtype=torch.int64, device=device)
    return Rows(stream_key(seed, purpose), place & 0xFFFFFFFF, place >> 32)


def draw_timesteps(rows: Rows, timesteps: int) -> Tensor:
    """Return a timestep for each row, uniform in 0 .. ``timesteps`` - 1, int64."""
    return (rows.uniform() * timesteps).long().clamp_max(timesteps - 1)
