"""Cases of ``group_norm_activation``: SimVP, Earthformer's stem and head, the autoencoder, and edges of the tiling."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.cases import Direction
from simcast_kernels.dispatch import Launch


@dataclass(frozen=True, kw_only=True)
class GroupNormActivationCase:
    """One input: ``shape`` is ``[N, C, H, W]``; ``summed``: added to the sum of previous branches."""

    name: str
    shape: tuple[int, int, int, int]
    groups: int
    activation: str = "silu"
    slope: float = 0.2
    summed: bool = False
    dtype: torch.dtype = torch.bfloat16
    edge: bool = False
    spills_expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Elements of the features."""
        samples, channels, height, width = self.shape
        return samples * channels * height * width

    def bytes_moved(self, direction: Direction) -> int:
        """Return the bytes of two passes: features for the statistics, then features (and sum) in and result out.

        A single pass would need all features of a sample in on-chip memory. Backward reads features and gradient
        twice and writes the gradient of the features.
        """
        tensors = 5 if direction == "backward" else 3 + self.summed
        return tensors * self.numel * self.dtype.itemsize

    def operations(self, direction: Direction) -> int:
        """Return 0: there is no matmul."""
        return 0

    def tensors(self, device: torch.device | str, *, seed: int) -> dict[str, Tensor]:
        """Return random inputs of order 1, in channels-last memory, with a different mean per channel."""
        generator = torch.Generator(device).manual_seed(seed)

        def random(*shape: int) -> Tensor:
            values = torch.randn(shape, device=device, generator=generator)
            return values.permute(0, 3, 1, 2) if len(shape) == 4 else values

        samples, channels, height, width = self.shape
        features = (samples, height, width, channels)
        x = (random(*features) + random(channels)[:, None, None]).to(self.dtype)
        tensors = {"x": x, "weight": 1 + random(channels) / 4, "bias": random(channels) / 4}
        tensors = {name: tensor.to(self.dtype) for name, tensor in tensors.items()}
        return tensors | {"total": random(*features).to(self.dtype)} if self.summed else tensors

    @property
    def settings(self) -> dict[str, object]:
        """Keyword arguments of the op."""
        return {"groups": self.groups, "activation": self.activation, "slope": self.slope}


def _leaky(name: str, *shape: int, groups: int, slope: float = 0.2, **options) -> GroupNormActivationCase:
    return GroupNormActivationCase(
        name=name, shape=shape, groups=groups, activation="leaky_relu", slope=slope, **options
    )


CASES = (
    _leaky("inception", 8, 256, 192, 192, groups=8, summed=True),
    _leaky("inception-last", 8, 832, 192, 192, groups=8, summed=True),
    _leaky("inception-fp32", 8, 256, 192, 192, groups=8, summed=True, dtype=torch.float32),
    GroupNormActivationCase(name="spatial", shape=(26, 64, 384, 384), groups=2),
    _leaky("stem-16", 26, 16, 384, 384, groups=4, slope=0.1),
    _leaky("stem-64", 26, 64, 128, 128, groups=16, slope=0.1),
    GroupNormActivationCase(name="autoencoder-128", shape=(4, 128, 384, 384), groups=32),
    _leaky("one-channel", 1, 1, 2, 3, groups=1, edge=True, dtype=torch.float32),
    _leaky("odd", 2, 37, 5, 7, groups=1, edge=True, dtype=torch.float32, summed=True),
    GroupNormActivationCase(name="two-parts", shape=(2, 16, 41, 27), groups=4, edge=True, summed=True),
    GroupNormActivationCase(name="blocks", shape=(1, 104, 19, 2), groups=8, edge=True, dtype=torch.float32),
    _leaky("odd-bf16", 2, 96, 7, 5, groups=3, edge=True),
)


def launches(case: GroupNormActivationCase) -> dict[Direction, list[Launch]]:
    """Return the launches of a case on ``meta`` tensors."""
    from simcast_kernels.group_norm_activation import kernel  # imports Triton

    def like_x() -> Tensor:
        return torch.empty(case.shape, dtype=case.dtype, device="meta", memory_format=torch.channels_last)

    samples, channels, *_ = case.shape
    weight, bias = (torch.empty(channels, dtype=case.dtype, device="meta") for _ in range(2))
    mean, rstd = (torch.empty(samples, case.groups, device="meta") for _ in range(2))
    settings = {"groups": case.groups, "activation": case.activation, "slope": case.slope}
    x, total = like_x(), like_x() if case.summed else None
    forward = kernel.forward_launches(x, weight, bias, total, **settings, eps=1e-5, out=like_x(), mean=mean, rstd=rstd)
    backward = kernel.backward_launches(
        like_x(),
        x,
        weight,
        bias,
        mean,
        rstd,
        **settings,
        grad_x=like_x(),
        channel_sums=torch.empty(2, samples, channels, device="meta"),
    )
    return {"forward": forward, "backward": backward}
