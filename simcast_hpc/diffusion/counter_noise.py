"""Counter-based random numbers for training and sampling: nothing has to be stored or synchronized between ranks.

The noise of an element is a function of (seed, purpose, sample, member, step, element). Members are therefore distinct
and reproducible for any batch size, chunking and number of ranks.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from simcast_hpc.data.loader import numbers_to_device
from simcast_kernels.philox import normals, philox
from simcast_kernels.sampler_step import Counters

_INITIAL_STEP = 2**32 - 1  # the step of the initial noise of a sampler; no schedule has such a timestep


def stream_key(seed: int, purpose: str) -> int:
    """Return the Philox key of a seed and purpose, in [0, 2^63); different purposes have different streams."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class BatchNoise:
    """Random numbers of a batch in which each row is one member of one sample.

    Attributes:
        key: key of the stream, from :func:`stream_key`.
        sample: sample of each row, int64 ``[rows]``, in [0, 2^32): its index in the data set.
        member: ensemble member of each row, int64 ``[rows]``, in [0, 2^32).
    """

    key: int
    sample: Tensor
    member: Tensor

    def counters(self, step: int) -> Counters:
        """Return the counters of the noise that a sampler adds at ``step``."""
        return Counters(self.key, self.sample, self.member, step)

    def initial(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the initial noise of sampling, ``[rows, *shape]``."""
        return self.normal(shape, step=_INITIAL_STEP, dtype=dtype)

    def normal(self, shape: tuple[int, ...], *, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers ``[rows, *shape]`` of one step."""
        flat = normals(
            self.key, self.sample, self.member, step=step, elements=int(torch.Size(shape).numel()), dtype=dtype
        )
        return flat.view(-1, *shape)

    def uniform(self) -> Tensor:
        """Return one number in [0, 1) per row, float64."""
        zero = torch.zeros((), dtype=torch.int64, device=self.sample.device)
        return philox(self.key, (zero, self.sample, self.member, zero))[0].double() * 2.0**-32


def training_noise(positions: list[int], *, seed: int, purpose: str, device: torch.device | str) -> BatchNoise:
    """Return the random numbers of a training batch, in which a row is a sample at a position of the run.

    The position is split into two 32-bit words, so that runs of any length have unique streams.
    """
    position = numbers_to_device(positions, device, dtype=torch.int64)
    return BatchNoise(stream_key(seed, purpose), position & 0xFFFFFFFF, position >> 32)


def sample_timesteps(noise: BatchNoise, timesteps: int) -> Tensor:
    """Return one timestep per row, uniform in 0 .. ``timesteps`` - 1, int64."""
    return (noise.uniform() * timesteps).long().clamp_max(timesteps - 1)
