"""Cases of ``sampler_step``: CasCast latents, bandwidth-bound pixel sizes, and sizes at the edges of the tiling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from benchmarks.cases import Direction
from simcast_kernels.dispatch import Launch
from simcast_kernels.sampler_step.reference import Coefficients, Counters

# Steps from timestep 500 to 450 of the linear schedule: DDIM, its stochastic form, DPM-Solver++ of second order, its
# stochastic form, and of third order.
DDIM = Coefficients(3.571, -3.428, 0.0, 0.9392, 0.3433)
ANCESTRAL = Coefficients(3.571, -3.428, 0.0, 0.7211, 0.3433, noise=0.6017)
DPM_SOLVER = Coefficients(3.571, -3.428, 0.9784, 0.0, 0.0844, from_history=-0.0152)
DPM_SOLVER_SDE = Coefficients(3.585, -3.443, 0.7453, 0.0, 0.2163, from_history=-0.0694, noise=0.6016)
THIRD_ORDER = Coefficients(3.585, -3.443, 0.9736, 0.0, 0.1569, from_history=-0.1044, from_earlier=0.0307)


@dataclass(frozen=True, kw_only=True)
class SamplerStepCase:
    """One input: ``shape`` is ``[rows, T, C, H, W]``; ``forms`` determine whether history and clean latent are used."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    forms: Coefficients = DDIM
    guided: bool = True
    clip: float | None = 2.0
    key: int = 0x1234_5678_9ABC
    edge: bool = False
    spills_expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Elements of the latent."""
        return prod(self.shape)

    @property
    def with_clean(self) -> bool:
        """Whether the clean latent is written."""
        return self.forms.from_history != 0

    @property
    def with_earlier(self) -> bool:
        """Whether the clean latent of two steps before is read."""
        return self.forms.from_earlier != 0

    def bytes_moved(self, direction: Direction) -> int:
        """Return the minimum bytes: latent, predictions, earlier clean latents read; next and clean latent written."""
        return self.numel * self.dtype.itemsize * (3 + self.guided + 2 * self.with_clean + self.with_earlier)

    def operations(self, direction: Direction) -> int:
        """Return 0: there is no matmul."""
        return 0

    def tensors(self, device: torch.device | str, *, seed: int) -> dict[str, Tensor | None]:
        """Return random latents of order 1, by argument name."""
        generator = torch.Generator(device).manual_seed(seed)

        def latent() -> Tensor:
            return torch.randn(self.shape, device=device, generator=generator).to(self.dtype)

        return {
            "noisy": latent(),
            "prediction": latent(),
            "unconditional": latent() if self.guided else None,
            "history": latent() if self.with_clean else None,
            "earlier": latent() if self.with_earlier else None,
        }

    def counters(self, device: torch.device | str) -> Counters | None:
        """Return counters of rows that alternate between two samples; None without noise."""
        if not self.forms.noise:
            return None
        row = torch.arange(self.shape[0], device=device)
        return Counters(self.key, 2**31 + row % 2, row // 2, 17)

    @property
    def options(self) -> dict:
        """The keyword arguments of the op that are not tensors."""
        return {"coefficients": self.forms, "guidance": 1.5, "clip": self.clip}


PIXELS, LATENTS = (8, 12, 1, 384, 384), (10, 12, 4, 48, 48)
CASES = (
    SamplerStepCase(name="pixels-ddim", shape=PIXELS),
    SamplerStepCase(name="pixels-dpm-solver", shape=PIXELS, forms=DPM_SOLVER),
    SamplerStepCase(name="pixels-ancestral", shape=PIXELS, forms=ANCESTRAL),
    SamplerStepCase(name="pixels-ddim-bf16", shape=PIXELS, dtype=torch.bfloat16),
    SamplerStepCase(name="many-pixels-ddim", shape=(64, 12, 1, 384, 384)),
    SamplerStepCase(name="members-ddim", shape=LATENTS),
    SamplerStepCase(name="members-dpm-solver", shape=LATENTS, forms=DPM_SOLVER),
    SamplerStepCase(name="members-third-order", shape=LATENTS, forms=THIRD_ORDER),
    SamplerStepCase(name="unguided", shape=LATENTS, guided=False, clip=None),
    SamplerStepCase(
        name="one-element",
        edge=True,
        shape=(1, 1),
        forms=ANCESTRAL,
        spills_expected={"sm_100": "one register beyond the 32 that ptxas chooses, for one thread"},
    ),
    SamplerStepCase(name="odd", edge=True, shape=(3, 2, 1, 13, 19), forms=ANCESTRAL, key=2**62 + 5),
    SamplerStepCase(name="odd-bf16", edge=True, shape=(3, 2, 1, 13, 19), forms=DPM_SOLVER, dtype=torch.bfloat16),
    SamplerStepCase(name="odd-third-order", edge=True, shape=(3, 2, 1, 13, 19), forms=THIRD_ORDER),
    SamplerStepCase(name="odd-sde", edge=True, shape=(3, 2, 1, 13, 19), forms=DPM_SOLVER_SDE),
    SamplerStepCase(name="one-past-a-program", edge=True, shape=(2, 1, 1, 25, 41), forms=DPM_SOLVER, guided=False),
)


def launches(case: SamplerStepCase) -> dict[Direction, list[Launch]]:
    """Return the launch of a case on ``meta`` tensors; a step has no backward."""
    from simcast_kernels.sampler_step import kernel  # imports Triton

    def latent() -> Tensor:
        return torch.empty(case.shape, dtype=case.dtype, device="meta")

    launch = kernel.step_launch(
        latent(),
        latent(),
        latent() if case.guided else None,
        latent() if case.with_clean else None,
        latent() if case.with_earlier else None,
        out=latent(),
        clean=latent() if case.with_clean else None,
        hits=None if case.clip is None else torch.empty((), dtype=torch.int64, device="meta"),
        counters=case.counters("meta"),
        **case.options,
    )
    return {"forward": [launch]}
