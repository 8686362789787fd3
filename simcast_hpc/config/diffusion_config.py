"""Latent diffusion: autoencoder, CasFormer, and how both are trained and sampled."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .stage_sections import Operational, Section, StrictModel


class AutoencoderConfig(StrictModel):
    """KL autoencoder of single frames (Rombach et al. 2022); the default is CasCast's: 83.6 M parameters, 384 -> 48."""

    widths: tuple[PositiveInt, ...] = (128, 256, 512, 512)
    """Features per level, finest first; every level but the last halves the grid."""
    blocks: PositiveInt = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    latent_channels: PositiveInt = 4
    """Channels of the latent."""
    groups: PositiveInt = 32
    """Groups of group normalization; must divide all widths."""
    checkpoint: Operational[bool] = False
    """Recompute the activations of each level in the backward pass (activation checkpointing)."""

    @property
    def reduction(self) -> int:
        """Pixels per latent element along an axis."""
        return 2 ** (len(self.widths) - 1)

    @model_validator(mode="after")
    def _groups_divide_widths(self) -> Self:
        if not self.widths or any(width % self.groups for width in self.widths):
            raise ValueError(
                f"autoencoder.widths={list(self.widths)} must have one width per level, each a multiple of "
                f"autoencoder.groups={self.groups}"
            )
        return self


class CasFormerConfig(StrictModel):
    """CasFormer (Gong et al. 2024, section 3.3); the default is CasCast's for SEVIR: 309 M parameters at 12 frames."""

    frame_width: PositiveInt = 256
    """Features of the blocks that process frames separately."""
    frame_depth: PositiveInt = 12
    """Number of those blocks."""
    frame_heads: PositiveInt = 4
    """Attention heads of those blocks."""
    width: PositiveInt = 1152
    """Features of the blocks that process all frames jointly."""
    depth: PositiveInt = 12
    """Number of those blocks."""
    heads: PositiveInt = 16
    """Attention heads of those blocks."""
    feed_forward_ratio: PositiveFloat = 4.0
    """Hidden features of a feed-forward layer per input feature."""
    patch: PositiveInt = 2
    """Latent elements per token along an axis."""
    observations: bool = False
    """Add the paper's cross-attention to the latents of observed frames, which the official implementation lacks."""
    checkpoint: Operational[bool] = False
    """Recompute the activations of each block in the backward pass (activation checkpointing)."""

    @model_validator(mode="after")
    def _heads_divide_widths(self) -> Self:
        for width, heads in (("frame_width", "frame_heads"), ("width", "heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"casformer.{width}={getattr(self, width)} must be a multiple of casformer.{heads}="
                    f"{getattr(self, heads)}"
                )
        if self.frame_width % 4:
            raise ValueError(
                f"casformer.frame_width={self.frame_width} must be a multiple of 4 for its position encoding"
            )
        return self


class DiscriminatorConfig(StrictModel):
    """Patch discriminator (Isola et al. 2017)."""

    layers: PositiveInt = 3
    """Convolutions with stride 2."""
    width: PositiveInt = 64
    """Features after the first convolution."""
    groups: PositiveInt = 8
    """Groups of group normalization; must divide ``width``."""

    @model_validator(mode="after")
    def _groups_divide_width(self) -> Self:
        if self.width % self.groups:
            raise ValueError(
                f"autoencoder.discriminator.width={self.width} must be a multiple of autoencoder.discriminator.groups="
                f"{self.groups}"
            )
        return self


class AutoencoderTrainingConfig(Section, read_by=("autoencoder",)):
    """Autoencoder and its losses (Rombach et al. 2022, section 3.1; CasCast's values).

    The loss is L1 over a learned variance, summed over pixels, plus ``divergence_weight`` times the Kullback-Leibler
    divergence. After ``adversarial_start`` optimizer steps the discriminator's loss is added, weighted by
    ``adversarial_weight`` times the ratio of both losses' gradients at the last layer (Esser et al. 2021, Eq. 7).
    """

    model: AutoencoderConfig = AutoencoderConfig()
    """Sizes of the autoencoder."""
    divergence_weight: float = Field(default=1e-6, ge=0)
    """Weight of the Kullback-Leibler divergence."""
    adversarial_start: int = Field(default=25_000, ge=0)
    """Optimizer steps before the discriminator is added."""
    adversarial_weight: float = Field(default=0.5, ge=0)
    """Weight of the adversarial loss, before the ratio of gradients."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Sizes of the discriminator."""


class SamplingConfig(Section, read_by=("diffusion",)):
    """How an ensemble is sampled; no field affects training."""

    sampler: Literal["ddpm", "ddim", "dpm_solver"] = "ddim"
    """Sampling method."""
    steps: PositiveInt = 20
    """Denoising steps."""
    spacing: Literal["leading", "trailing"] = "leading"
    """Which of the training time steps are used (as in diffusers)."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """Noise added by DDIM: 0 is deterministic, 1 as much as DDPM."""
    guidance: float = Field(default=2.0, ge=0)
    """Scale of classifier-free guidance; 1 is the conditional prediction."""
    clip: PositiveFloat | None = 13.0
    """Bound of the clean latent in every step, in units of the scaled latent (CasCast: 13); null does not clip."""
    members: PositiveInt = 10
    """Ensemble members."""
    chunk: PositiveInt = 10
    """Members of all samples together that are denoised at a time; affects memory only."""
    seed: int = Field(default=0, ge=0)
    """Seed of the members."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of denoiser and decoder; latents and the sampler's updates are always fp32."""
    cuda_graph: bool = True
    """Replay the denoising loop as a CUDA graph from the second chunk of a size."""


class ValidationConfig(StrictModel):
    """Ensembles sampled during training with the averaged weights, in fp32, as section ``sampling`` describes."""

    every_steps: int = Field(default=0, ge=0)
    """Optimizer steps between validations; 0 never validates."""
    windows: PositiveInt = 8
    """Windows, evenly spaced over the split ``val`` and the same at every validation."""
    members: int = Field(default=4, ge=2)
    """Ensemble members per window."""


class DiffusionConfig(Section, read_by=("diffusion",)):
    """Denoiser, noise schedule, and the finished runs that it is conditioned on (CasCast, section 4.1)."""

    autoencoder: Operational[Path | None] = None
    """Run directory of the autoencoder. Operational, because the run adds the hash of its weights."""
    student: Operational[Path | None] = None
    """Run directory of the conditioning model: any stage that forecasts the long horizon."""
    fold_students: Operational[tuple[Path, ...] | None] = None
    """Run directories of models that each held out another fold of the events (``data.hold_out``): the condition of a
    training window is forecast by the model that was not trained on its event. Ensembles use ``student``."""
    latents: Operational[str] = "cached"
    """``cached`` stores latents in the run directory's own ``latents``; any other value is a folder that several runs
    share."""
    casformer: CasFormerConfig = CasFormerConfig()
    """Sizes of the denoiser."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule."""
    timesteps: PositiveInt = 1000
    """Time steps of the noise schedule."""
    beta_start: PositiveFloat = 1e-4
    """Noise variance of the first time step (linear schedule)."""
    beta_end: PositiveFloat = 0.02
    """Noise variance of the last time step (linear schedule)."""
    prediction: Literal["epsilon", "v"] = "epsilon"
    """What the denoiser predicts: the noise, or the velocity."""
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a training sample has no condition, for classifier-free guidance."""
    validation: Operational[ValidationConfig] = ValidationConfig()
    """Ensembles sampled during training; they do not affect it."""
