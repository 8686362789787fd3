"""What all trained ensembles have in common: numbered members whose noise follows from the seed and the input."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simcast_hpc.config import SamplingConfig, TrainConfig
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.diffusion import BatchNoise, stream_key


class Members(NamedTuple):
    """``frames`` fp32 ``[B, M, T', H, W]`` in [0, 1], and ``clip_rate`` of :class:`.SamplingResult`, fp32."""

    frames: Tensor
    clip_rate: Tensor


class Ensemble(ABC):
    """Trained networks on one device that forecast ensemble members.

    The noise of a member is a function of the sampling seed, of the observed frames and of the member's number: it does
    not depend on the rest of the batch, on chunking, or on the rank.

    Attributes:
        network: the module that takes the noise.
        config: of the run.
        sampling: number of members, seed and further settings.
        weights_hash: SHA-256 of the weights of ``network``.
        steps: optimizer steps of the run; None if unknown.
    """

    network: Any
    config: TrainConfig
    sampling: SamplingConfig
    weights_hash: str
    steps: int | None

    @property
    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the weights of other runs that the members depend on, by role."""

    @property
    @abstractmethod
    def frames_config(self) -> TrainConfig:
        """Configuration of the run whose network takes the observed frames."""

    @property
    @abstractmethod
    def note(self) -> str:
        """Description of how the members are made, for tables."""

    @property
    @abstractmethod
    def noise_spacing(self) -> int:
        """Pixels per element of the noise along an axis."""

    @abstractmethod
    def noise_shape(self, grid: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the shape ``(frames, channels, h, w)`` of the noise of one member for frames of ``grid`` (H, W)."""

    @abstractmethod
    def on(self, device: torch.device) -> "Ensemble":
        """Move the networks to ``device`` and return the ensemble."""

    @abstractmethod
    def check_grid(self, grid: tuple[int, int]) -> None:
        """Check that the networks can take frames of ``grid`` (H, W).

        Raises:
            ConfigError: names the grid and what is needed.
        """

    @abstractmethod
    def sample_members(
        self, codes: Tensor, numbers: Sequence[int], *, start: Tensor | None = None, base: Tensor | None = None
    ) -> Members:
        """Return the members with these numbers.

        Args:
            codes: ``[B, T, H, W]``, uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing).
            numbers: which members.
            start: noise fp32 ``[B, len(numbers), *noise_shape]``, instead of the noise of each sample: overlapping
                tiles of one domain share theirs.
            base: base forecast of the network that takes the frames, a part of that of a larger domain.
        """

    @abstractmethod
    def base_forecast(self, codes: Tensor, *, side: int) -> Tensor | None:
        """Return the base forecast of a domain; see :meth:`.TrainedModel.base_forecast`."""

    def forecast(self, codes: Tensor, *, frames_out: int) -> Tensor:
        """Return ``sampling.members`` members after ``codes`` ``[B, T, H, W]``, fp32 ``[B, M, frames_out, H, W]``.

        Raises:
            ValueError: ``frames_out`` is not the ensemble's number of lead times.
        """
        if frames_out != self.config.sequence.frames_out:
            raise ValueError(f"the ensemble forecasts {self.config.sequence.frames_out} frames, not {frames_out}")
        return self.members(codes, range(self.sampling.members))

    def members(self, codes: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return the members with these numbers, fp32 ``[B, len(numbers), T', H, W]`` in [0, 1]."""
        return self.sample_members(codes, numbers).frames

    def noise_rows(self, identity: Tensor, numbers: Tensor) -> BatchNoise:
        """Return the random numbers of rows, each a member of a sample of :func:`sample_identity`, int64 ``[R]``."""
        return BatchNoise(stream_key(self.sampling.seed, "member"), identity, numbers)

    def noise_of_domain(self, codes: Tensor, numbers: Sequence[int], *, grid: tuple[int, int]) -> Tensor:
        """Return the noise of a domain ``grid`` (H, W), fp32 ``[M, frames, channels, h, w]``.

        A function of the sampling seed, of ``codes`` ``[T, ...]`` and of each member's number.
        """
        members = torch.tensor(list(numbers), dtype=torch.int64)
        identity = sample_identity(codes[None]).cpu().expand(len(members))
        return self.noise_rows(identity, members).initial(self.noise_shape(grid))


def sample_identity(codes: Tensor) -> Tensor:
    """Return a hash in [0, 2^32) of each sample of ``codes`` ``[B, T, H, W]``, int64 ``[B]``.

    Floats in [0, 1] are hashed as the nearest encoded values, so that a window has one identity in both forms.
    """
    if codes.dtype != torch.uint8:
        scaled = (codes.float() * MISSING_CODE).round().clamp(0, MISSING_CODE - 1)
        codes = torch.where(torch.isnan(codes), MISSING_CODE, scaled).to(torch.uint8)
    digests = [hashlib.blake2b(one.contiguous().numpy().tobytes(), digest_size=4).digest() for one in codes.cpu()]
    return torch.tensor([int.from_bytes(digest, "little") for digest in digests], device=codes.device)
